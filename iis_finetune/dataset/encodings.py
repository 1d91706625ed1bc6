"""In which encoding a file is written, and whether that is certain."""

import codecs
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import Place, Problem, ProblemsFound

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# What data files in the wild are written in; of two that read a file alike, the first is named.
LATIN = ("cp1252", "cp1250", "cp1254")
CODECS = ("gb18030", "big5", "cp932", "euc_jp", "cp949", *LATIN, "cp1251", "koi8_r")
WORDS = re.compile(rb"[^\s\"]{0,20}[\x80-\xff][^\s\"]*")
CELLS = re.compile(rb"[^\",;\t\r\n]{0,40}[\x80-\xff][^\",;\t\r\n]*")
ASCII = bytes(range(128))
BLOCK_BYTES, SAMPLE_BYTES = 1 << 20, 1 << 17
# charset-normalizer's measures, 0 to 1. Tried in 2026-11 on 3 to 300 lines of programs' texts in 20 languages: with
# these bounds no certain answer was wrong; Chinese, Japanese, Korean, Russian, German were certain, Spanish seldom.
MOST_CHAOS, MARGIN, FEWEST_BYTES = 0.15, 0.05, 12


def encoding_of(file: BinaryIO, path: Path) -> str:
    """The file's encoding, as Python names it. Raises ProblemsFound when it holds two, or when it is not certain."""
    head = file.read(3)
    if mark := next((mark for mark in MARKS if head.startswith(mark)), None):
        return MARKS[mark]
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        block = head
        while block:
            decoder.decode(block)
            block = file.read(BLOCK_BYTES)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        file.seek(0)
        return _guessed(file, path)
    return "utf-8"


def _guessed(file: BinaryIO, path: Path) -> str:
    """The encoding that the lines which are not UTF-8 are most likely written in."""
    other, sample, utf8, first = 0, bytearray(), 0, 0
    for number, line in enumerate(file, 1):
        beyond = len(line.translate(None, ASCII))
        try:
            line.decode("utf-8")
            utf8 += beyond
        except UnicodeDecodeError:
            first, other = first or number, other + beyond
            sample += line if len(sample) < SAMPLE_BYTES else b""
    names = _likely(bytes(sample))
    if utf8 > 12 and utf8 * 100 >= other:  # bytes; by chance a short line in another encoding is UTF-8
        what = f"two encodings in one file: other lines are UTF-8, this one is not; it looks like {names[0]}"
        raise refused(what, "write the whole file in one encoding, UTF-8", path, first)
    if len(names) > 1:
        cells = {
            tuple(cell.decode(name, "replace")[:60] for name in names[:3]) for cell in CELLS.findall(bytes(sample))
        }
        shown = max(cells, key=lambda readings: (len(set(readings)), len(readings[0]), readings))
        read = "; ".join(f"'{text}' in {name}" for text, name in zip(shown, names, strict=False))
        what = f"the file is not UTF-8, and what it is written in is not certain: it reads {read}"
        command = f"`iis-finetune data add {shlex.quote(str(path))} --encoding {names[0]}`"
        fix = f"say which is right: {command} (or {', '.join(names[1:3])}, or another that Python knows)"
        raise refused(what, fix, path, first)
    return names[0]


def _likely(sample: bytes) -> list[str]:
    """One name when it is certain, else the likeliest ones whose readings differ.

    Only words with letters beyond ASCII tell Chinese in an English text from Latin letters; among the Latin encodings,
    all of which read each other's texts without chaos, whole lines tell a language.
    """
    words = b" ".join(WORDS.findall(sample))
    found = _measured(words, CODECS)
    best = min((chaos for _, chaos, _ in found), default=1.0)
    near = [name for name, chaos, _ in found if chaos < best + MARGIN]
    if near and set(near) <= set(LATIN):
        lines = _measured(b"\n".join(line for line in sample.splitlines() if not line.isascii()), LATIN)
        most = max((coherence for _, _, coherence in lines), default=0.0)
        near = [name for name, _, coherence in lines if coherence > most - 2 * MARGIN] or near
    if len(near) == 1 and best <= MOST_CHAOS and sum(byte > 127 for byte in words) >= FEWEST_BYTES:
        return near
    names = dict.fromkeys((*sorted(near, key=CODECS.index), "gb18030", "cp1252"))
    return list({words.decode(name, "replace"): name for name in reversed(names)}.values())[::-1]


def _measured(text: bytes, codecs_tried: Iterable[str]) -> list[tuple[str, float, float]]:
    """Name, chaos and coherence of each encoding that can read this text."""
    from charset_normalizer import from_bytes

    found = from_bytes(text, cp_isolation=list(codecs_tried), threshold=0.4)
    alike = [([name for name in CODECS if name in each.could_be_from_charset], each) for each in found]
    return [(names[0], each.chaos, each.coherence) for names, each in alike if names]


def lines_of(file: BinaryIO, encoding: str, path: Path) -> Iterator[str]:
    """The text by lines, without a mark before the first. Raises ProblemsFound with the line that cannot be read."""
    number = 0
    try:
        if re.match("utf.?(16|32)", encoding, re.IGNORECASE):  # whose line ends are no single bytes
            yield from codecs.getreader(encoding)(file)
            return
        for line in file:
            number += 1
            yield line.decode(encoding)
    except UnicodeError:
        what = f"this cannot be read as {encoding}; other lines are, so there are two encodings in one file"
        what = what if number else f"the file cannot be read as {encoding}"
        raise refused(what, "write the whole file in one encoding, UTF-8", path, number or None) from None
    except LookupError as error:
        raise refused(str(error), "name one that Python knows: utf-8, gb18030, cp1252, ...", path) from None


def refused(what: str, fix: str, file: Path, line: int | None = None) -> ProblemsFound:
    return ProblemsFound([Problem(what, fix, Place(str(file), line))])

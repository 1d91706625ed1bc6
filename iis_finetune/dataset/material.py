"""Files as people have them, packed or in any encoding: how each is written, and its rows."""

import csv
import gzip
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, cast

from msgspec import Struct, structs

from ..errors import Place, Problem, ProblemsFound
from .encodings import encoding_of, lines_of, refused
from .faults import Row
from .readers import DELIMITERS, LONGEST_ROW_CHARACTERS, is_lines, read_rows, texts
from .sources import FILE_TYPES, correction, origin_of

TYPES = {**FILE_TYPES, "ndjson": "json", "tsv": "csv"}
TABLES = ("parquet", "arrow")
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json")  # lie beside data on the hubs, and hold no rows
SNIFFED = 200  # lines that decide what separates cells
LAST_BYTES = 1 << 20


class Written(Struct, frozen=True):
    """How a file is written; `cut` is the number of its last line if that is broken off, else 0."""

    file: Path
    file_type: str
    encoding: str = "utf-8"
    delimiter: str = ","
    cut: int = 0
    quoted: bool = True  # whether quotes hold cells together
    numbers: bool = False  # whether LLaMA-Factory would take texts of this CSV for numbers

    @property
    def packed(self) -> bool:
        return self.file.suffix.lower() == ".gz"

    @property
    def usable(self) -> bool:
        """Whether LLaMA-Factory reads the file itself; pandas takes a byte order mark out of CSV."""
        text = self.encoding == "utf-8" or (self.encoding == "utf-8-sig" and self.file_type == "csv")
        plain = self.delimiter == "," and self.quoted and not (self.numbers or self.cut)
        return text and plain and self.file.suffix[1:] in FILE_TYPES

    def __str__(self) -> str:
        encoding = "UTF-8 with a byte order mark" if self.encoding == "utf-8-sig" else self.encoding.upper()
        text = "" if self.file_type in TABLES else f" in {encoding}"
        cells = "" if self.delimiter == "," else f", cells separated by '{DELIMITERS[self.delimiter]}'"
        cells += ", quotes are letters" * (not self.quoted) + ", texts that look like numbers" * self.numbers
        cut = f"; line {self.cut}, the last, is broken off and left out" if self.cut else ""
        return f"{'packed ' * self.packed}{self.file_type}{text}{cells}{cut}"


def forms_of(path: Path, encoding: str | None = None) -> list[Written]:
    """How a file, or each data file of a folder, is written. Raises ProblemsFound when that cannot be told."""
    if not path.exists():
        what, where = f"{path} is not there", Place(str(path))
        raise ProblemsFound([Problem(what, correction(path), where, kind="missing", code=2)])
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [each for each in inside if each == path or not _beside(each, path)]
    found = [_form(each, encoding) for each in files if each.is_file() and _type_of(each)]
    if not found:
        what = f"{path} is a folder without data files" if path.is_dir() else f"'{path.suffix}' files cannot be read"
        fix = f"give a file or a folder of {', '.join(f'.{ending}' for ending in TYPES)}, each also packed as .gz"
        raise refused(what, fix, path)
    return found


def changed(path: Path) -> float:
    """When a file was last written, or a folder or any data file in it."""
    inside = (each for each in path.rglob("*") if _type_of(each) and each.is_file() and not _beside(each, path))
    return max(each.stat().st_mtime for each in (path, *inside))


def _beside(file: Path, folder: Path) -> bool:
    """Whether a file of a folder is hidden, describes data, or was written anew from another that lies there."""
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return hidden or file.name in DESCRIPTIONS or origin_of(file) is not None


def _type_of(file: Path) -> str | None:
    return TYPES.get(file.name.lower().removesuffix(".gz").rpartition(".")[2])


def _form(file: Path, encoding: str | None) -> Written:
    form = Written(file, str(_type_of(file)))
    if form.file_type not in TABLES:
        with _opened(form) as opened:
            form = structs.replace(form, encoding=encoding or encoding_of(opened, file))
        with plain(form) as opened:
            if form.encoding == "utf-16" and b"\t" in opened.readline():  # what Excel saves as Unicode text
                form = structs.replace(form, file_type="csv")
            opened.seek(0)
            if form.file_type == "csv":
                mark = _delimiter(opened, file)
                return structs.replace(form, delimiter=mark, quoted=_quoted(opened, mark.encode()))
            return structs.replace(form, cut=_cut(opened) if form.file_type == "json" else 0)
    return form


@contextmanager
def _opened(form: Written) -> Iterator[BinaryIO]:
    try:
        with gzip.open(form.file) if form.packed else form.file.open("rb") as file:
            yield cast(BinaryIO, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise refused(f"the packed file is damaged: {error}", "fetch it, or pack it, again", form.file) from None


@contextmanager
def plain(form: Written) -> Iterator[BinaryIO]:
    """The file unpacked, its text in UTF-8."""
    table = form.file_type in TABLES
    with _opened(form) as opened:
        if not form.packed and (table or form.encoding == "utf-8"):
            yield opened
            return
        with TemporaryFile() as file:
            if table:
                shutil.copyfileobj(opened, file)
            else:
                file.writelines(line.encode() for line in lines_of(opened, form.encoding, form.file))
            file.seek(0)
            yield cast(BinaryIO, file)


def _quoted(file: BinaryIO, mark: bytes) -> bool:
    """Whether quotes hold cells together: not where none closes a cell on its line and all lines have as many cells."""
    file.seek(0)
    closed = re.compile(b'"(?<![^%b]")[^"]*(""[^"]*)*"(?![^%b\r\n])' % (mark, mark))
    cells, begun = set[int](), False
    for line in filter(bytes.strip, file):
        cells.add(line.count(mark))
        begins = line.startswith(b'"') or mark + b'"' in line
        if len(cells) > 1 or (begins and closed.search(line)):
            return True
        begun = begun or begins
    return not begun or cells == {0}


def _delimiter(file: BinaryIO, path: Path) -> str:
    """The mark that cuts the first lines into equally many cells, the most it can; else into most in the header."""
    csv.field_size_limit(LONGEST_ROW_CHARACTERS)
    lines = [line.decode("utf-8", "replace") for line in islice(file, SNIFFED)]
    try:
        cells = {mark: [row for row in csv.reader(lines, delimiter=mark) if row] for mark in (",", *DELIMITERS)}
    except csv.Error:
        raise refused("a line ends as on an old Mac, with CR", "save it with line ends of LF or CRLF", path) from None
    even = [mark for mark, found in cells.items() if len(set(map(len, found[: SNIFFED - 2]))) == 1 < len(found[0])]
    best = max(even or cells, key=lambda mark: [*map(len, cells[mark][:1])])
    header = [name for name in next(iter(cells[best]), []) if name.strip()]
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise refused(f"several columns are named '{twice}'", "give each a name of its own", path, 1)
    return best


def _cut(file: BinaryIO) -> int:
    """The number of the last line, if that is no JSON and the others are a row each."""
    lines = is_lines(file.read(LAST_BYTES))
    file.seek(-min(LAST_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
    last = [line for line in file if line.strip()]
    if not lines or len(last) < 2 or is_lines(last[-1]):
        return 0
    file.seek(0)
    return max(number for number, line in enumerate(file, 1) if line.strip())


def rows_of(form: Written) -> Iterator[Row]:
    """The rows as LLaMA-Factory would read them, or those of a file that it cannot read; not a broken last one."""
    with plain(form) as file:
        cells = form.file_type == "csv" and not form.usable
        rows = texts(file, form.delimiter, form.quoted) if cells else read_rows(file, form.file_type)
        yield from (row for row, _ in pairwise(rows)) if form.cut else rows

"""Rows that say the same: equal once normalised, or near by the shingles that they share."""

import re
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any
from zlib import crc32

from .convert import Sample

# Jaccard of the shingles: with word 3-grams 0.7 is about one changed word in 17, where web corpora are commonly
# deduplicated at 0.7 to 0.8 (Lee et al. 2021, "Deduplicating Training Data Makes Language Models Better").
NEAR = 0.7
WORDS, CHARACTERS = 3, 5  # a shingle: so many words, or characters where a script has no spaces
BANDS, BAND = 16, 4  # a pair at 0.7 shares a band of its 64 minima with probability 0.99, one at 0.8 with 0.9998
SLACK = 0.2  # what the 64 minima may say too little (3.5 standard deviations) before shingles are compared
# A shingle of more texts than this is a template's ("Judge this news item: ..."), which makes no two rows the same;
# it also bounds how many texts one is compared with, so that the time stays linear in the rows.
TEMPLATE_SHARE, TEMPLATE_LEAST, TEMPLATE_MOST = 0.3, 50, 1000
TEMPLATE = (
    f"{{:,}} rows share {NEAR:.0%} of their words or more with over {TEMPLATE_SHARE:.0%} of the rows, or "
    f"{TEMPLATE_MOST:,}: those words were taken for a template, and these rows compared by their others"
)
TOLD = 2000  # texts between two words on progress
CELL_BITS = 22  # of a shingle's hash, by which it is counted in how many texts it stands

# Kept are letters with the marks that belong to them (vowels of Hindi, tones of Thai, which \w leaves out), digits, and
# signs that carry the meaning of a formula or of an answer: arrows, emoji, and what makes another number of digits.
MARKS = r"\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u109f\u1780-\u17ff\u200d\u20d0-\u20f0"
WORD = re.compile(rf"[\w+<=>^$\u2190-\u2bff\U0001f000-\U0001faff{MARKS}]+")
KEPT = re.compile(rf"{WORD.pattern}|\.(?<=\d\.)(?=\d)|[-*/%](?=\s?\d)|[%!](?<=\d[%!])")
# ASCII goes by a table of bytes, several times as fast; where there are digits it leaves the signs to two steps more.
SIGNS = b"-*/%!."
IDLE = re.compile(rb"[-*/%!.](?!(?<=[-*/%])\s?\d|(?<=\d[%!])|(?<=\d\.)\d)")
PLAIN = bytes(
    ord(chr(code).lower()) if WORD.match(chr(code)) and chr(code) != "_" else 32 for code in range(128)
).ljust(256)
SIGNED = bytes(code if code in SIGNS else PLAIN[code] for code in range(256))
NO_DIGITS = bytes(set(range(256)) - set(b"0123456789"))
LEFT_OUT = "_，：；？！（）"  # it would take NFKC 40 microseconds a kilobyte to level the full-width ones first
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\uabff\U00020000-\U00031fff]")

Progress = Callable[[float], object]  # is told the share that is done, 0 to 1


def normalised(text: str) -> str:
    """The text in one spelling: NFKC, no capitals, punctuation and white space as single spaces."""
    return " ".join(_plain(text).decode().split() if text.isascii() else _kept(text))


def _plain(text: str) -> bytes:
    """ASCII in its one spelling."""
    raw = text.encode()
    if not raw.translate(None, NO_DIGITS):
        return raw.translate(PLAIN)
    raw = IDLE.sub(b" ", raw.replace(b"_", b" ")).translate(SIGNED)
    for sign in SIGNS:
        raw = raw.replace(b"%c" % sign, b" %c " % sign)
    return raw


def _kept(text: str) -> list[str]:
    for mark in LEFT_OUT:
        text = text.replace(mark, " ")
    kept: list[str] = KEPT.findall(unicodedata.normalize("NFKC", text).casefold())
    return kept


def question_of(sample: Sample) -> str:
    """All that comes before the answer; the system text is left out, as whole data sets share one."""
    return "\n".join(str(turn.text or "") for turn in sample.prompt)


def answer_of(sample: Sample) -> str:
    """The answer, or all the answers of a pair."""
    return "\n".join(str(turn.text or "") for turn in sample.answers)


def learned_of(sample: Sample) -> str:
    """The answer that is there; of a pair the better one, of a marked row the one that is marked."""
    return next((str(turn.text) for turn in sample.answers if turn.text), "")


def text_of(sample: Sample) -> str:
    """What a row is compared by: its question and its answer, normalised."""
    return normalised(f"{question_of(sample)}\n{learned_of(sample)}")


def row_key(sample: Sample) -> bytes:
    """Eight bytes, made while rows are read: equal where question and answer are, once normalised."""
    text = f"{question_of(sample)}\n{learned_of(sample)}"
    kept = _plain(text).replace(b" ", b"") if text.isascii() else "".join(_kept(text)).encode()
    return blake2b(kept, digest_size=8).digest()


def key_of(text: str) -> bytes:
    """16 bytes that are equal for equal texts, in every process and on every computer."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def shingles(text: str) -> set[int]:
    """The hashes (32 bits) of a normalised text's word 3-grams, or character 5-grams where most of it is unspaced."""
    words = text.split()
    if not text.isascii() and len(UNSPACED.findall(text)) > len(words):
        whole = "".join(words)
        parts = [whole[at : at + CHARACTERS] for at in range(max(1, len(whole) - CHARACTERS + 1))]
    else:
        parts = list(map(" ".join, zip(words, words[1:], words[2:], strict=False))) or [text] * bool(words)
    return {crc32(part.encode("utf-8", "surrogatepass")) for part in parts}


class NearIndex:
    """Texts by number from 0: `add` all of them, in any order, `settle`, then ask which are `near`.

    MinHash LSH proposes pairs, their shingles decide. For 1,000,000 texts of 1 KB it takes 1.6 GB.
    """

    def __init__(self) -> None:
        self._flat, self._ends = array("I"), array("Q", [0])
        self.template = 0  # so many texts mostly are one, and were compared by the rest

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, text: str) -> int:
        """Take in a normalised text; its number."""
        self._flat.extend(sorted(shingles(text)))
        self._ends.append(len(self._flat))
        return len(self) - 1

    def settle(self, progress: Progress = float) -> None:
        """Compute the 64 minima of every text, and which texts share a band of them."""
        import numpy
        from datasketch import MinHash

        self._hashes, counts = numpy.asarray(self._flat), numpy.zeros(1 << CELL_BITS, numpy.int64)
        for part in numpy.array_split(self._hashes, 1 + (len(self._hashes) >> CELL_BITS)):
            counts += numpy.bincount(part >> (32 - CELL_BITS), minlength=len(counts))
        self._templates = counts > min(max(TEMPLATE_LEAST, TEMPLATE_SHARE * len(self)), TEMPLATE_MOST)
        self._minima = numpy.empty((len(self), BANDS * BAND), numpy.uint32)
        for number, sketch in enumerate(MinHash.generator(self._compared(), num_perm=BANDS * BAND, hashfunc=int)):
            self._minima[number] = sketch.hashvalues
            if number % TOLD == TOLD - 1:
                progress(number / len(self))
        self._sharing = defaultdict[int, list[Any]](list)
        for at in range(0, BANDS * BAND, BAND):
            for together in _buckets(self._minima[:, at : at + BAND]):
                for number in together.tolist():
                    self._sharing[number].append(together)

    def near(self, number: int, wanted: Callable[[int, int], bool]) -> Iterator[tuple[int, float]]:
        """The other texts at or above NEAR with their Jaccard, of those that are `wanted` when their turn comes."""
        import numpy

        if number not in self._sharing:
            return
        others = numpy.unique(numpy.concatenate(self._sharing[number]))
        shares = (self._minima[others] == self._minima[number]).mean(axis=1)
        for other in others[shares >= NEAR - SLACK].tolist():
            if other != number and wanted(number, other):
                jaccard = min(map(_jaccard, self._shingles(number), self._shingles(other)))
                if jaccard >= NEAR:
                    yield other, jaccard

    def pairs(self, wanted: Callable[[int, int], bool], progress: Progress) -> Iterator[tuple[int, int, float]]:
        """Settle, and give every text with each earlier one that is near to it, as `near` does."""
        self.settle(lambda share: progress(share / 2))
        for number in range(len(self)):
            if number % TOLD == TOLD - 1:
                progress(0.5 + number / len(self) / 2)
            for other, jaccard in self.near(number, lambda one, other: other < one and wanted(one, other)):
                yield number, other, jaccard

    def _compared(self) -> Iterator[Any]:
        """What each text is compared by."""
        for number in range(len(self)):
            whole, own = self._shingles(number)
            self.template += len(whole) - len(own) >= NEAR * max(1, len(whole))
            yield own

    def _shingles(self, number: int) -> tuple[Any, Any]:
        """A text's shingles, sorted, and those of them that are no template's."""
        whole = self._hashes[self._ends[number] : self._ends[number + 1]]
        return whole, whole[~self._templates[whole >> (32 - CELL_BITS)]]


def _buckets(band: Any) -> list[Any]:
    """The texts that share these minima with others, as arrays of their numbers."""
    import numpy

    order = numpy.lexsort(band.T)
    order = order[band[order, 0] < numpy.iinfo(numpy.uint32).max]  # texts without shingles are near to none
    new = (band[order[1:]] != band[order[:-1]]).any(axis=1)
    return [each for each in numpy.split(order, numpy.flatnonzero(new) + 1) if len(each) > 1]


def _jaccard(first: Any, second: Any) -> float:
    import numpy

    both = len(numpy.intersect1d(first, second, assume_unique=True))
    return both / max(1, len(first) + len(second) - both)

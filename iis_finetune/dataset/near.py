"""Rows that say the same: equal once normalised, or near by the shingles that they share."""

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise
from typing import Any
from zlib import crc32

from .convert import Sample

# Jaccard of the shingles: with word 3-grams 0.7 is about one changed word in 17, where web corpora are commonly
# deduplicated at 0.7 to 0.8 (Lee et al. 2021, "Deduplicating Training Data Makes Language Models Better").
NEAR = 0.7
WORDS, CHARACTERS = 3, 5  # a shingle: so many words, or characters where a script has no spaces
BANDS, BAND = 16, 4  # a pair at 0.7 shares a band of its 64 minima with probability 0.99, one at 0.8 with 0.9998
SLACK = 0.2  # what the 64 minima may say too little (3.5 standard deviations) before a pair is compared exactly
LARGEST = 512  # shingles kept of a text, the lowest hashes: an even sample of a long one
# A shingle of more texts than this is a template's ("Judge this news item: ..."), which makes no two rows the same;
# it also bounds how many texts one is compared with, so that the time stays linear in the rows.
TEMPLATE_SHARE, TEMPLATE_LEAST, TEMPLATE_MOST = 0.02, 20, 1000
CELL_BITS = 22  # of a shingle's hash, by which it is counted in how many texts it stands

# Letters, digits, and signs that carry the meaning of a formula or of an answer: + < = > ^ $, arrows, emoji.
BETWEEN = re.compile(r"(?:[^\w+<=>^$\u2190-\u2bff\U0001f000-\U0001faff]|_)+")
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\uabff\U00020000-\U00031fff]")


def normalised(text: str) -> str:
    """The text in one spelling: NFKC, no capitals, punctuation and white space as single spaces."""
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return BETWEEN.sub(" ", folded).strip()


def question_of(sample: Sample) -> str:
    """All that comes before the answer; the system text is left out, as whole data sets share one."""
    return "\n".join(str(turn.text or "") for turn in sample.prompt)


def answer_of(sample: Sample) -> str:
    """The answer, or all the answers of a pair."""
    return "\n".join(str(turn.text or "") for turn in sample.answers)


def text_of(sample: Sample) -> str:
    """What a row is compared by: its question and its answer, normalised."""
    return normalised(f"{question_of(sample)}\n{answer_of(sample)}")


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
    """Texts by number from 0, and which of them are near: `add` all of them first, then ask `near` of any.

    MinHash LSH proposes pairs, their shingles decide: the Jaccard that is given is exact up to 512 shingles a text.
    For 1,000,000 texts of 1 KB it takes about 2 GB. It answers the same in whatever order the texts were added.
    """

    def __init__(self) -> None:
        self._flat, self._ends = array("I"), array("Q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, text: str) -> int:
        """Take in a normalised text; its number."""
        self._flat.extend(sorted(shingles(text))[:LARGEST])
        self._ends.append(len(self._flat))
        return len(self) - 1

    def near(self, number: int, among: Any = None) -> Iterator[tuple[int, float]]:
        """The other texts at or above NEAR, by number, with their Jaccard; `among` (a numpy mask) limits which."""
        import numpy

        found = [members for members in self._sharing(number) if len(members)]
        if not found:
            return
        others = numpy.unique(numpy.concatenate(found))
        others = others[(others != number) & (True if among is None else among[others])]
        shares = (self._minima[others] == self._minima[number]).mean(axis=1)
        for other in others[shares >= NEAR - SLACK].tolist():
            jaccard = self._jaccard(number, other)
            if jaccard >= NEAR:
                yield other, jaccard

    def _sharing(self, number: int) -> Iterator[Any]:
        for buckets, starts, members in self._bands:
            bucket = buckets[number]
            if bucket >= 0:
                yield members[starts[bucket] : starts[bucket + 1]]

    def _shingles(self, number: int) -> tuple[Any, Any]:
        """A text's shingles, sorted, and those of them that are no template's."""
        hashes, templates = self._hashes
        whole = hashes[self._ends[number] : self._ends[number + 1]]
        return whole, whole[~templates[whole >> (32 - CELL_BITS)]]

    def _jaccard(self, one: int, other: int) -> float:
        """Of two texts, with and without templates: the lower one."""
        return min(map(_jaccard, self._shingles(one), self._shingles(other)))

    @cached_property
    def _hashes(self) -> tuple[Any, Any]:
        """All texts' shingles one after another, and which cells of the counting table are templates."""
        import numpy

        flat, counts = numpy.asarray(self._flat), numpy.zeros(1 << CELL_BITS, numpy.int64)
        for part in numpy.array_split(flat, 1 + (len(flat) >> CELL_BITS)):
            counts += numpy.bincount(part >> (32 - CELL_BITS), minlength=len(counts))
        return flat, counts > min(max(TEMPLATE_LEAST, TEMPLATE_SHARE * len(self)), TEMPLATE_MOST)

    @cached_property
    def _minima(self) -> Any:
        """The 64 minima of every text."""
        import numpy
        from datasketch import MinHash

        made = numpy.empty((len(self), BANDS * BAND), numpy.uint32)
        sets: Iterable[Any] = (self._shingles(number)[1] for number in range(len(self)))
        for number, sketch in enumerate(MinHash.generator(sets, num_perm=BANDS * BAND, hashfunc=int)):
            made[number] = sketch.hashvalues
        return made

    @cached_property
    def _bands(self) -> list[tuple[Any, Any, Any]]:
        """For each band: every text's bucket (-1: alone in it), where each bucket starts, the texts by bucket."""
        import numpy

        bands, least = [], numpy.iinfo(numpy.uint32).max
        for at, end in pairwise(range(0, BANDS * BAND + 1, BAND)):
            rows = self._minima[:, at:end]
            key = numpy.zeros(len(self), numpy.uint64)
            for column in rows.T:
                key = (key ^ column) * numpy.uint64(0x9E3779B97F4A7C15)
                key ^= key >> numpy.uint64(29)
            key[rows[:, 0] == least] = 0  # a text without shingles of its own is near to none
            _, bucket, sizes = numpy.unique(key, return_inverse=True, return_counts=True)
            shared = (sizes > 1)[bucket] & (rows[:, 0] != least)
            members = numpy.flatnonzero(shared)
            order = numpy.argsort(bucket[members], kind="stable")
            _, numbers, counts = numpy.unique(bucket[members], return_inverse=True, return_counts=True)
            buckets = numpy.full(len(self), -1, numpy.int32)
            buckets[members] = numbers
            bands.append((buckets, numpy.concatenate([[0], numpy.cumsum(counts)]), members[order]))
        return bands


def _jaccard(first: Any, second: Any) -> float:
    """Of two sorted sets of hashes; long ones are judged by the lowest of their union, a fair sample of it."""
    import numpy

    union = numpy.union1d(first, second)
    if max(len(first), len(second)) >= LARGEST:
        union = union[: min(len(first), len(second))]
    both = numpy.intersect1d(first, second, assume_unique=True)
    return float((both <= union[-1]).sum() / len(union)) if len(union) else 0.0

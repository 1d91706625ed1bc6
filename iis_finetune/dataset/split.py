"""Hold rows out of a data set so that neither they nor rows nearly like them are trained on."""

import json
from array import array
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from ..errors import Misused, Place, Problem, ProblemsFound
from .convert import Sample
from .faults import Fault
from .made import Making, Meter, line_of, making
from .near import NearIndex, key_of, normalised, text_of
from .rows import Progress, samples

SIDES = ("train", "test")
LEFT_OUT = len(SIDES)


class Cut(Struct, frozen=True):
    """How to split: the share of the rows to hold out, the column whose values stay together, the seed, a name."""

    share: float
    by: str | None = None
    seed: int = 42
    name: str | None = None


class Halves(Struct, frozen=True):
    """The names of the data sets made, the rows of each and those left out, and the file that names the latter."""

    names: list[str]
    rows: list[int]
    left_out: Path


def split(name: str, data_dir: Path, cut: Cut, meter: Meter) -> Halves:
    """Split a registered data set in two; raises ProblemsFound, with nothing written.

    A row's side is in the hash of its text, or of its value in the column `by`. That depends on no other row: it is
    the same in whatever order they stand and however many are added. Among rows that are near each other one decides,
    by another hash, for all, and those that belong to the other side are left out instead of moved.
    """
    names = [f"{cut.name or name}_{side}" for side in SIDES]
    made = making(name, data_dir, names, f"{cut.name or name}_left_out")
    with meter("reading rows") as progress:
        index, texts, hashes = _read(made, cut, progress)
    with meter("comparing rows") as progress:
        groups = _groups(index, progress)
    sides = _sides([groups[text] for text in texts], hashes, cut.share)
    rows = [sides.count(side) for side in range(LEFT_OUT + 1)]
    if not all(rows[:LEFT_OUT]):
        what = f"none of {len(sides)} rows would be {'held out' if rows[0] else 'left to train on'}"
        raise Misused(what, "another share or another seed: --test 0.2 --seed 7", "--test")
    with meter("writing rows") as progress, made.streams() as streams:
        for number, (row, _) in enumerate(samples(made.source, made.options, progress)):
            told = {"row": number + 1, "reason": "it is near rows of the other side", "is": row.value}
            streams[sides[number]].write(line_of(told if sides[number] == LEFT_OUT else row.value))
    return Halves(names, rows, made.beside)


def _read(made: Making, cut: Cut, progress: Progress) -> tuple[NearIndex, Sequence[int], bytes]:
    """The different texts, the number of each row's text, and 16 bytes of hash a row."""
    index, known, texts, hashes, grouped = NearIndex(), dict[bytes, int](), array("I"), bytearray(), cut.by is None
    for row, sample in samples(made.source, made.options, progress):
        if isinstance(sample, Fault) and not isinstance(row.value, dict):
            fix = f"leave such rows out: iis-finetune data clean {made.source.name}"
            raise ProblemsFound([Problem(sample.sentence(row.file)[0], fix, Place(row.file, row.line, row.key))])
        text = text_of(sample) if isinstance(sample, Sample) else normalised(json.dumps(row.value, default=str))
        texts.append(known[key] if (key := key_of(text)) in known else known.setdefault(key, index.add(text)))
        value = row.value.get(cut.by)
        grouped |= value is not None
        hashes += key_of(f"{cut.seed} {text if value is None else json.dumps(value, default=str)}")
    if not grouped:
        raise Misused(f"no row has a column '{cut.by}'", "name a column of the rows", "--by")
    return index, texts, bytes(hashes)


def _groups(index: NearIndex, progress: Progress) -> list[int]:
    """For each text, the lowest number among the texts that it is near to, in one step or many."""
    parents = list(range(len(index)))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number

    for one, other, _ in index.pairs(lambda one, other: root(one) != root(other), progress):
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    return [root(number) for number in range(len(index))]


def _sides(groups: list[int], hashes: bytes, share: float) -> list[int]:
    """The place in SIDES of each row's side, or LEFT_OUT."""
    import numpy

    places, ranks = numpy.frombuffer(hashes, ">u8").reshape(-1, 2).T
    own, order = (places < share * 2.0**64).astype(int), numpy.argsort(ranks, kind="stable")
    _, first, group = numpy.unique(numpy.asarray(groups)[order], return_index=True, return_inverse=True)
    decided = numpy.empty_like(own)
    decided[order] = own[order][first][group]
    sides: list[int] = numpy.where(own == decided, own, LEFT_OUT).tolist()
    return sides

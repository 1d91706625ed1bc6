"""Hold rows out of a data set so that neither they nor rows nearly like them are trained on."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from ..errors import Misused, Place, Problem, ProblemsFound, did_you_mean
from .convert import Sample
from .faults import Fault
from .made import Making, Meter, line_of, making, registered
from .near import NearIndex, key_of, learned_of, normalised, text_of
from .rows import Progress, samples
from .sources import Source

CLASSES, CLASS_ROWS = 20, 10  # at most so many different answers, of so many rows on average, are classes
SIDES = ("train", "test", "left_out")
HELD_OUT, LEFT_OUT = 1, 2


class Cut(Struct, frozen=True):
    """How to split: the share of rows to hold out, the column whose values stay together, the seed, the new names."""

    share: float
    by: str | None = None
    seed: int = 42
    name: str | None = None


class Divided(Struct, frozen=True):
    """How many rows each new file has, and how many there are of what should be known."""

    rows: dict[str, int]
    lacking: int  # a value in the column `by`
    template: int  # which most of them is, so that they were compared by the rest
    not_held_out: dict[str, int]  # of each answer that many rows give, and none of the held-out ones


def split(name: str, data_dir: Path, cut: Cut, meter: Meter) -> Divided:
    """Split a registered data set in two, and a file with the rows that are left out.

    A row's side is in the hash of its text, or of its value in the column `by`. That depends on no other row: it is
    the same in whatever order they stand and however many are added. Among rows that are near each other one decides,
    by another hash, for all, and those that belong to the other side are left out instead of moved.
    Raises ProblemsFound, with nothing written.
    """
    names = [f"{cut.name or name}_{side}" for side in SIDES]
    with making(name, data_dir, names) as made:
        with meter("reading rows") as progress:
            index, texts, hashes, lacking = _read(made, cut, progress)
        with meter("comparing rows") as progress:
            groups = _groups(index, progress)
        sides = _sides([groups[text] for text in texts], hashes, cut.share)
        rows = [sides.count(side) for side in range(len(SIDES))]
        if not (rows[0] and rows[1]):
            what = f"none of {len(sides)} rows would be {'held out' if rows[0] else 'left to train on'}"
            raise Misused(what, "another seed or another share: --seed 7", "--test")
        classes = defaultdict[str, Counter[int]](Counter)
        with meter("writing rows") as progress:
            for number, (row, sample) in enumerate(samples(made.source, made.options, progress)):
                if len(classes) <= CLASSES and isinstance(sample, Sample):
                    classes[learned_of(sample).strip()][sides[number]] += 1
                told = {"row": number + 1, "reason": "near rows of the other side", "is": row.value}
                made.streams[sides[number]].write(line_of(told if sides[number] == LEFT_OUT else row.value))
    few = len(classes) <= min(CLASSES, len(sides) / CLASS_ROWS)
    missed = {answer: counts.total() for answer, counts in classes.items() if few and not counts[HELD_OUT]}
    return Divided(dict(zip(names, rows, strict=True)), lacking, index.template, missed)


def splits(source: Source, data_dir: Path) -> bool:
    """Whether a data set can be split as it is: it is registered here, and the new names are free."""
    try:
        return registered(source.name, data_dir, [f"{source.name}_{side}" for side in SIDES])[0] == source
    except ProblemsFound:
        return False


def _read(made: Making, cut: Cut, progress: Progress) -> tuple[NearIndex, Sequence[int], list[bytes], int]:
    """The different texts, the number of each row's text, 16 bytes of hash a row; how many rows lack the column."""
    index, known, texts, hashes, lacking = NearIndex(), dict[bytes, int](), array("I"), list[bytes](), 0
    for row, sample in samples(made.source, made.options, progress):
        if isinstance(sample, Fault) and not isinstance(row.value, dict):
            fix = f"leave such rows out: iis-finetune data clean {made.source.name}"
            raise ProblemsFound([Problem(sample.sentence(row.file)[0], fix, Place(row.file, row.line, row.key))])
        text = text_of(sample) if isinstance(sample, Sample) else normalised(str(row.value))
        texts.append(known[key] if (key := key_of(text)) in known else known.setdefault(key, index.add(text)))
        value = row.value.get(cut.by) if cut.by else text
        lacks = value is None or not str(value).strip()
        lacking += lacks and cut.by is not None
        hashes.append(key_of(f"{cut.seed} {text if lacks else value}"))
    if cut.by and lacking == len(texts) > 0:
        fix = did_you_mean(cut.by, row.value, f"the columns of the last row: {', '.join(row.value)}")
        if cut.by in row.value:
            raise Misused(f"the column '{cut.by}' is empty in every row", "give another column, or none", "--by")
        raise Misused(f"no row has a value in a column '{cut.by}'", fix, "--by")
    return index, texts, hashes, lacking


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


def _sides(groups: Iterable[int], hashes: list[bytes], share: float) -> list[int]:
    """The place of each row in SIDES: by the first half of its hash; the second half says whose counts in a group."""
    own = [int(int.from_bytes(each[:8]) < share * 2**64) for each in hashes]
    ranked = sorted(zip(groups, (each[8:] for each in hashes), own, strict=True), reverse=True)
    decided = {group: side for group, _, side in ranked}  # the lowest is the last
    return [side if side == decided[group] else LEFT_OUT for group, side in zip(groups, own, strict=True)]

"""Held-out rows that a training sees: equal once normalised, or nearly so, to rows that it learns from."""

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from ..errors import Place, Problem
from .convert import Sample
from .near import NearIndex, text_of
from .rows import Progress, Reading, samples
from .sources import Options, Source

NAMED = 20  # rows that a sentence names
HELD_OUT = "held-out rows of '{}' are training rows"
BY_CHANCE = "rows of '{}' repeat others, and of these val_size holds out rows that are trained on"


class Read(NamedTuple):
    """A data set, how it was read, and what its reading found."""

    source: Source
    options: Options
    reading: Reading

    def keyed(self) -> Iterator[tuple[int, int]]:
        """The number and the key of each row that is used; numbers count from 1 through all its files."""
        return ((row, key) for row, key in enumerate(memoryview(self.reading.keys).cast("Q"), 1) if key)


class Leak(Struct, frozen=True):
    """A row and the training row that it repeats."""

    row: int
    trained: str
    trained_row: int
    exact: bool = True


class Leaks(Struct, frozen=True):
    """Which rows are (also) training rows; `complete`: all were read, `near`: nearly equal ones were sought, too."""

    data: str
    held_out: bool  # otherwise they are the training's own, and found are those that repeat others
    rows: int
    compared: int
    complete: bool
    near: bool
    found: tuple[Leak, ...]

    @property
    def sentence(self) -> str:
        """How many rows leak, and which ones."""
        which = HELD_OUT.format(self.data) if self.held_out else BY_CHANCE.format(self.data)
        near, more = sum(not leak.exact for leak in self.found), ", ..." * (len(self.found) > NAMED)
        which += f", {near:,} of them with small changes" * bool(near)
        more += f"; {self.compared:,} training rows were compared" * (not self.complete)
        named = ", ".join(str(leak.row) for leak in self.found[:NAMED])
        return f"{len(self.found):,} of the {self.rows:,} {which} (row {named}{more})"

    def problem(self, place: Place) -> Problem:
        """The warning about them."""
        what = f"{self.sentence}: these figures would be too good"
        fix = f"hold out rows that have no twin: iis-finetune data split {self.found[0].trained} --test 0.1"
        return Problem(what, fix, place, "warning", "leak", details={"leak": to_builtins(self)})


def leaks_of(checked: Read, trained: Sequence[Read], near: bool = False, progress: Progress | None = None) -> Leaks:
    """What a data set shares with the training's, of which it may be one; for `near` the files are read once more."""
    held_out, name = not any(checked is each for each in trained), checked.source.name
    wanted, first = {key for _, key in checked.keyed()}, dict[int, tuple[str, int]]()
    for each in trained:
        for row, key in each.keyed():
            if key in wanted:
                first.setdefault(key, (each.source.name, row))
    found = _near(checked, trained, progress) if near and held_out else {}
    twins = ((row, first[key]) for row, key in checked.keyed() if key in first)
    found |= {row: Leak(row, *twin) for row, twin in twins if held_out or twin != (name, row)}
    complete, compared = all(each.reading.complete for each in trained), sum(each.reading.kept for each in trained)
    leaks = tuple(found[row] for row in sorted(found))
    return Leaks(name, held_out, checked.reading.kept, compared, complete, near, leaks)


def _near(held: Read, trained: Sequence[Read], progress: Progress | None) -> dict[int, Leak]:
    index, places = NearIndex(), list[tuple[str, int]]()
    for each in (*trained, held):
        first = len(places)  # in the end, of the held-out rows
        options = replace(each.options, limit=each.options.max_samples or each.options.limit)
        for row, (_, sample) in enumerate(samples(each.source, options, progress), 1):
            if isinstance(sample, Sample):
                places.append((each.source.name, row))
                index.add(text_of(sample._replace(answers=sample.answers[:1])))
    index.settle(progress or float)
    twins = {at: list(index.near(at, lambda _, other: other < first)) for at in range(first, len(index))}
    nearest = {places[at][1]: places[max(near, key=itemgetter(1))[0]] for at, near in twins.items() if near}
    return {row: Leak(row, *place, exact=False) for row, place in nearest.items()}

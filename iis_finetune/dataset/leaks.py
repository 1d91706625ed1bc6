"""Held-out rows that a training sees: equal once normalised, or nearly so, to rows that it learns from."""

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from ..errors import Place, Problem
from .convert import Sample
from .near import NearIndex, normalised, said_by
from .rows import Progress, Reading, samples
from .sources import Options, Source

NAMED = 20  # rows that a sentence names


class Read(NamedTuple):
    """A data set, how it was read, and what its reading found."""

    source: Source
    options: Options
    reading: Reading

    def keyed(self) -> Iterator[tuple[int, int]]:
        """The number and the key of each row that is used; numbers count from 1 through all its files."""
        return ((row, key) for row, key in enumerate(memoryview(self.reading.keys).cast("Q"), 1) if key)


class Leak(Struct, frozen=True):
    """A held-out row and the training row that it repeats; where val_size chooses, both are training rows."""

    row: int
    trained: str
    trained_row: int
    exact: bool = True


class Leaks(Struct, frozen=True):
    """What leaks of the `rows` that are held out; `complete`: all were read, `near`: nearly equal rows count as well.

    `likely`: how many leak on average, where val_size chooses among the training rows.
    """

    data: str
    rows: int
    compared: int
    complete: bool
    near: bool
    likely: float | None
    found: tuple[Leak, ...]

    @property
    def sentence(self) -> str:
        """How many rows leak, and which ones."""
        rows = f"row {', '.join(str(leak.row) for leak in self.found[:NAMED])}{', ...' * (len(self.found) > NAMED)}"
        rows += "" if self.complete else f"; {self.compared:,} training rows were compared"
        if self.likely is not None:
            count = f"about {self.likely:.0f} of the {self.rows:,} rows that val_size holds out"
            return f"{count} are trained on as well: rows stand in the data more than once ({rows})"
        near = sum(not leak.exact for leak in self.found)
        kinds = f", {near:,} of them with small changes" if near else ""
        count = f"{len(self.found):,} of the {self.rows:,} held-out rows of '{self.data}'"
        return f"{count} are in the training data{kinds} ({rows})"


def leak_problem(leaks: Leaks, place: Place) -> Problem | None:
    """The warning about rows that leak, if as much as half a row does."""
    if not leaks.found or (leaks.likely is not None and leaks.likely < 0.5):
        return None
    fix = f"hold out rows that have no twin: iis-finetune data split {leaks.found[0].trained} --test 0.1"
    what = f"{leaks.sentence}: these figures would be too good"
    return Problem(what, fix, place, "warning", "leak", details={"leak": to_builtins(leaks)})


def leaks_of(held: Read, trained: Sequence[Read], near: bool = False, progress: Progress | None = None) -> Leaks:
    """The held-out rows that are training rows; to find the nearly equal ones, the files are read once more."""
    wanted, first = {key for _, key in held.keyed()}, dict[int, tuple[str, int]]()
    for each in trained:
        for row, key in each.keyed():
            if key in wanted:
                first.setdefault(key, (each.source.name, row))
    found = _near(held, trained, progress) if near else {}
    found |= {row: Leak(row, *first[key]) for row, key in held.keyed() if key in first}
    complete, leaks = all(each.reading.complete for each in (held, *trained)), [found[row] for row in sorted(found)]
    rows, compared = held.reading.kept, sum(each.reading.kept for each in trained)
    return Leaks(held.source.name, rows, compared, complete, near, None, tuple(leaks))


def _near(held: Read, trained: Sequence[Read], progress: Progress | None) -> dict[int, Leak]:
    index, places = NearIndex(), list[tuple[str, int]]()
    for each in (*trained, held):
        first = len(places)  # in the end, of the held-out rows
        options = replace(each.options, limit=each.options.max_samples or each.options.limit)
        for row, (_, sample) in enumerate(samples(each.source, options, progress), 1):
            if isinstance(sample, Sample):
                places.append((each.source.name, row))
                index.add(normalised(said_by(sample)))
    index.settle(progress or float)
    twins = {at: list(index.near(at, lambda _, other: other < first)) for at in range(first, len(index))}
    nearest = {places[at][1]: places[max(near, key=itemgetter(1))[0]] for at, near in twins.items() if near}
    return {row: Leak(row, *place, exact=False) for row, place in nearest.items()}


def leaks_by_chance(trained: Sequence[Read], val_size: float) -> Leaks:
    """What leaks of a share (or a number) of the training rows that is held out by chance."""
    first, found = dict[int, tuple[str, int]](), list[Leak]()
    for each in trained:
        for row, key in each.keyed():
            place = first.setdefault(key, (each.source.name, row))
            found += [] if place == (each.source.name, row) else [Leak(row, *place)]
    rows, complete = sum(each.reading.kept for each in trained), all(each.reading.complete for each in trained)
    share = val_size if val_size < 1 else min(1.0, val_size / max(rows, 1))
    twins = len(found) + len({(leak.trained, leak.trained_row) for leak in found})
    likely = twins * share * (1 - share)  # a row leaks where it is held out and its twin is not
    return Leaks("val_size", round(rows * share), rows, complete, False, likely, tuple(found))

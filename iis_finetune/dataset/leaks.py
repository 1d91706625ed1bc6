"""Held-out rows that a training sees: equal once normalised, or nearly so, to rows that it learns from."""

from collections import Counter
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from ..arguments import Settings
from ..errors import Place, Problem
from .convert import Sample
from .near import TEMPLATE, NearIndex, text_of
from .registry import Registry, check_registered
from .rows import Progress, Reading, check_rows, samples
from .sources import LIMIT, Options, Source, options_of
from .split import splits

Twin = tuple[str, int, str | None]  # a training row: its data set, its number, the base recipe that trained on it
NAMED = 20  # rows that a sentence names
HELD_OUT = "held-out rows of '{}' are training rows"
BY_CHANCE = "rows of '{}' repeat others, and of these val_size holds out rows that are trained on"


class Read(NamedTuple):
    """A data set, how it was read, and what its reading found."""

    source: Source
    options: Options
    reading: Reading
    recipe: str | None = None  # the base recipe that was trained on it

    def keyed(self) -> Iterator[tuple[int, int]]:
        """The number and the key of each row that is used; numbers count from 1 through all its files."""
        return ((row, key) for row, key in enumerate(memoryview(self.reading.keys).cast("Q"), 1) if key)


class Leak(Struct, frozen=True):
    """A row and the training row that it repeats, which may be one of a base recipe."""

    row: int
    trained: str
    trained_row: int
    recipe: str | None = None
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
    template: int = 0  # rows near which others may be that were not sought

    @property
    def sentence(self) -> str:
        """How many rows leak, and which ones."""
        which = HELD_OUT.format(self.data) if self.held_out else BY_CHANCE.format(self.data)
        near, more = sum(not leak.exact for leak in self.found), ", ..." * (len(self.found) > NAMED)
        for recipe, count in Counter(leak.recipe for leak in self.found if leak.recipe).items():
            which += f", {count:,} of them of the base recipe '{recipe}'"
        which += f", {near:,} of them with small changes" * bool(near)
        more += f"; {self.compared:,} training rows were compared" * (not self.complete)
        named = ", ".join(str(leak.row) for leak in self.found[:NAMED])
        return f"{len(self.found):,} of the {self.rows:,} {which} (row {named}{more})"

    def problems(self, place: Place, trained: Sequence[Read], data_dir: Path) -> Iterator[Problem]:
        """The warnings about them, and about what may have hidden some; one may be helped by splitting its own data."""
        if self.found:
            first, fix = self.found[0], "hold out rows that have no twin"
            its = [each.source for each in trained if (each.source.name, None) == (first.trained, first.recipe)]
            if any(splits(each, data_dir) for each in its):
                fix += f": iis-finetune data split {first.trained} --test 0.1"
            what, details = f"{self.sentence}: these figures would be too good", {"leak": to_builtins(self)}
            yield Problem(what, fix, place, "warning", "leak", details=details)
        if self.template:
            fix = "if they are copies of one text, hold out others; if they only begin alike, nothing need be done"
            yield Problem(TEMPLATE.format(self.template), fix, place, "warning")


def learnt(
    of: str | None, settings: Settings, where: Registry | str, most: int | None = LIMIT
) -> tuple[list[Read], list[Problem]]:
    """What a training, of a base recipe or the own, learns from, as far as it is here, and why the rest is not."""
    options = replace(options_of(settings, str(settings["stage"]), most), keyed=True)
    sources, problems = check_registered(names := settings.names("dataset"), where, options.stage, Place())
    reads = [Read(each, options, check_rows(each, options), of) for each in sources]
    return reads, problems if len(sources) < len(set(names)) else []


def leaks_of(checked: Read, trained: Sequence[Read], near: bool = False, progress: Progress | None = None) -> Leaks:
    """What a data set shares with the training's, of which it may be one; for `near` the files are read once more."""
    held_out, name = not any(checked is each for each in trained), checked.source.name
    wanted, first = {key for _, key in checked.keyed()}, dict[int, Twin]()
    for each in trained:
        for row, key in each.keyed():
            if key in wanted:
                first.setdefault(key, (each.source.name, row, each.recipe))
    found, template = _near(checked, trained, progress) if near and held_out else ({}, 0)
    twins = ((row, first[key]) for row, key in checked.keyed() if key in first)
    found |= {row: Leak(row, *twin) for row, twin in twins if held_out or twin != (name, row, None)}
    complete, compared = all(each.reading.complete for each in trained), sum(each.reading.kept for each in trained)
    leaks = tuple(found[row] for row in sorted(found))
    return Leaks(name, held_out, checked.reading.kept, compared, complete, near and held_out, leaks, template)


def _near(held: Read, trained: Sequence[Read], progress: Progress | None) -> tuple[dict[int, Leak], int]:
    index, places = NearIndex(), list[Twin]()
    for each in (*trained, held):
        first = len(places)  # in the end, of the held-out rows
        options = replace(each.options, limit=each.options.max_samples or each.options.limit)
        for row, (_, sample) in enumerate(samples(each.source, options, progress), 1):
            if isinstance(sample, Sample):
                places.append((each.source.name, row, each.recipe))
                index.add(text_of(sample))
    index.settle(progress or float)
    twins = {at: list(index.near(at, lambda _, other: other < first)) for at in range(first, len(index))}
    nearest = {places[at][1]: places[max(near, key=itemgetter(1))[0]] for at, near in twins.items() if near}
    return {row: Leak(row, *twin, exact=False) for row, twin in nearest.items()}, index.template

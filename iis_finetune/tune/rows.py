"""The rows that trials train on: real ones, the longest first, the others of every length there is."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from ..dataset import LIMIT, REGISTRY_FILE, Source
from ..dataset.readers import read_rows
from ..runs import write_json

TIMED, SHORT, HELD_OUT = "timed", "short", "held_out"  # the kinds of rows, by what trials do with them


def lay_out(sources: Sequence[Source], counts: Mapping[str, int], longest: int, folder: Path) -> None:
    """Write data sets `timed_0`, ... of so many rows of each kind below a folder, one a source, registered.

    Of the timed rows the `longest` of all come first: what gets past them gets past all. The short ones, and those that
    are held out from them, are the shortest: many steps of them cost little.
    """
    folder.mkdir(parents=True)
    registry = {}
    for number, source in enumerate(sources):
        share = {kind: -(-count // len(sources)) for kind, count in counts.items()}
        for kind, rows in _of_source(source, share, -(-longest // len(sources))).items():
            name, layout = f"{kind}_{number}", source.layout
            write_json(folder / f"{name}.json", rows)
            entry = {"formatting": layout.formatting, "ranking": layout.ranking, "columns": dict(layout.columns)}
            registry[name] = {"file_name": f"{name}.json", **entry, "tags": dict(layout.tags)}
    write_json(folder / REGISTRY_FILE, registry)


def _of_source(source: Source, counts: Mapping[str, int], longest: int) -> dict[str, list[Any]]:
    """Rows of each kind, repeated where there are too few; characters in UTF-8 stand for lengths in tokens."""
    sizes = {place: len(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")) for place, row in _rows(source)}
    order = sorted(sizes, key=lambda place: (sizes[place], place))
    rest, draw = counts[TIMED] - longest, random.Random(42)  # noqa: S311 - the same for every trial
    spread = [order[(2 * at + 1) * len(order) // (2 * rest)] for at in range(rest)] if order else []
    shortest = order[: counts[HELD_OUT] + counts[SHORT]]
    draw.shuffle(spread)
    draw.shuffle(shortest)
    picked = {TIMED: [*order[-longest:][::-1], *spread], HELD_OUT: shortest[: counts[HELD_OUT]]}
    picked[SHORT] = shortest[counts[HELD_OUT] :] or shortest
    wanted = {place for places in picked.values() for place in places}
    rows = {place: row for place, row in _rows(source) if place in wanted}
    return {kind: [rows[place] for place in islice(cycle(places), counts[kind])] for kind, places in picked.items()}


def _rows(source: Source) -> Iterator[tuple[tuple[Path, int], Any]]:
    """Place and value of each usable row, of as many of a file as are looked at."""
    for path in source.files:
        with path.open("rb") as file:
            rows = islice(read_rows(file, source.file_type), LIMIT)
            yield from (((path, row.number), row.value) for row in rows if isinstance(row.value, dict))

"""A data set's rows read once: what is wrong with them, what cutoff_len cuts, and what is known of them from before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import Place, Problem
from .rows import check_rows
from .sources import Options, Source
from .streams import Progress
from .truncation import truncation_of


@dataclass(frozen=True)
class Reading:
    """`kept` counts the usable rows; None when the limit ended the reading."""

    kept: int | None
    problems: tuple[Problem, ...]


class Readings:
    """What reading data sets has found; a file that has the same path, size and time of change is not read again."""

    def __init__(self, known: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.known = {key: _reading(row) for key, row in (known or {}).items()}

    def read(self, source: Source, tokenizer_json: Path, options: Options, progress: Progress | None = None) -> Reading:
        """The reading of a source with these options; its rows are gone through once, or not at all."""
        key = _key(source, tokenizer_json, options)
        if key not in self.known:
            counted = truncation_of(source, tokenizer_json, options)
            report = check_rows(source, options, progress, counted.take if counted else None)
            problems = (*report.problems, *(counted.report().problems if counted else ()))
            self.known[key] = Reading(report.kept if report.complete else None, problems)
        return self.known[key]

    def as_json(self) -> dict[str, Any]:
        """What another process can begin with."""
        return {key: asdict(reading) for key, reading in self.known.items()}


def _reading(row: Mapping[str, Any]) -> Reading:
    problems = (Problem(**{**each, "where": Place(**each["where"])}) for each in row["problems"])
    return Reading(row["kept"], tuple(problems))


def _key(source: Source, tokenizer_json: Path, options: Options) -> str:
    """All that a reading depends on, as one short text."""
    files = [
        _stamp(file) for file in (*source.files, tokenizer_json, tokenizer_json.with_name("tokenizer_config.json"))
    ]
    return hashlib.sha256(repr((source, options, files)).encode()).hexdigest()


def _stamp(file: Path) -> tuple[str, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return str(file.resolve()), status.st_size, status.st_mtime_ns

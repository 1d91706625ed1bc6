"""What was measured of trainings: rows in `measured/`, one file a machine, and those that owners of others shared."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct, field, to_builtins
from msgspec.structs import fields, replace

from ..decision import Source
from ..errors import Problem, ProblemsFound
from ..tables import TABLES
from .documents import read_json, typed, write_json

REPORTED = TABLES / "measured"  # a folder as `measured/` is, a file for each who shared
Value = str | int | float | bool | None


class Key(Struct, frozen=True, kw_only=True):
    """All that must be as it was for a measurement to count; `device` is an architecture, or a processor's name."""

    device: str
    devices: int
    torch: str | None
    driver: str | None
    llamafactory: str
    shape: str
    quantization_bit: int | None
    stage: str
    finetuning_type: str
    lora_rank: int | None
    lora_target: str | None
    cutoff_len: int
    packing: bool | None

    def differences(self, now: Key) -> tuple[str, ...]:
        """What is not as it was, in words; a torch or driver that is not known now counts as the same."""
        pairs = ((each.name, getattr(self, each.name), getattr(now, each.name)) for each in fields(Key))
        known = ((name, then, value) for name, then, value in pairs if value or name not in ("torch", "driver"))
        return tuple(f"{name} was {then} and is {value} now" for name, then, value in known if then != value)


class Measured(Struct, frozen=True, kw_only=True):
    """The start and the best of a search on one machine; a step is one of the optimizer, at `global_batch_size` rows.

    `settings` are what the best changed: LLaMA-Factory's arguments, `kit.` keys, `env.NAME`; `start_settings` the same
    names as they were. `peak_gib` is all that a device held with the best settings: what torch reserved and the context
    beside it, or a process's memory on a CPU. `rows` is how many the named data sets have to train on.
    """

    key: Key
    settings: dict[str, Value]
    start_settings: dict[str, Value]
    global_batch_size: Annotated[int, Meta(gt=0)]
    seconds_per_step: float
    start_seconds_per_step: float
    start_up_seconds: float
    tokens_per_second: float
    peak_gib: float | None
    measured_on: date
    minutes: float
    trials: list[dict[str, Any]] = field(default_factory=list)
    dataset: list[str] = field(default_factory=list)
    rows: int | None = None
    reported_by: str | None = None

    @property
    def source(self) -> Source:
        return "reported" if self.reported_by else "measured here"

    @property
    def told(self) -> str:
        """`measured here on 21 November 2026`, `reported by NAME on 21 November 2026`."""
        by = f" by {self.reported_by}" if self.reported_by else ""
        return f"{self.source}{by} on {self.measured_on:%-d %B %Y}"


class _File(Struct, frozen=True):
    rows: list[Measured]


def load(*folders: Path) -> tuple[tuple[Measured, ...], list[Problem]]:
    """The rows of all files of the folders, and a warning for each file that is damaged."""
    found = [_read(path) for folder in folders for path in sorted(folder.glob("*.json"))]
    return tuple(row for rows, _ in found for row in rows), [each for _, problems in found for each in problems]


def _read(path: Path) -> tuple[list[Measured], list[Problem]]:
    try:
        return typed(path, _File, read_json(path) or {}).rows, []
    except ProblemsFound as damaged:
        fix = f"mv {path} {path}.damaged, then `iis-finetune tune RECIPE` measures again"
        return [], [dataclasses.replace(each, severity="warning", fix=fix) for each in damaged.problems]


def save(folder: Path, row: Measured) -> Path:
    """Add a row to its machine's file, in place of one with the same key; a damaged file is put aside."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^a-z0-9_.]+', '-', row.key.device.lower()).strip('-')}.json"
    others, damaged = _read(path) if path.exists() else ([], [])
    if damaged:
        path.replace(path.with_name(f"{path.name}.damaged"))
    write_json(path, to_builtins(_File([*(each for each in others if each.key != row.key), row])))
    return path


def matching(rows: Iterable[Measured], key: Key) -> tuple[Measured, tuple[str, ...]] | None:
    """The newest row that fits, measured here before reported; else the nearest one of this model from here, with what
    keeps it from fitting."""
    newest = sorted(rows, key=lambda row: row.measured_on, reverse=True)
    found = [(row, row.key.differences(key)) for row in newest if row.key.shape == key.shape]
    known = [(row, wrong) for row, wrong in found if not wrong or row.source != "reported"]
    return min(known, key=lambda each: (len(each[1]), each[0].source == "reported"), default=None)


def share(row: Measured, by: str) -> dict[str, Any]:
    """A file for `tables/measured/`: without the data's name and size, and the trials, which hold messages."""
    shared: dict[str, Any] = to_builtins(_File([replace(row, trials=[], dataset=[], rows=None, reported_by=by)]))
    return shared

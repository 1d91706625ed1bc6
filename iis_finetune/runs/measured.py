"""What was measured of trainings: rows in `measured/`, one file a machine, and those that owners of others shared."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct, field, json, to_builtins
from msgspec.structs import fields, replace

from ..errors import Place, Problem
from ..tables import TABLES
from .documents import write_json

REPORTED = TABLES / "measured"
SAME_WORK = ("shape", "stage", "finetuning_type", "quantization_bit")  # what makes a row of another key worth a word
SHARED_OF_A_TRIAL = ("settings", "seconds_per_step", "tokens_per_second", "peak_gib")
Value = str | int | float | bool | None
Positive = Annotated[float, Meta(gt=0)]


class Key(Struct, frozen=True, kw_only=True):
    """All that must be as it was for a measurement to count; where a machine is only named, torch and driver are None.

    `device` is an architecture (gfx906, sm_90), or a processor's name and threads; `devices` the processes of the plan
    that is not tuned; `shape` what `shape_of` says of the model.
    """

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
    packing: bool

    def differences(self, now: Key) -> tuple[str, ...]:
        """What is not as it was, each in words; what is not known of now counts as the same."""
        pairs = ((each.name, getattr(self, each.name), getattr(now, each.name)) for each in fields(Key))
        unknown = ("torch", "driver")
        return tuple(
            f"{name} was {then} and is {value} now"
            for name, then, value in pairs
            if then != value and not (value is None and name in unknown)
        )


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
    seconds_per_step: Positive
    start_seconds_per_step: Positive
    start_up_seconds: float
    tokens_per_second: Positive
    peak_gib: Positive | None
    measured_on: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\d$")]
    minutes: float
    trials: list[dict[str, Any]] = field(default_factory=list)
    dataset: list[str] = field(default_factory=list)
    rows: int | None = None
    reported_by: str | None = None


class Match(Struct, frozen=True):
    """A row that fits, or the nearest of the same work and what keeps it from fitting."""

    row: Measured
    differences: tuple[str, ...] = ()


class _File(Struct, frozen=True):
    rows: list[Measured]


def load(folder: Path) -> tuple[tuple[Measured, ...], list[Problem]]:
    """The rows of all files of a folder, and a warning for each file that cannot be read."""
    rows: list[Measured] = []
    problems = []
    for path in sorted(folder.glob("*.json")):
        try:
            rows += json.decode(path.read_bytes(), type=_File).rows
        except (OSError, ValueError, RecursionError) as error:
            what = f"what was measured cannot be read: {error}"
            fix = f"mv {path} {path}.damaged, then `iis-finetune tune RECIPE` measures again"
            problems.append(Problem(what, fix, Place(str(path)), "warning"))
    return tuple(rows), problems


def reported() -> tuple[Measured, ...]:
    """The rows that owners of such machines have shared, one file each."""
    return tuple(json.decode(path.read_bytes(), type=Measured) for path in sorted(REPORTED.glob("*.json")))


def save(folder: Path, row: Measured) -> Path:
    """Add a row to its machine's file, in place of one with the same key; a damaged file is put aside."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^a-z0-9_.]+', '-', row.key.device.lower()).strip('-')}.json"
    try:
        others = [each for each in json.decode(path.read_bytes(), type=_File).rows if each.key != row.key]
    except FileNotFoundError:
        others = []
    except (ValueError, RecursionError):
        path.replace(path.with_name(f"{path.name}.damaged"))
        others = []
    write_json(path, to_builtins(_File([*others, row])))
    return path


def matching(rows: Iterable[Measured], key: Key) -> Match | None:
    """The row that fits, measured here before reported, the newest first; else the nearest that was measured here."""
    found = [Match(row, row.key.differences(key)) for row in rows]
    found = [each for each in found if not each.differences or (_same_work(each.row.key, key) and not _foreign(each))]
    newest = sorted(found, key=lambda each: each.row.measured_on, reverse=True)
    return min(newest, key=lambda each: (len(each.differences), _foreign(each)), default=None)


def _foreign(match: Match) -> bool:
    return match.row.reported_by is not None


def _same_work(one: Key, other: Key) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in SAME_WORK)


def share(row: Measured, by: str) -> dict[str, Any]:
    """The row as `tables/measured/` takes it: no path, no data, and of the trials only their numbers."""
    trials = [{name: trial[name] for name in SHARED_OF_A_TRIAL if name in trial} for trial in row.trials]
    plain = replace(row, trials=trials, dataset=[], rows=None, reported_by=by)
    shown: dict[str, Any] = _without_paths(to_builtins(plain))
    return shown


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_paths(each) for name, each in value.items() if not _is_path(each)}
    return [_without_paths(each) for each in value] if isinstance(value, list) else value


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("/", "~", "./", "../"))

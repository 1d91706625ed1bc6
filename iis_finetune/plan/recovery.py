"""A run that goes on: its next attempt made safer, and what may differ from the plan it began with; pure."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from ..arguments import SAME, trained_with
from ..errors import COMMAND_LINE, Place, Problem
from ..recipe import Recipe
from ..tables import read


def micro_batch_of(arguments: Mapping[str, Any]) -> int:
    """Rows that one process computes at a time."""
    return int(trained_with(arguments)["per_device_train_batch_size"])


def safer_overrides(recipe: Recipe, arguments: Mapping[str, Any], change: Mapping[str, Any]) -> tuple[str, ...]:
    """`key=value` texts that make a change: `precision`, `attention` or `micro_batch` (same global batch)."""
    found = []
    for name in [name for name in ("precision", "attention") if name in change]:
        found += [f"{key}=null" for key in SAME[name] if recipe.value(key) is not None]
        found.append(f"kit.{name}={change[name]}")
    if "micro_batch" in change:
        rows = micro_batch_of(arguments) * trained_with(arguments)["gradient_accumulation_steps"]
        found.append(f"per_device_train_batch_size={change['micro_batch']}")
        if recipe.kit.global_batch_size is None or recipe.value("gradient_accumulation_steps") is not None:
            found.append(f"gradient_accumulation_steps={rows // change['micro_batch']}")
    return tuple(found)


class Footing(Struct, frozen=True):
    """What a run stands on: LLaMA-Factory's arguments with real paths, hashes of the data files, processes."""

    arguments: Mapping[str, Any]
    data: Mapping[str, str]
    processes: int


def differences(old: Footing, new: Footing) -> list[tuple[str, Any, Any]]:
    """Name, value then, value now of all that is not as it was."""
    found: list[tuple[str, Any, Any]] = []
    if old.processes != new.processes:
        found.append(("processes", old.processes, new.processes))
    for then, now, prefix in ((old.data, new.data, "data file "), (old.arguments, new.arguments, "")):
        names = [*then, *(name for name in now if name not in then)]
        found += [(prefix + name, then.get(name), now.get(name)) for name in names if then.get(name) != now.get(name)]
    return found


def resume_problems(old: Footing, new: Footing, accepted: bool) -> list[Problem]:
    """Why a run must not go on from its checkpoint; with `accepted` only what cannot work or would be ignored."""
    rows = {name: row for row in read("resume.toml")["argument"] for name in row["names"]}
    problems = []
    for name, then, now in differences(old, new):
        row = rows.get(name, {"verdict": "ask"})
        values = "changed" if name.startswith("data file") else f"was {_shown(then)} and is {_shown(now)} now"
        place = Place(COMMAND_LINE, key=name)
        if row["verdict"] == "refused":
            problems.append(Problem(f"{name} {values}: {row['reason']}", row["fix"], place))
        elif row["verdict"] == "ask" and not accepted:
            fix = "undo the change, or resume with --accept-changes"
            problems.append(Problem(f"{name} {values} since the run began", fix, place))
    return problems


def _shown(value: Any) -> str:
    return "not set" if value is None else f"{value}"

"""What may be tried on a machine (`tables/tune.toml`), and how a trial's settings are said as overrides."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..arguments import SAME
from ..errors import Misused, did_you_mean
from ..machine import Machine, Row, applies, package_version
from ..recipe import Recipe
from ..tables import read

Settings = Mapping[str, Any]


def levers_for(machine: Machine, stage: str, named: Sequence[str] = ()) -> list[Row]:
    """The rows that serve, in the table's order; what may change the training only when it is named."""
    here = {row["name"]: row for row in read("tune.toml")["lever"] if _serves(row, machine, stage)}
    named = [name.strip() for name in named]
    for name in named:
        if name not in here:
            fix = did_you_mean(name, here, f"levers here: {', '.join(here)}")
            raise Misused(f"no lever '{name}' on {machine.device} here", fix, "--levers")
    return [row for row in here.values() if (row["name"] in named if named else row["changes"] != "training")]


def _serves(row: Row, machine: Machine, stage: str) -> bool:
    return (
        applies(row, machine, max(len(machine.devices), 1))
        and stage in row.get("stages", [stage])
        and ("flags" not in row or bool(set(row["flags"]) & set(machine.cpu_flags)))
        and all(package_version(each) for each in row.get("packages", ()))
    )


def typed(settings: Settings, recipe: Recipe) -> tuple[str, ...]:
    """The settings as `key=value`, with what they stand in for unset."""
    env = {name.removeprefix("env."): value for name, value in settings.items() if name.startswith("env.")}
    given = {name: value for name, value in settings.items() if not name.startswith("env.")}
    given |= {"kit.env": {**recipe.kit.env, **env}} if env else {}
    unset = {key: None for name in given for key in SAME.get(name.removeprefix("kit."), ()) if recipe.states(key)}
    return tuple(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in {**unset, **given}.items())

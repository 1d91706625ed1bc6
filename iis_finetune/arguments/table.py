"""LLaMA-Factory's argument table: from the installed packages' source, else from the copy shipped here."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

TABLES = Path(__file__).parent.parent / "tables"
FROZEN = TABLES / "arguments-0.9.5.json"
PPO_FROZEN = TABLES / "arguments-0.9.3.json"  # only what differs; the helps are 0.9.5's
PACKAGES = ("llamafactory", "transformers")

Kind = Literal["bool", "int", "float", "str", "list", "dict"]
Group = Literal["model", "data", "training", "finetuning", "generating"]


@dataclass(frozen=True)
class Limit:
    """A bound outside of which a value fails for certain or does something else; `why` says what happens."""

    why: str
    severity: Literal["error", "warning"] = "error"
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    other_than: float | None = None
    whole_from: float | None = None  # from here on only whole numbers
    also: tuple[float, ...] = ()  # values that are fine outside of the bounds
    # (argument, values): no bound while the argument has one of the values, or is above 0 when none are named.
    unless: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Argument:
    """One argument of LLaMA-Factory: what it takes, what it means, and which of its classes it belongs to."""

    name: str
    kinds: tuple[Kind, ...]
    choices: tuple[str | int, ...] | None
    nullable: bool
    default: Any
    help: str
    group: Group
    owner: str
    separator: str | None = None  # a text is several values with this between them; a list is accepted too
    limits: tuple[Limit, ...] = ()
    former: Mapping[str, str | Mapping[str, Any]] | None = None  # a wrong value -> what to write
    infinite: bool = False


Table = Mapping[str, Argument]


def table(stage: Any = None, ppo: Path | None = None) -> Table:
    """The installed packages' table, else the frozen one; about 5 ms where the frozen one fits what is installed.

    Stage ppo runs in the environment `ppo`, with packages of its own.
    """
    if stage == "ppo":
        return _of(_folders_in(ppo) if ppo else None, PPO_FROZEN)
    return _of(_folders(), FROZEN)


def _of(folders: Mapping[str, Path] | None, frozen: Path) -> Table:
    if folders is None or _is_frozen_version(folders, frozen):
        return frozen_table(frozen)
    return _read(folders) or frozen_table(frozen)


@cache
def frozen_table(file: Path = FROZEN) -> Table:
    """A table shipped with the kit: LLaMA-Factory 0.9.5 with transformers 5.6.0, or what stage ppo runs in."""
    rows = _frozen(FROZEN)["arguments"]
    if file != FROZEN:
        other = _frozen(file)
        rows = {name: row for name, row in rows.items() if name not in other["missing"]} | other["arguments"]
    return _build(rows)


@cache
def _frozen(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return content


def installed_table() -> Table | None:
    """The table read by `ast` from what is installed (about 50 ms); None where it is missing or laid out otherwise."""
    folders = _folders()
    return _read(folders) if folders else None


def _read(folders: Mapping[str, Path]) -> Table | None:
    from .read_classes import read_arguments

    try:
        return _build(read_arguments(folders["llamafactory"], folders["transformers"]))
    except (OSError, SyntaxError, LookupError, ValueError, TypeError):
        return None


def _folders() -> dict[str, Path] | None:
    specs = {name: importlib.util.find_spec(name) for name in PACKAGES}
    found = {name: spec.submodule_search_locations for name, spec in specs.items() if spec}
    folders = {name: Path(next(iter(places))) for name, places in found.items() if places}
    return folders if len(folders) == len(PACKAGES) else None


def _folders_in(environment: Path) -> dict[str, Path] | None:
    """The packages' folders in another virtual environment."""
    for site in environment.glob("lib/python*/site-packages"):
        folders = {name: site / name for name in PACKAGES}
        return folders if all(folder.is_dir() for folder in folders.values()) else None
    return None


def _is_frozen_version(folders: Mapping[str, Path], frozen: Path = FROZEN) -> bool:
    versions = _frozen(frozen)["versions"]
    # The name of the metadata folder says the version; importlib.metadata would cost 20 ms.
    return all((folders[name].parent / f"{name}-{versions[name]}.dist-info").is_dir() for name in PACKAGES)


def _build(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Argument]:
    known = json.loads((TABLES / "values.json").read_text("utf-8"))["arguments"]
    return {name: _argument(name, {**row, **known.get(name, {})}) for name, row in rows.items()}


def _argument(name: str, row: Mapping[str, Any]) -> Argument:
    limits = tuple(_limit(limit) for limit in row.get("limits", ()))
    choices = tuple(row["choices"]) if row["choices"] else None
    return Argument(name, **{**row, "kinds": tuple(row["kinds"]), "choices": choices, "limits": limits})


def _limit(row: Mapping[str, Any]) -> Limit:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return Limit(**fields)

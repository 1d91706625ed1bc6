"""Which LLaMA-Factory each stage runs in, and that version's table of arguments."""

import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, convert

from ..errors import Problem
from ..tables import read
from .installed import Installation, Row, ask

# The one place that says which version is current; what is of a version lies in tables/llamafactory/<version>/.
LLAMAFACTORY = "0.9.5"
STAGES = {"ppo": "0.9.3"}  # the PPO trainer of 0.9.5 needs a trl that its other parts refuse

WHOLE = ("full", "freeze")  # methods that train the model's own weights; the others train weights beside them

Kind = Literal["bool", "int", "float", "str", "list", "dict"]
Group = Literal["model", "data", "training", "finetuning", "generating"]
Part = Literal["arguments", "models", "templates"]


class Limit(Struct, frozen=True):
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


class Argument(Struct, frozen=True):
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
    elsewhere: tuple[str, ...] = ()  # values that only other tools have; what to do instead depends on the model
    infinite: bool = False
    # (argument, values) as in Limit.unless: nothing reads this one without them.
    read_with: tuple[Any, ...] = ()


Table = Mapping[str, Argument]


def version_of(stage: Any = None) -> str:
    """The version of LLaMA-Factory that a stage runs in."""
    return STAGES.get(str(stage), LLAMAFACTORY)


def frozen(part: Part, stage: Any = None) -> Mapping[str, Any]:
    """A table of the stage's version as scripts/freeze_arguments.py wrote it: `versions`, and the rows below `part`."""
    content: dict[str, Any] = read(f"llamafactory/{version_of(stage)}/{part}.json")
    return content


def accepted_versions() -> Mapping[str, tuple[str, str]]:
    """Package -> the lowest and the highest version that LLaMA-Factory starts with, by its own check."""
    return {name: (lowest, highest) for name, (lowest, highest) in frozen("arguments")["ranges"].items()}


def table(stage: Any = None, ppo: Path | None = None) -> Table:
    """The arguments of the LLaMA-Factory that is installed; about 5 ms where it is the version frozen here.

    Stage ppo runs in the environment `ppo`. Another version is asked in a child, once; where it is not installed, or
    cannot be asked, the frozen table stands in.
    """
    other = _other_version(stage, ppo)
    rows = ask(other) if other else None
    return _build(rows) if rows else frozen_table(stage)


def table_problems(stage: Any = None, ppo: Path | None = None) -> list[Problem]:
    """A warning where another LLaMA-Factory is installed and could not be asked."""
    other = _other_version(stage, ppo)
    if other is None or ask(other):
        return []
    version = version_of(stage)
    what = f"LLaMA-Factory in {other.llamafactory} is not {version} and cannot be imported: checked against {version}"
    return [Problem(what, f"make setup, or pip install llamafactory=={version}", severity="warning", kind="machine")]


def frozen_table(stage: Any = None) -> Table:
    """The arguments of the stage's version as shipped with the kit."""
    return _frozen_table(version_of(stage))


@cache
def _frozen_table(version: str) -> Table:
    return _build(read(f"llamafactory/{version}/arguments.json")["arguments"])


def _other_version(stage: Any, ppo: Path | None) -> Installation | None:
    """What the stage would run in, where that is another version than the frozen one."""
    found = _installed() if version_of(stage) == LLAMAFACTORY else _installed_in(ppo)
    if found is None:
        return None
    versions = frozen("arguments", stage)["versions"]
    # The name of the metadata folder says the version; importlib.metadata would cost 20 ms.
    same = [(folder.parent / f"{folder.name}-{versions[folder.name]}.dist-info").is_dir() for folder in found.folders]
    return None if all(same) else found


def _installed() -> Installation | None:
    specs = [importlib.util.find_spec(name) for name in ("llamafactory", "transformers")]
    places = [spec.submodule_search_locations for spec in specs if spec and spec.submodule_search_locations]
    folders = [Path(next(iter(place))) for place in places]
    return Installation(folders[0], folders[1]) if len(folders) == len(specs) else None


def _installed_in(environment: Path | None) -> Installation | None:
    """LLaMA-Factory in another virtual environment."""
    site = next(environment.glob("lib/python*/site-packages"), None) if environment else None
    if environment is None or site is None:
        return None
    found = Installation(site / "llamafactory", site / "transformers", str(environment / "bin" / "python"))
    return found if all(folder.is_dir() for folder in found.folders) else None


def _build(rows: Mapping[str, Row]) -> dict[str, Argument]:
    values = read("values.json")
    known, owners = values["arguments"], values["read_with"]
    return {
        name: convert({"name": name, "read_with": owners.get(row["owner"], ()), **row, **known.get(name, {})}, Argument)
        for name, row in rows.items()
    }

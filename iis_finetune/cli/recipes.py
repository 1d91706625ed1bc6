"""The verbs recipes and schema."""

import os
import shlex
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import arguments, preflight
from .. import recipe as recipe_files
from ..errors import Misused, ProblemsFound
from . import show
from .words import AsJson, question, typed, workspace

Copy = Annotated[tuple[str, str] | None, typer.Option("--copy", metavar="NAME FILE", help="Start your own from NAME.")]


def recipes(copy: Copy = None, as_json: AsJson = False) -> None:
    """List the recipes, with model, method and memory need."""
    if copy:
        _copy(*copy)
        return
    here = workspace().recipes
    own = recipe_files.own_recipes(here)
    rows = [{**_row(path), "shipped": name not in own} for name, path in recipe_files.registered(here).items()]
    show.answer({"recipes": rows}, as_json)
    columns = ("recipe", "model", "stage", "method", "memory GiB", "description")
    show.table(columns, [[_cell(row, key) for key in _KEYS] for row in rows])
    machine = next((row["machine"] for row in rows if row.get("machine")), None)
    show.line(f"\nmemory GiB: of each device of {machine}; >= where not everything is counted" if machine else "")
    if shipped := ", ".join(row["recipe"] for row in rows if row["shipped"]):
        show.line(f"shipped with the kit: {shipped if own else 'all of them'}")
        show.line("one of them as your own: iis-finetune recipes --copy NAME FILE")
    show.line(f"next: iis-finetune check {shlex.quote(rows[0]['recipe'] if own else 'quickstart')}")


_KEYS = ("recipe", "model", "stage", "method", "memory_gib", "description")


def _row(path: Path) -> dict[str, Any]:
    """What a recipe is; one that cannot be read says so in its description."""
    try:
        examined = preflight.look(question(str(path), None))
    except ProblemsFound as found:
        nothing = dict.fromkeys((*_KEYS, "not_counted", "machine"))
        return {**nothing, "recipe": path.stem, "description": f"cannot be read: {found.problems[0].what}"}
    recipe, memory = examined.recipe, examined.plan.memory
    return {
        "recipe": path.stem,
        "model": recipe.value("model_name_or_path") or recipe.kit.base,
        "stage": examined.plan.settings["stage"],
        "method": examined.plan.settings["finetuning_type"],
        "memory_gib": None if memory.per_device_gib is None else round(memory.per_device_gib, 1),
        "not_counted": memory.not_counted,
        "machine": examined.machine.title,
        "description": recipe.kit.description,
    }


def _cell(row: dict[str, Any], key: str) -> Any:
    lower_bound = key == "memory_gib" and row[key] is not None and row["not_counted"]
    return f">= {row[key]}" if lower_bound else row[key]


def _copy(name: str, file: str) -> None:
    source = recipe_files.find(name, workspace().recipes)
    target = Path(file) if Path(file).suffix in recipe_files.SUFFIXES else Path(f"{file}.yaml")
    if len(target.parts) == 1:
        target = Path(os.path.relpath(workspace().recipes)) / target
        target.parent.mkdir(exist_ok=True)
    what, fix = f"'{target}' exists already", "choose another name, or remove it"
    if not target.parent.is_dir():
        what, fix = f"there is no folder '{target.parent}'", f"mkdir -p {target.parent}"
    if target.exists() or not target.parent.is_dir():
        raise Misused(what, fix)
    shutil.copyfile(source, target)
    show.line(f"{source} -> {target}; edit it\nnext: iis-finetune check {typed(str(target.absolute()), ())}")


def schema() -> None:
    """The JSON schema of recipes, for editors."""
    show.document(arguments.schema(recipe_files.kit_schema(), arguments.table()))

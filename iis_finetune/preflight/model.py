"""What is wrong with the model a recipe names, and with what the recipe says of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import models
from ..errors import Problem
from ..models import ModelFacts
from ..recipe import Recipe

LONGEST_HUB_ID = 200  # two names of 96 letters and a slash; what is longer may be too long for a path as well


def model_problems(recipe: Recipe, model: ModelFacts, arguments: Mapping[str, Any]) -> list[Problem]:
    """Is it there and whole; do adapter, targets and template belong to it?"""
    problems = _folder(recipe, model)
    targets = (("lora_target", models.check_targets), ("additional_target", models.check_additional_target))
    for key, check in targets:
        if recipe.states(key) and arguments.get(key):
            problems += check(arguments[key], model, recipe.place(key))
    template = arguments.get("template")
    if isinstance(template, str):
        problems += models.check_template(template, model, recipe.place("template"))
    adapters = recipe.value("adapter_name_or_path")
    if isinstance(adapters, str):
        place = recipe.place("adapter_name_or_path")
        problems += [each for name in adapters.split(",") for each in models.check_adapter(Path(name), model, place)]
    return problems


def _folder(recipe: Recipe, model: ModelFacts) -> list[Problem]:
    place = recipe.place("model_name_or_path")
    stated = recipe.value("model_name_or_path")
    if recipe.kit.base and stated and stated != model.name:
        there = recipe.place("kit.base")
        what = f"'model_name_or_path' and 'kit.base' ({there}) name two different bases"
        return [Problem(what, "keep one of them; kit.base=null unsets the other", place)]
    if recipe.kit.base or (recipe.kit.from_scratch and not model.folder):
        return []  # made first when it is missing
    if not model.name:
        return [Problem("no model_name_or_path", "name a base model, or kit.base: RECIPE", place)]
    if model.folder:
        return models.check_folder(model.folder, place)
    if looks_local(model.name):
        what = f"the model folder '{model.name}' does not exist"
        return [Problem(what, "give the path of a model folder, or a hub id", place, kind="missing", code=2)]
    what = f"'{model.name}' is not on disk yet"
    return [Problem(what, "train downloads it first", place, severity="warning", kind="missing")]


def looks_local(name: str) -> bool:
    """Whether a model name can only be a path: hub ids are `owner/name`."""
    written_so = name.startswith((".", "/", "~", "models/")) or name.count("/") != 1
    return written_so or len(name) > LONGEST_HUB_ID or Path(name).exists()

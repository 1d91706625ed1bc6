"""The rows that a recipe trains on: as the model will see them, and in numbers."""

import shlex
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from .. import dataset
from .. import recipe as recipes
from ..arguments import Settings, find_template, table
from ..errors import COMMAND_LINE, INPUT, Misused, Place, Problem, ProblemsFound, did_you_mean, errors_of
from ..plan import Plan
from . import TRAINED_ON, Examined, Question, deep, examine


def seen_by_the_model(question: Question, numbers: tuple[int, int]) -> tuple[dict[str, Any], list[Problem]]:
    """The rows as the model will see them, as probe/preview.py describes them, and what is odd about their like.

    Raises ProblemsFound where LLaMA-Factory would load nothing.
    """
    if question.also:  # LLaMA-Factory's own loader is asked, which looks into the registry
        word = question.also[0].word
        raise Misused(f"{word} is not registered", f"iis-finetune data add {shlex.quote(word)}", "dataset")
    seen = _sound(examine(replace(question, limit=dataset.SAMPLE)))
    settings, elsewhere = seen.plan.settings, (None, COMMAND_LINE, str(seen.recipe.path))
    keys = ("dataset", "template", "cutoff_len")
    odd = [each for each in seen.problems if each.where.key in keys or each.where.file not in elsewhere]
    template, model = find_template(str(settings["template"])), seen.model.folder or seen.model.name
    planned = _with_what_is_shipped(seen.plan, Path(question.data_folder(settings)))
    given, words = {**planned.arguments, "model_name_or_path": str(model)}, template.tokens if template else ()
    asked = {"command": "train", "arguments": given, "rows": numbers, "words": words}
    wrong, data = deep.heard(planned, (question.workspace, question.environment), "preview", asked)
    if wrong:
        raise ProblemsFound(wrong)
    if not any(found["examples"] for found in data.values()):
        there = ", ".join(f"'{name}' has {found['rows']} rows" for name, found in data.items())
        raise Misused(f"there is no number {numbers[0]}: {there}", "a lower number", "--row")
    about = {"recipe": seen.recipe.name, "template": settings["template"], "cutoff_len": settings["cutoff_len"]}
    return {**about, "tokenised": seen.model.folder is not None, "data": data}, odd


def _with_what_is_shipped(planned: Plan, folder: Path) -> Plan:
    """The plan with a registry of its own where it names what only the kit has: nothing is copied for a look."""
    registry, names = dataset.known(folder), planned.settings.names(TRAINED_ON)
    if not registry.shipped(names):
        return planned
    entries = {name: registry.entries[name].whole for name in names}
    return replace(planned.write(dataset_dir="{run}"), files={**planned.files, dataset.REGISTRY_FILE: entries})


def measure(question: Question) -> dict[str, Any]:
    """The numbers of a recipe's data sets, or of a registered one, how several are mixed, and what to change."""
    name, registry = question.recipe, dataset.known(question.workspace.data)
    if name in registry.entries and name not in recipes.registered(question.workspace.recipes):
        if question.overrides:
            fix = f"iis-finetune data stats RECIPE dataset={name} {question.overrides[0]}"
            raise Misused(f"'{name}' is a data set, and {question.overrides[0]} is for a recipe", fix)
        stage, folder = dataset.stage_of(registry.entries[name].value), None  # without a recipe there are no tokens
        settings, place = Settings(table()).decide(dataset=name, dataset_dir="{data}"), Place(COMMAND_LINE)
        recipe = None
    elif not (name in recipes.registered(question.workspace.recipes) or Path(name).suffix or "/" in name):
        known = [*recipes.registered(question.workspace.recipes), *registry.entries]
        usual = "recipes are listed by `iis-finetune recipes`, data sets by `iis-finetune data check`"
        raise Misused(f"'{name}' is neither a recipe nor a registered data set", did_you_mean(name, known, usual))
    else:
        seen = _sound(examine(replace(question, rows=False)))
        settings, place, folder = seen.plan.settings, seen.recipe.place(TRAINED_ON), seen.model.folder
        stage, recipe = str(settings["stage"]), seen.recipe.name
    sources, wrong = dataset.check_registered(settings.names(TRAINED_ON), question.registry(settings), stage, place)
    if errors_of(wrong) or not sources:
        raise ProblemsFound(wrong)
    options = dataset.options_of(settings, stage, question.limit)
    tokenizer = folder / "tokenizer.json" if folder else None
    counted = bool(tokenizer and tokenizer.is_file() and options.template)
    found = {each.name: dataset.measure(each, options, tokenizer, question.progress) for each in sources}
    return {"recipe": recipe, **dataset.figures(found, settings, counted)}


def encoding(question: Question) -> tuple[dataset.Options, Path]:
    """How a recipe reads rows, and its tokenizer.json; raises ProblemsFound where that is not on disk."""
    seen = _sound(examine(replace(question, rows=False)))
    tokenizer = seen.model.folder / "tokenizer.json" if seen.model.folder else None
    options = dataset.options_of(seen.plan.settings, str(seen.plan.settings["stage"]), None)
    if tokenizer is None or not tokenizer.is_file() or options.template is None:
        what = f"the tokenizer of {seen.model.name} is not on this disk, so what is cut cannot be counted"
        raise Misused(what, f"iis-finetune download {seen.recipe.name}", "--recipe")
    return options, tokenizer


def _sound(examined: Examined) -> Examined:
    """Raises ProblemsFound with what the user has to change first."""
    if wrong := [each for each in errors_of(examined.problems) if each.exit_code == INPUT]:
        raise ProblemsFound(wrong)
    return examined

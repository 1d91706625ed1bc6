"""Look at a recipe and the world together: every problem, before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from . import arguments, dataset, machine, models, plan, rules
from . import recipe as recipes
from .errors import Problem, in_file_order
from .machine import Machine
from .models import Base, ModelFacts
from .plan import Plan
from .recipe import Recipe
from .runs import Workspace

LLAMAFACTORY = "0.9.5"
DATA_KEYS = ("dataset", "eval_dataset")


@dataclass(frozen=True)
class Question:
    """What a verb before training asks about: a recipe with overrides, here or on a named machine."""

    recipe: str
    overrides: tuple[str, ...]
    workspace: Workspace
    environment: Mapping[str, str]
    on: str | None = None
    rows: bool = True


@dataclass(frozen=True)
class Examined:
    """The answer: the plan and every problem; `base` and `model` say what has to be made or fetched first."""

    recipe: Recipe
    machine: Machine
    plan: Plan
    base: Base | None
    model: ModelFacts
    problems: tuple[Problem, ...]


def examine(question: Question) -> Examined:
    """Read, detect, plan and check; raises ProblemsFound only when there is no recipe to speak of."""
    recipe, problems = recipes.read(question.recipe, question.overrides, question.workspace.recipes)
    host = machine.profile(question.on) if question.on else machine.detect(environment=question.environment)
    base, base_problems = models.base_of(recipe, question.workspace)
    model = _model(recipe, base, question.workspace)
    planned = plan.make(plan.Inputs(recipe, host, model, question.workspace, base))
    problems += [*base_problems, *planned.problems, *_model_problems(recipe, model, base)]
    data_problems, rows = _data_problems(recipe, planned, question)
    case = _case(recipe, host, model, planned)
    problems += [*data_problems, *rules.check(replace(case, rows=rows))]
    if host.here:
        problems += [*host.problems, *_installed(), *_launcher(planned), *_packages(case)]
        problems += machine.warned_variables(host, {**question.environment, **planned.environment})
    return Examined(recipe, host, planned, base, model, tuple(in_file_order(problems)))


def _model(recipe: Recipe, base: Base | None, workspace: Workspace) -> ModelFacts:
    name = base.model if base else recipe.value("model_name_or_path", "")
    facts = models.look(str(name), workspace.models)
    if facts.known:
        return facts
    described = models.facts_of(base.recipe if base else recipe)
    return replace(described, name=facts.name) if described else facts


def _model_problems(recipe: Recipe, model: ModelFacts, base: Base | None) -> list[Problem]:
    place = recipe.place("kit.base" if base else "model_name_or_path")
    if base or recipe.kit.from_scratch:
        return []
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
    return name.startswith((".", "/", "~", "models/")) or name.count("/") != 1 or Path(name).exists()


def _case(recipe: Recipe, host: Machine, model: ModelFacts, planned: Plan) -> rules.Case:
    """What the rules look at: the recipe's own arguments, before the plan's additions."""
    known = arguments.table()
    stated, _ = arguments.check(recipe.entries.values(), known)
    launcher = next(each.value for each in planned.decisions if each.name == "launcher")
    return rules.Case(recipe, stated, known, host, model, planned.processes, str(launcher), planned.precision)


def _packages(case: rules.Case) -> list[Problem]:
    versions = {name: machine.package_version(name) for name in rules.packages_of(case)}
    problems = rules.check_packages(case, versions)
    if case["quantization_bit"] and case["quantization_method"] == "bnb" and not case.model.quantization:
        place = case.recipe.place("quantization_bit")
        problems += [replace(each, where=place) for each in machine.decide_quantization(case.machine)[1]]
    return problems


def _data_problems(recipe: Recipe, planned: Plan, question: Question) -> tuple[list[Problem], int | None]:
    """What is wrong with the data sets, and how many usable rows there are to train on, None where not counted."""
    problems: list[Problem] = []
    counts: list[int | None] = []
    stage = str(recipe.value("stage", "sft"))
    folder = Path(str(recipe.value("dataset_dir") or question.workspace.data))
    asked = [(key, planned.arguments.get(key)) for key in DATA_KEYS]
    for key, names in [*asked, ("kit.evaluate_after", recipe.kit.evaluate_after)]:
        if names:
            found, wrong = dataset.check_registered(names, folder, stage, recipe.place(key))
            problems += wrong
            if question.rows:
                for source in found:
                    rows = dataset.check_rows(source, dataset.RowOptions(stage=stage))
                    problems += [replace(each, where=each.where or recipe.place(key)) for each in rows.problems]
                    counts += [rows.kept if rows.complete else None] if key == "dataset" else []
    return problems, sum(count or 0 for count in counts) if counts and None not in counts else None


def _installed() -> list[Problem]:
    found = machine.package_version("llamafactory")
    if found is None:
        return [
            Problem(
                "LLaMA-Factory is not installed",
                f"make setup, or pip install llamafactory=={LLAMAFACTORY}",
                kind="missing",
            )
        ]
    return []


def _launcher(planned: Plan) -> list[Problem]:
    """LLaMA-Factory cuts its torchrun command at spaces, its own path included."""
    import sys

    if planned.processes > 1 and " " in sys.prefix:
        what = f"the path '{sys.prefix}' has a space: LLaMA-Factory cannot start {planned.processes} processes from it"
        return [Problem(what, "move the project to a path without spaces, or kit.devices=1", kind="machine", code=2)]
    return []

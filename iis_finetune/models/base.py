"""What a recipe starts from: a model by name, the result of another recipe, or random weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from .. import recipe as recipes
from ..arguments import WHOLE
from ..errors import Problem, ProblemsFound
from ..recipe import Recipe
from ..runs import Run, Workspace, listed, reached_the_end, read_json

LONGEST_CHAIN = 5


@dataclass(frozen=True)
class Base:
    """The recipe named by `kit.base` or `kit.reward`, and what it gives: a model folder, or a model and adapters."""

    recipe: Recipe
    model: str
    adapters: tuple[Path, ...]
    ready: bool
    below: Base | None = None  # what it is itself made on

    @property
    def whole(self) -> bool:
        return self.recipe.value("finetuning_type", "lora") in WHOLE

    @property
    def first(self) -> Recipe:
        """The recipe at the bottom, which says what the model looks like before it is there."""
        return self.below.first if self.below else self.recipe


def base_of(
    recipe: Recipe, workspace: Workspace, depth: int = 0, key: Literal["base", "reward"] = "base"
) -> tuple[Base | None, list[Problem]]:
    """Look up `kit.base` or `kit.reward`; one whose result is missing is not `ready` and is run first."""
    named = recipe.kit.base if key == "base" else recipe.kit.reward
    place = recipe.place(f"kit.{key}")
    if named is None:
        return None, []
    if depth >= LONGEST_CHAIN or named == recipe.name:
        what = f"'{named}' leads back to itself, or through more than {LONGEST_CHAIN} recipes"
        return None, [Problem(what, "name a recipe that stands on its own", place)]
    try:
        base, problems = recipes.read(named, (), workspace.recipes)
    except ProblemsFound as found:
        first = found.problems[0]
        return None, [Problem(f"kit.{key}: {first.what}", first.fix, place, code=2)]
    if base.path == recipe.path:
        return None, [Problem(f"'{named}' is this recipe itself", "name another recipe", place)]
    below, further = base_of(base, workspace, depth + 1)
    if base.kit.base and below is None:
        return None, problems + further
    return _result(base, below, workspace), problems + further


def _result(base: Recipe, below: Base | None, workspace: Workspace) -> Base:
    if base.value("finetuning_type", "lora") in WHOLE:
        folder = published(base.name, workspace)
        return Base(base, str(folder), (), (folder / "config.json").is_file(), below)
    model = below.model if below else str(base.value("model_name_or_path", ""))
    finished = _finished(base.name, workspace)
    return Base(base, model, adapters_of(finished[-1]) if finished else (), bool(finished), below)


def _finished(name: str, workspace: Workspace) -> list[Run]:
    """The recipe's runs that have a result, newest last; those in runs/ too where this workspace has its own."""
    own = [run for run in listed(workspace) if run.number < (workspace.before or math.inf)]
    usual = replace(workspace, runs=workspace.root / "runs")
    others = listed(usual) if usual.runs.resolve() != workspace.runs.resolve() else []
    # Not the state: a run that this very process has just supervised counts as running until the process is gone.
    real = [run for run in (*others, *own) if run.recipe_name == name and not run.smoke]
    return [run for run in real if reached_the_end(run)]


def adapters_of(run: Run) -> tuple[Path, ...]:
    """What a run left, after the adapters that it was put on top of."""
    arguments = (read_json(run.decisions) or {}).get("arguments", {})
    earlier = [Path(each) for each in str(arguments.get("adapter_name_or_path") or "").split(",") if each]
    return (*(earlier if arguments.get("create_new_adapter") else earlier[:-1]), run.result)


def published(name: str, workspace: Workspace) -> Path:
    """Where the whole-model result of a base recipe is kept as a model of its own."""
    return workspace.models / name

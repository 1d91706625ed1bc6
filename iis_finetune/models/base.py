"""What a recipe starts from: a model by name, the result of another recipe, or random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from .. import recipe as recipes
from ..arguments import WHOLE, Settings, settings_of, trained_with
from ..errors import Problem, ProblemsFound
from ..recipe import Recipe
from ..runs import Run, Workspace, damage, listed, reached_the_end, read_decided
from .facts import CONFIG

LONGEST_CHAIN = 5


class Base(Struct, frozen=True, dict=True):
    """The recipe named by `kit.base` or `kit.reward`, and what it gives: a model folder, or a model and adapters."""

    recipe: Recipe
    model: str
    adapters: tuple[Path, ...]
    ready: bool
    below: Base | None = None  # what it is itself made on

    @cached_property
    def whole(self) -> bool:
        """Whether it trains the model's own weights, not an adapter."""
        return self.settings["finetuning_type"] in WHOLE

    @cached_property
    def settings(self) -> Settings:
        return settings_of(self.recipe)[0]

    @property
    def chain(self) -> list[Base]:
        """It and all that it is made on."""
        return [self, *(self.below.chain if self.below else ())]

    @property
    def first(self) -> Recipe:
        """The recipe at the bottom, which says what the model looks like before it is there."""
        return self.below.first if self.below else self.recipe


def base_of(
    recipe: Recipe, workspace: Workspace, depth: int = 0, key: Literal["base", "reward"] = "base"
) -> tuple[Base | None, list[Problem]]:
    """Look up `kit.base` or `kit.reward`; a base that has no result yet is not `ready` and is trained first."""
    named = recipe.kit.base if key == "base" else recipe.kit.reward
    place = recipe.place(f"kit.{key}")
    if named is None:
        return None, []
    if depth >= LONGEST_CHAIN or named == recipe.name:
        what = f"kit.{key} forms a cycle, or a chain of more than {LONGEST_CHAIN} recipes: '{named}'"
        return None, [Problem(what, "name a recipe that does not lead back here", place)]
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


def _result(recipe: Recipe, below: Base | None, workspace: Workspace) -> Base:
    base = Base(recipe, "", (), False, below)
    if base.whole:
        folder = workspace.models / recipe.name  # where it is kept as a model of its own
        return replace(base, model=str(folder), ready=(folder / CONFIG).is_file())
    model = below.model if below else str(recipe.value("model_name_or_path", ""))
    finished = _finished(recipe.name, workspace)
    return replace(base, model=model, adapters=adapters_of(finished[-1]) if finished else (), ready=bool(finished))


def _finished(name: str, workspace: Workspace) -> list[Run]:
    """The recipe's runs that have a result, newest last; those in runs/ too where this workspace has its own."""
    own = [run for run in listed(workspace) if run.number < (workspace.before or math.inf)]
    usual = replace(workspace, runs=workspace.root / "runs")
    others = listed(usual) if usual.runs.resolve() != workspace.runs.resolve() else []
    # Not the state: a run that this very process has just supervised counts as running until the process is gone.
    real = [run for run in (*others, *own) if run.recipe_name == name and not run.smoke]
    return [run for run in real if damage(run) is None and reached_the_end(run)]


def adapters_of(run: Run) -> tuple[Path, ...]:
    """The adapters that a run's result is loaded with, its own last."""
    return tuple(map(Path, stacked(read_decided(run).arguments, run.result)))


def stacked(arguments: Mapping[str, Any], result: Path) -> tuple[str, ...]:
    """The adapters of a training in the order of loading: what it made follows, or replaces, the last it began with."""
    settings = trained_with(arguments)
    earlier = settings.names("adapter_name_or_path")
    return (*(earlier if settings["create_new_adapter"] else earlier[:-1]), str(result))

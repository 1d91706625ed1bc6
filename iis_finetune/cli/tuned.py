"""What export, chat and serve load: a finished run, or a YAML file that names a model."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .. import launch, machine, runs, session
from .. import recipe as recipes
from ..errors import COMMAND_LINE, Place, Problem, ProblemsFound, errors_of
from ..plan import after
from ..plan.after import Trained
from ..runs import Run
from .words import workspace

RunOrRecipe = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's number, name, unique prefix, or `last`; or a YAML file.")
]
Checkpoint = Annotated[int | None, typer.Option("--checkpoint", metavar="STEP", help="A checkpoint, not the result.")]


@dataclass(frozen=True)
class Tuned:
    """The model and adapters to load, and the environment to load them in."""

    trained: Trained
    environment: Mapping[str, str]
    run: Run | None = None

    @property
    def name(self) -> str:
        return f"{self.run.number:04d}" if self.run else self.trained.name


def run_of(name: str, checkpoint: int | None) -> Run:
    """A finished run; for a checkpoint the run need not have finished."""
    return runs.find(workspace(), name) if checkpoint is not None else runs.finished_run(workspace(), name)


def environment_of(run: Run | None) -> dict[str, str]:
    """The environment of the run's own training; for a YAML file, what this machine needs."""
    host = machine.detect(environment=os.environ)
    if run:
        return session.environment_of(run, host, os.environ)
    decided = machine.decide_environment(host, 1)
    chosen = {each.name.removeprefix("environment."): str(each.value) for each in decided}
    chosen["PYTHONPATH"] = str(launch.KIT / "hook" / "torchaudio_placeholder") if host.torchaudio_placeholder else ""
    return launch.child_environment(host, os.environ, chosen)


def tuned(name: str, checkpoint: int | None = None) -> Tuned:
    if Path(name).suffix in recipes.SUFFIXES:
        return _from_file(name)
    run = run_of(name, checkpoint)
    result = run.output / f"checkpoint-{checkpoint}" if checkpoint is not None else run.result
    if not result.is_dir():
        what = f"{run.name} has no checkpoint {checkpoint}"
        there = ", ".join(str(runs.step_of(path)) for path in run.checkpoints()) or "none"
        raise ProblemsFound([Problem(what, f"checkpoints: {there}", Place(COMMAND_LINE, key="--checkpoint"))])
    return Tuned(after.trained_by(run, result), environment_of(run), run)


def _from_file(name: str) -> Tuned:
    """LLaMA-Factory's own export or inference YAML: its model and adapters as they are named there."""
    recipe, problems = recipes.read(name, (), workspace().recipes)
    if errors_of(problems):
        raise ProblemsFound(problems)
    values = {key: entry.value for key, entry in recipe.entries.items() if entry.value is not None}
    if "model_name_or_path" not in values:
        place = Place(str(recipe.path))
        raise ProblemsFound([Problem("no model_name_or_path", "name the model to load", place)])
    weights = after.base_weights(values)
    named = (weights.model, *weights.adapters)
    model, *adapters = (str(Path(each).absolute()) if Path(each).exists() else each for each in named)
    trained = Trained(recipe.name, values, after.Weights(model, tuple(adapters)))
    return Tuned(trained, environment_of(None))

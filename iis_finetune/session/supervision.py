"""What the supervisor of a run is given: its environment, how its plan is changed, whom to tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import launch, notify, process, runs
from .. import recipe as recipes
from ..launch import Prepared
from ..machine import Machine
from ..observe import signs
from ..plan.recovery import safer_overrides
from ..preflight import Examined, Question
from ..runs import Decided, Request, Run
from ..supervise import Task
from .footing import examine_run
from .making import make_view


def task_of(run: Run, examined: Examined, request: Request, question: Question) -> Task:
    """How to start the training, how to change it, whom to tell."""
    kit = examined.recipe.kit
    task = Task(
        run=run,
        environment=environment_of(run, examined.machine, question.environment),
        replan=partial(_replan, run, request, question),
        may_recover=kit.on_failure == "recover",
    )
    if not kit.notify:
        return task
    send = partial(_notify, kit.notify, request.log, question.environment)
    return replace(task, tell=lambda event, why: send((run, event, why)))


def environment_of(run: Run, machine: Machine, environment: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a run's training processes, as it was planned."""
    decided = runs.read_decided(run) or Decided()
    return launch.child_environment(machine, environment, decided.environment)


def _replan(run: Run, request: Request, question: Question, change: Mapping[str, Any]) -> dict[str, str]:
    """Write the plan anew with a change of the supervisor's; the data it began with stays on record."""
    recipe, _ = recipes.read(str(run.recipe))
    overrides = safer_overrides(recipe, (runs.read_decided(run) or Decided()).arguments, change)
    examined = examine_run(run, replace(question, recipe=str(run.recipe), overrides=overrides, rows=False))
    make_view(request, examined, question.workspace)
    rewrite(run, examined, question, (runs.read_json(run.provenance) or {}).get("data_sha256", {}))
    return environment_of(run, examined.machine, question.environment)


def rewrite(run: Run, examined: Examined, question: Question, data: Mapping[str, str]) -> None:
    """Put a new plan into a run's folder, with the hashes of the data it is trained on."""
    launch.rewrite(run, Prepared(examined.recipe, examined.plan, examined.machine, data), question.workspace)


def _notify(target: str, log: Path, environment: Mapping[str, str], told: tuple[Run, str, str]) -> None:
    run, event, why = told
    now = signs(run)
    notice = notify.Notice(run.name, event, why, step=now.step, total_steps=now.total_steps)
    notify.send(target, notice, environment, log)


def end_orphans(run: Run) -> None:
    """End what an attempt without a supervisor left running."""
    for attempt in runs.attempts(run):
        left = [each for who in (attempt.process, *attempt.workers) if who for each in process.tree(who)]
        process.end(left, 0)

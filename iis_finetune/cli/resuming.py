"""A run that goes on: its footing compared, its plan remade, in the detached process and before it starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import dataset, launch, machine, models, notify, preflight, process, runs
from .. import recipe as recipes
from ..errors import COMMAND_LINE, Place, Problem, ProblemsFound, errors_of
from ..launch import Prepared
from ..observe import signs
from ..plan.recovery import Footing, differences, resume_problems, safer_overrides
from ..preflight import Examined, Question
from ..runs import Request, Run
from ..supervise import Job


def examine(question: Question) -> Examined:
    """Like preflight's, but errors are raised."""
    examined = preflight.examine(question)
    if errors_of(examined.problems):
        raise ProblemsFound(examined.problems)
    return examined


def question_of(run: Run, question: Question, overrides: tuple[str, ...] = ()) -> Question:
    """The question that a run's own recipe is the answer to."""
    return replace(question, recipe=str(run.recipe), overrides=overrides)


def examine_run(run: Run, question: Question) -> Examined:
    """What a run would be planned like now, under its recipe's own name."""
    examined = examine(replace(question, workspace=replace(question.workspace, before=run.number)))
    recipe, planned = replace(examined.recipe, name=run.recipe_name), replace(examined.plan, recipe=run.recipe_name)
    return replace(examined, recipe=recipe, plan=planned)


def check_footing(run: Run, examined: Examined, question: Question, accepted: bool) -> list[str]:
    """What has changed since the run began, by name; raises ProblemsFound with every change that is not accepted."""
    decided, proof = runs.read_json(run.decisions) or {}, runs.read_json(run.provenance) or {}
    if not decided or not proof:
        what = f"{run.name} ended before its plan was written: there is nothing to go on with"
        raise ProblemsFound([Problem(what, f"iis-finetune train {run.recipe_name}", Place(COMMAND_LINE))])
    arguments = json.loads(json.dumps(launch.fill(examined.plan.arguments, run, question.workspace)))
    old = Footing(decided["arguments"], proof.get("data_sha256", {}), decided["processes"])
    new = Footing(arguments, data_hashes(examined, question), examined.plan.processes)
    problems = resume_problems(old, new, accepted)
    if problems:
        raise ProblemsFound(problems)
    return [name for name, _, _ in differences(old, new)]


def check_devices(examined: Examined, question: Question, but: Run | None = None) -> None:
    """One device, one run: raises ProblemsFound with the name of the run that has it."""
    other = launch.occupant(examined.plan.environment, question.workspace, but)
    if other:
        what = f"{other.name} is running on the same device"
        fix = f"wait for it, stop it (iis-finetune stop {other.number:04d}), or name other devices: kit.devices=[1]"
        raise ProblemsFound([Problem(what, fix, Place(COMMAND_LINE), kind="machine")])


def data_hashes(examined: Examined, question: Question) -> dict[str, str]:
    """The SHA-256 of each file of the training's data."""
    found = sources_of(examined, question)
    return {name: text for source in found for name, text in dataset.data_files_hash(source).items()}


def sources_of(examined: Examined, question: Question) -> list[dataset.Source]:
    """The training's data sets, as far as they are on disk."""
    folder = str(examined.plan.arguments.get("dataset_dir", "")).replace("{data}", str(question.workspace.data))
    names = examined.plan.arguments.get("dataset") or ""
    return dataset.check_registered(names, folder, examined.recipe.value("stage", "sft"), Place())[0]


def make_view(request: Request, examined: Examined, question: Question) -> None:
    """The precision view that the plan trains from, if it needs one."""
    if examined.plan.view_of:
        request.tell(phase=f"making the {examined.plan.precision} view of {examined.model.name}")
        models.precision_view(examined.plan.view_of, examined.plan.precision, question.workspace.models)


def job_of(run: Run, examined: Examined, request: Request, question: Question) -> Job:
    """What the supervisor is given: how to start the training, how to change it, whom to tell."""
    target = examined.recipe.kit.notify
    job = Job(
        run=run,
        environment=environment_of(run, question),
        replan=partial(_replan, run, request, question),
        may_recover=examined.recipe.kit.on_failure == "recover",
    )
    if not target:
        return job
    send = partial(_notify, target, request.log, question.environment)
    return replace(job, tell=lambda event, why: send((run, event, why)))


def environment_of(run: Run, question: Question) -> dict[str, str]:
    """The whole environment of a run's training processes."""
    chosen = (runs.read_json(run.decisions) or {})["environment"]
    return launch.child_environment(machine.detect(environment=question.environment), question.environment, chosen)


def _replan(run: Run, request: Request, question: Question, change: Mapping[str, Any]) -> dict[str, str]:
    """Write the plan anew with a change of the supervisor's; the data it began with stays on record."""
    recipe, _ = recipes.read(str(run.recipe))
    arguments = (runs.read_json(run.decisions) or {}).get("arguments", {})
    asked = replace(question_of(run, question, safer_overrides(recipe, arguments, change)), rows=False)
    examined = examine_run(run, asked)
    make_view(request, examined, question)
    rewrite(run, examined, question, (runs.read_json(run.provenance) or {}).get("data_sha256", {}))
    return environment_of(run, question)


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

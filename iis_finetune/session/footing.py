"""What a run stands on: data, arguments, device; compared before it goes on."""

import json
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from .. import launch, preflight, runs, supervise
from ..arguments import WHOLE, trained_with
from ..errors import COMMAND_LINE, Place, Problem, ProblemsFound, errors_of
from ..plan.recovery import Footing, differences, resume_problems
from ..preflight import Examined, Question
from ..runs import Run, Workspace

LENGTHS = ("max_steps", "num_train_epochs")  # what may make a finished run a longer one


def examine_run(run: Run, question: Question) -> Examined:
    """How a run would be planned now, from the question's recipe; raises ProblemsFound for errors."""
    question = replace(question, workspace=replace(question.workspace, before=run.number))
    return under_its_own_name(run, without_errors(preflight.examine(question)))


def without_errors(examined: Examined) -> Examined:
    """The same if it can be trained; raises ProblemsFound otherwise."""
    if errors_of(examined.problems):
        raise ProblemsFound(examined.problems)
    return examined


def under_its_own_name(run: Run, examined: Examined) -> Examined:
    """A run's recipe is the file recipe.yaml in its folder; its name is the one it was started with."""
    recipe = replace(examined.recipe, name=run.recipe_name)
    planned = replace(examined.plan, inputs=replace(examined.plan.inputs, recipe=recipe))
    return replace(examined, recipe=recipe, plan=planned)


def refuse_changes(run: Run, examined: Examined, question: Question, accepted: bool) -> list[str]:
    """What has changed since the run began, by name; raises ProblemsFound with every change that is not accepted."""
    decided, proof = runs.read_decided(run), runs.provenance_of(run)
    if decided is None or not run.provenance.is_file():
        what = f"{run.name} ended before its plan was written: there is nothing to resume"
        raise ProblemsFound([Problem(what, f"iis-finetune train {run.recipe_name}", Place(COMMAND_LINE))])
    arguments = json.loads(json.dumps(runs.fill(examined.plan.arguments, run, question.workspace)))
    old = Footing(decided.arguments, proof.data_sha256, decided.processes)
    new = Footing(arguments, data_hashes(examined, question), examined.plan.processes)
    problems = resume_problems(old, new, accepted)
    if runs.reached_the_end(run):
        _refuse_no_more(run, arguments)
        problems = [each for each in problems if each.where.key not in LENGTHS]
    if problems:
        raise ProblemsFound(problems)
    return [name for name, _, _ in differences(old, new)]


def _refuse_no_more(run: Run, arguments: Mapping[str, Any]) -> None:
    """A finished run goes on only as a longer one, and only from a checkpoint: its result is not trained anew."""
    done, asked, facts = runs.steps_done(run), trained_with(arguments), supervise.facts_of(run)
    steps, epochs = asked["max_steps"], asked["num_train_epochs"]
    if (steps <= (done.global_step or 0)) if steps > 0 else (epochs <= (done.epoch or 0)):
        more = 2 * (done.global_step or 0)
        fix = f"iis-finetune resume {run.number:04d} max_steps={more} goes on from its last checkpoint, {more} in all"
        what = f"{run.name} is finished: it has done {done.global_step} steps"
        raise ProblemsFound([Problem(what, fix, Place(COMMAND_LINE))])
    good, _ = runs.newest_good(run, facts.decided.processes, facts.ranks)
    if good is None or facts.begins_anew:
        key = "model_name_or_path" if asked["finetuning_type"] in WHOLE else "adapter_name_or_path"
        fix = f"start a new run on its result: iis-finetune train {run.recipe_name} {key}={run.result}"
        what = f"{run.name} cannot go on: {facts.begins_anew or 'no whole checkpoint is left'}"
        raise ProblemsFound([Problem(what, fix, Place(COMMAND_LINE))])


def check_devices(examined: Examined, workspace: Workspace, but: Run | None = None) -> None:
    """One device, one run: raises ProblemsFound with the name of the run that has it."""
    other = launch.occupant(examined.plan.environment, workspace, but)
    if other:
        who = runs.holder(other)
        told = f"being {who.work} by process {who.process.pid}" if who else "just ending"
        what = f"{other.name} is {told} on the same device"
        fix = f"wait for it, stop it (iis-finetune stop {other.number:04d}), or name other devices: kit.devices=[1]"
        raise ProblemsFound([Problem(what, fix, Place(COMMAND_LINE), kind="machine")])


def data_hashes(examined: Examined, question: Question) -> dict[str, str]:
    """The SHA-256 of each file of the training's data."""
    found = preflight.sources_of(examined, question)
    return {name: text for source in found for name, text in question.readings.sha256(source).items()}

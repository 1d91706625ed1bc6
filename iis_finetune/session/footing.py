"""What a run stands on: data, arguments, device; compared before it goes on."""

import json
from dataclasses import replace

from .. import dataset, launch, preflight, runs
from ..errors import COMMAND_LINE, Place, Problem, ProblemsFound, errors_of
from ..plan.recovery import Footing, differences, resume_problems
from ..preflight import Examined, Question
from ..runs import Run, Workspace


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
    recipe, planned = replace(examined.recipe, name=run.recipe_name), replace(examined.plan, recipe=run.recipe_name)
    return replace(examined, recipe=recipe, plan=planned)


def refuse_changes(run: Run, examined: Examined, question: Question, accepted: bool) -> list[str]:
    """What has changed since the run began, by name; raises ProblemsFound with every change that is not accepted."""
    decided, proof = runs.read_decided(run), runs.provenance_of(run)
    if decided is None or not run.provenance.is_file():
        what = f"{run.name} ended before its plan was written: there is nothing to resume"
        raise ProblemsFound([Problem(what, f"iis-finetune train {run.recipe_name}", Place(COMMAND_LINE))])
    arguments = json.loads(json.dumps(launch.fill(examined.plan.arguments, run, question.workspace)))
    old = Footing(decided.arguments, proof.data_sha256, decided.processes)
    new = Footing(arguments, data_hashes(examined, question), examined.plan.processes)
    problems = resume_problems(old, new, accepted)
    if problems:
        raise ProblemsFound(problems)
    return [name for name, _, _ in differences(old, new)]


def check_devices(examined: Examined, workspace: Workspace, but: Run | None = None) -> None:
    """One device, one run: raises ProblemsFound with the name of the run that has it."""
    other = launch.occupant(examined.plan.environment, workspace, but)
    if other:
        what = f"{other.name} is running on the same device"
        fix = f"wait for it, stop it (iis-finetune stop {other.number:04d}), or name other devices: kit.devices=[1]"
        raise ProblemsFound([Problem(what, fix, Place(COMMAND_LINE), kind="machine")])


def data_hashes(examined: Examined, question: Question) -> dict[str, str]:
    """The SHA-256 of each file of the training's data."""
    found = sources_of(examined, question)
    return {name: text for source in found for name, text in question.readings.sha256(source).items()}


def sources_of(examined: Examined, question: Question) -> list[dataset.Source]:
    """The training's data sets, as far as they are on disk."""
    settings = examined.plan.settings
    folder = str(settings["dataset_dir"]).replace("{data}", str(question.workspace.data))
    return dataset.check_registered(settings.names("dataset"), folder, settings["stage"], Place())[0]

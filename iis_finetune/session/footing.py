"""What a run stands on, made and compared before it goes on; what its supervisor is given; how its end is told."""

import json
import shutil
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import to_builtins
from msgspec.structs import replace

from .. import hub, launch, models, notify, preflight, rules, runs, supervise
from .. import recipe as recipes
from ..arguments import WHOLE, trained_with
from ..errors import COMMAND_LINE, FINE, INTERRUPTED, RUN_FAILED, Place, Problem, ProblemsFound, errors_of, exit_code
from ..machine import Machine
from ..observe import began, last_lines, raised, signs, tail
from ..plan.recovery import Footing, differences, resume_problems, safer_overrides
from ..preflight import Examined, Question
from ..runs import Decided, Request, Run, Workspace
from ..supervise import Stop, Task

LENGTHS = ("max_steps", "num_train_epochs")  # what may make a finished run a longer one
KEPT = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TOLD_SECONDS = 1.0
LOG_LINES = 15


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
    if decided == Decided() or not run.provenance.is_file():
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


# What is made ---------------------------------------------------------------------------------------------------------


def make_model(request: Request, examined: Examined, question: Question) -> None:
    """Random weights when the recipe says so; anything else comes from a hub."""
    recipe, name, environment = examined.recipe, examined.model.name, question.environment
    if recipe.kit.from_scratch:
        request.tell(phase=f"making {name} with random weights")
        spec = models.scratch_spec(recipe, question.workspace)
        launch.make_scratch(spec, request.folder / "scratch.json", examined.machine, environment)
        return
    revision, folder = recipe.value("model_revision"), question.workspace.models
    order = hub.ModelOrder(name, folder, False, revision, recipe.kit.source, chosen_by="kit.source=")
    request.tell(phase=f"downloading {name} to {order.folder}")
    hub.fetch(order, environment, _Teller(request))


class _Teller:
    """Passes a download's progress on, once a second at most; called from several threads."""

    def __init__(self, request: Request) -> None:
        self.request, self.told = request, 0.0
        self.lock = threading.Lock()

    def __call__(self, progress: hub.Progress) -> None:
        with self.lock:
            if progress.note or time.monotonic() - self.told >= TOLD_SECONDS:
                self.told = time.monotonic()
                self.request.tell(download=to_builtins(progress))


def make_view(request: Request, examined: Examined, workspace: Workspace) -> None:
    """The precision view that the plan trains from, if it needs one."""
    plan = examined.plan
    if plan.view_of:
        request.tell(phase=f"making the {plan.precision} view of {examined.model.name}")
        models.precision_view(plan.view_of, plan.precision, workspace.models)


def publish(made: Run, folder: Path) -> None:
    """Copy a whole model out of a run's output to a model folder, complete or not at all; the base's lock is held."""
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)  # left by one that was killed
    temporary.mkdir(parents=True)
    for path in sorted(made.output.iterdir()):
        if path.name in KEPT or path.suffix in (".safetensors", ".jinja"):
            shutil.copyfile(path, temporary / path.name)
    runs.write_json(temporary / "iis-finetune.json", {"made_by": made.name})
    if folder.is_dir():
        shutil.rmtree(folder)
    temporary.replace(folder)


# What the supervisor is given, and how an end is told -----------------------------------------------------------------


def task_of(run: Run, examined: Examined, request: Request, question: Question) -> Task:
    """How to start the training, how to change it, whom to tell."""
    kit = examined.recipe.kit
    task = Task(
        run=run,
        environment=environment_of(run, examined.machine, question.environment),
        replan=partial(_replan, run, request, question),
        may_recover=kit.on_failure == "recover",
        edited=partial(_edited, run, examined, question),
    )
    target = kit.notify
    if not target:
        return task

    def tell(event: str, why: str) -> None:
        now = signs(run)
        notice = notify.Notice(run.name, event, why, step=now.step, total_steps=now.total_steps)
        notify.send(target, notice, question.environment, request.log)

    return replace(task, tell=tell)


def _edited(run: Run, examined: Examined, question: Question) -> list[str]:
    """The data files that are not, or no longer, what the run began with."""
    before = runs.provenance_of(run).data_sha256
    now = data_hashes(examined, question)
    return [name for name, sha256 in before.items() if now.get(name) != sha256]


def environment_of(run: Run, machine: Machine, environment: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a run's training processes."""
    return launch.child_environment(machine, environment, runs.read_decided(run).environment)


def _replan(run: Run, request: Request, question: Question, change: Mapping[str, Any]) -> dict[str, str]:
    """Plan the run again with the supervisor's change; the hashes of its first data stay on record."""
    recipe, _ = recipes.read(str(run.recipe))
    overrides = safer_overrides(recipe, runs.read_decided(run).arguments, change)
    asked = replace(question, recipe=str(run.recipe), overrides=overrides, rows=False, machine=None)
    examined = examine_run(run, asked)  # the machine is looked at again: a device may be what failed
    make_view(request, examined, question.workspace)
    launch.rewrite(run, examined, question.workspace, runs.provenance_of(run).data_sha256)
    return environment_of(run, examined.machine, question.environment)


def tell_ending(request: Request, made: Run, stop: Stop) -> int:
    """The exit code of a run's end; what LLaMA-Factory refused before the first step is the user's to change."""
    state = runs.state_after_end(made)
    if state == "finished":
        request.tell(finished=made.name)
        return FINE
    if state == "stopped":
        request.tell(stopped=made.name, why=_why(made))
        return INTERRUPTED if stop.asked == "SIGINT" else RUN_FAILED
    problem = failure(made)
    request.tell(failed=made.name, lines=last_lines(made.log, LOG_LINES), log=str(made.log), problem=problem.as_json())
    # With the model in memory LLaMA-Factory has refused nothing: what ends a run from there on is a failure of the run.
    return RUN_FAILED if began(made) or made.loaded.is_file() else exit_code([problem])


def failure(made: Run) -> Problem:
    """The known cause of a failed run, else what its log says."""
    for path in (made.log, *made.stacks()):
        if known := rules.explain(tail(path), Place(str(path))):
            return known
    if began(made):
        why, _, advice = (_why(made) or "no reason in the log").partition("; ")
        return Problem(f"{made.name} failed: {why}", advice or f"see {made.log}", Place(str(made.log)))
    why = raised(made.log) or _why(made) or "no reason in the log"
    return Problem(f"LLaMA-Factory refuses to start {made.name}: {why}", f"see {made.log}", Place(str(made.arguments)))


def _why(made: Run) -> str | None:
    """The supervisor's last word on a run."""
    tried = runs.attempts(made)
    return tried[-1].why if tried else None

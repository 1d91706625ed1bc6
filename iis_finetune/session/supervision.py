"""What the supervisor of a run is given, and how a run's end is told."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from .. import launch, notify, rules, runs
from .. import recipe as recipes
from ..errors import FINE, INTERRUPTED, RUN_FAILED, Place, Problem, exit_code
from ..machine import Machine
from ..observe import began, last_lines, raised, signs, tail
from ..plan.recovery import safer_overrides
from ..preflight import Examined, Question
from ..runs import Decided, Request, Run
from ..supervise import Stop, Task
from .footing import data_hashes, examine_run
from .making import make_view

LOG_LINES = 15


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
    if not kit.notify:
        return task
    send = partial(_notify, kit.notify, request.log, question.environment)
    return replace(task, tell=lambda event, why: send((run, event, why)))


def _edited(run: Run, examined: Examined, question: Question) -> list[str]:
    """The data files that are not, or no longer, what the run began with."""
    before = runs.provenance_of(run).data_sha256
    now = data_hashes(examined, question)
    return [name for name, sha256 in before.items() if now.get(name) != sha256]


def environment_of(run: Run, machine: Machine, environment: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a run's training processes."""
    decided = runs.read_decided(run) or Decided()
    return launch.child_environment(machine, environment, decided.environment)


def _replan(run: Run, request: Request, question: Question, change: Mapping[str, Any]) -> dict[str, str]:
    """Plan the run again with the supervisor's change; the hashes of its first data stay on record."""
    recipe, _ = recipes.read(str(run.recipe))
    overrides = safer_overrides(recipe, (runs.read_decided(run) or Decided()).arguments, change)
    asked = replace(question, recipe=str(run.recipe), overrides=overrides, rows=False, machine=None)
    examined = examine_run(run, asked)  # the machine is looked at again: a device may be what failed
    make_view(request, examined, question.workspace)
    launch.rewrite(run, examined, question.workspace, runs.provenance_of(run).data_sha256)
    return environment_of(run, examined.machine, question.environment)


def _notify(target: str, log: Path, environment: Mapping[str, str], told: tuple[Run, str, str]) -> None:
    run, event, why = told
    now = signs(run)
    notice = notify.Notice(run.name, event, why, step=now.step, total_steps=now.total_steps)
    notify.send(target, notice, environment, log)


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

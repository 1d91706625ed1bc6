"""Start a run's training, watch it, and do what the table of recovery says until it ends for good.

The only writer of attempts and events while a run lives.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from .. import recover, runs
from ..errors import ProblemsFound, RunFailed
from ..observe import StallLimits
from ..recover import Action, Failure, Situation
from ..runs import Attempt, Ending, Run, Skipped, step_of
from .attempt import Start, try_once
from .disk import DiskSpace
from .task import Facts, Stop, Task, facts_of, loaded_by, loaded_precision

ROOM_SECONDS, ROOM_LOOK_SECONDS = 6 * 3600.0, 10.0  # a night's sleep of whoever can make room


@dataclass
class _Course:
    """What has happened since this supervisor began."""

    best: int
    attempts: int = 0
    failures: tuple[Failure, ...] = ()
    unloadable: tuple[str, ...] = ()

    def count(self, failure: Failure, reached: int) -> None:
        """Attempts count only while no new good checkpoint appears."""
        # One that only failed to load a checkpoint is none: there are as many of those as checkpoints.
        self.attempts = 1 if reached > self.best else self.attempts + (failure.cause != "checkpoint")
        self.best = max(self.best, reached)
        self.failures = (*self.failures, failure)


def supervise(task: Task, stop: Stop) -> Ending:
    """Run the training of a prepared folder to its end; raises RunFailed when the folder is removed meanwhile."""
    try:
        return _supervise(task, stop)
    except FileNotFoundError:
        if task.run.arguments.is_file():
            raise
        raise RunFailed(f"the folder of {task.run.name} was removed while it ran: the training is ended") from None


def _supervise(task: Task, stop: Stop) -> Ending:
    """A new attempt follows a failure while that makes sense."""
    facts = facts_of(task.run)
    checkpoint = _good_checkpoint(task.run, facts, spare_disk=False)
    course = _Course(_reached(checkpoint))
    change: dict[str, Any] = {}
    while True:
        outcome = try_once(task, facts, Start(checkpoint, change), stop)
        attempt, failure = outcome.attempt, outcome.end
        if not isinstance(failure, Failure):
            return _end(task, attempt, failure, outcome.why)
        checkpoint = _after(task.run, facts, course, failure)
        course.count(failure, _reached(checkpoint))
        action = _decide(task, facts, course, checkpoint)
        if not action.resume or stop.asked:
            return _end(task, attempt, "stopped" if stop.asked else "failed", action.why)
        runs.record(task.run, replace(attempt, ended=time.time(), ending="interrupted", why=action.why))
        _tell_recovering(task, failure, action, checkpoint)
        _pause(action.pause_seconds, stop)
        if failure.cause == "disk full" and not _room_came(task.run, facts, stop):
            return _end(task, attempt, "stopped" if stop.asked else "failed", action.why)
        change = dict(action.change)
        try:
            task = replace(task, environment=task.replan(change)) if change and task.replan else task
        except ProblemsFound as found:
            return _end(task, attempt, "failed", f"{action.why}, but {found}")
        facts = facts_of(task.run)


def _after(run: Run, facts: Facts, course: _Course, failure: Failure) -> Path | None:
    """From which checkpoint it could go on after a failure; one that cannot be loaded is put aside for an older one."""
    if failure.cause != "checkpoint":
        return _good_checkpoint(run, facts, spare_disk=failure.cause == "disk full")
    bad = run.output / str(runs.attempts(run)[-1].from_checkpoint)
    _set_aside(run, Skipped(bad, (failure.what,)), keep_it=True)
    course.unloadable = (*course.unloadable, bad.name)
    older = _good_checkpoint(run, facts, spare_disk=False)
    for name in course.unloadable if older is None else ():  # not the files are at fault, then: keep them for a resume
        if (run.rejected / name).is_dir():
            (run.rejected / name).replace(run.output / name)
    return older


def _decide(task: Task, facts: Facts, course: _Course, older: Path | None) -> Action:
    action = recover.decide(
        Situation(
            failure=course.failures[-1],
            before=course.failures[:-1],
            attempts=course.attempts,
            precision=loaded_precision(task.run) or facts.decided.precision,
            attention=facts.attention,
            micro_batch=facts.micro_batch,
            arch=facts.arch,
            may_recover=task.may_recover,
            may_change=facts.nodes == 1,
            nothing_older=older is None,
        )
    )
    if action.change:
        course.attempts = 0
    edited = ", ".join(task.edited()) if action.resume else ""
    if edited:  # an attempt reads its data anew: it would go on with other rows than it began with
        told = f"{edited} changed since the run began: put it back, or resume with --accept-changes"
        return Action(False, f"{action.why}; {told}")
    return action


def _reached(checkpoint: Path | None) -> int:
    return step_of(checkpoint) if checkpoint else 0


def _good_checkpoint(run: Run, facts: Facts, spare_disk: bool) -> Path | None:
    """The newest good checkpoint; the broken ones above it are put out of LLaMA-Factory's way."""
    good, skipped = runs.newest_good(run, facts.decided.processes, facts.ranks)
    if skipped:
        shutil.rmtree(run.rejected, ignore_errors=True)  # one generation: several would fill the disk
    for bad in skipped:
        _set_aside(run, bad, keep_it=not spare_disk)
    if good and facts.begins_anew:
        runs.note(run, "not resumable", why=f"the training begins anew: {facts.begins_anew}")
        for each in run.checkpoints():
            _set_aside(run, Skipped(each, (facts.begins_anew,)), keep_it=True)
        return None
    if good:
        runs.seal(run, good)
    return good


def _set_aside(run: Run, bad: Skipped, keep_it: bool) -> None:
    """Keep the last rejected checkpoint of a step for a look; LLaMA-Factory rotates and resumes by number alone."""
    there = run.rejected / bad.folder.name
    shutil.rmtree(there, ignore_errors=True)
    if keep_it:
        run.rejected.mkdir(exist_ok=True)
        bad.folder.replace(there)
    else:
        shutil.rmtree(bad.folder, ignore_errors=True)
    runs.note(run, "checkpoint rejected", checkpoint=bad.folder.name, why="; ".join(bad.why))


def _tell_recovering(task: Task, failure: Failure, action: Action, checkpoint: Path | None) -> None:
    runs.note(
        task.run,
        "recovering",
        cause=failure.cause,
        step=failure.step,
        why=action.why,
        change=dict(action.change) or None,
        from_checkpoint=checkpoint.name if checkpoint else "the beginning",
        pause_seconds=action.pause_seconds,
    )
    task.tell("recovering", action.why)


def _pause(seconds: float, stop: Stop) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop.asked:
        time.sleep(0.1)


def _room_came(run: Run, facts: Facts, stop: Stop) -> bool:
    """Wait for somebody to make room on the disk."""
    space, until = DiskSpace(run, facts.decided.arguments), time.monotonic() + ROOM_SECONDS
    while not space.room() and not stop.asked and time.monotonic() < until:
        _pause(ROOM_LOOK_SECONDS, stop)
    return space.room() and not stop.asked


def _end(task: Task, attempt: Attempt, ending: Ending, why: str | None) -> Ending:
    run = task.run
    runs.record(run, replace(attempt, ended=time.time(), ending=ending, why=why))
    for checkpoint in run.checkpoints() if ending != "finished" else ():
        runs.seal(run, checkpoint)
    kept = run.checkpoints()[-1].name if ending == "stopped" and run.checkpoints() else None
    runs.note(run, ending, attempt=attempt.attempt, returncode=attempt.returncode, why=why, checkpoint=kept)
    task.tell(ending, why or "")
    return ending

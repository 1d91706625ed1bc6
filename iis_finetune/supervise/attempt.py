"""One attempt: start the training, watch it, end it, say how it ended."""

import os
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from .. import launch, process, runs
from ..observe import Seen, Watcher, began, killed_for_memory, named_in_kernel_log, raised, tail
from ..recover import Cause, Failure, cause_in, in_loading
from ..runs import Attempt, Ending, Run
from .disk import DiskSpace, Sealing
from .task import Facts, Stop, Task

FIRST_TREE_SECONDS, FIRST_TREES, TREE_SECONDS = 5.0, 12, 30.0
DUMP_SECONDS, EXIT_SECONDS = 3.0, 60.0
LOG_BYTES = 262_144


class Start(Struct, frozen=True):
    """Where an attempt begins: a checkpoint or None, what was changed for it."""

    checkpoint: Path | None
    change: Mapping[str, Any]


class Outcome(Struct, frozen=True):
    """How an attempt ended: for good, and why, or by a failure to decide about."""

    attempt: Attempt
    end: Ending | Failure
    why: str | None = None


@dataclass
class LiveAttempt:
    """The moving parts of one attempt."""

    task: Task
    stop: Stop
    attempt: Attempt
    watcher: Watcher
    space: DiskSpace
    sealing: Sealing
    requested: str | None = None
    seen: Seen | None = None
    looked_at: float = float("-inf")
    looks: int = 0
    killed_before: int | None = field(default_factory=killed_for_memory)

    @property
    def run(self) -> Run:
        return self.task.run

    def know_workers(self, now: float) -> None:
        """Keep the list of workers up to date: once their parent is gone, nothing else leads to them."""
        pause = FIRST_TREE_SECONDS if self.looks < FIRST_TREES else TREE_SECONDS
        if now - self.looked_at < pause or not self.attempt.process:
            return
        self.looked_at, self.looks = now, self.looks + 1
        workers = tuple(who for who in self.attempt.living() if who != self.attempt.process)
        if set(workers) - set(self.attempt.workers):
            self.attempt = replace(self.attempt, workers=workers)
            runs.record(self.run, self.attempt)

    def request(self, why: str) -> None:
        """Ask the training for a checkpoint at its step's end; one that has not begun has nothing to save."""
        self.requested = why
        if self.run.loaded.exists():
            self.run.stop_requested.touch()
            runs.note(self.run, "stop requested", why=why, waits_for="a checkpoint at the end of the step under way")
        else:
            self.kill()

    def kill(self) -> None:
        process.end(self.attempt.living(), 0)

    def dump(self) -> None:
        """Have every process write down where it stands."""
        left = self.attempt.living()
        process.send(left, signal.SIGUSR1)
        time.sleep(DUMP_SECONDS)
        for who in left if shutil.which("py-spy") else ():
            done = process.capture(["py-spy", "dump", "--pid", str(who.pid)], 20)
            runs.write(self.run.folder / f"stacks-{who.pid}.log", done.stdout if done else "")
        runs.note(self.run, "stacks dumped", files=[path.name for path in self.run.stacks()])


def try_once(task: Task, facts: Facts, start: Start, stop: Stop) -> Outcome:
    """Run one attempt to its end; every process of it is gone when this returns."""
    run = task.run
    for left in (run.stop_requested, run.stop_at_step, run.loaded):
        left.unlink(missing_ok=True)
    me = process.identity(os.getpid())
    if me is None:
        raise OSError("this process cannot be found in /proc")
    named = start.checkpoint.name if start.checkpoint else None
    attempt = Attempt(len(runs.attempts(run)) + 1, time.time(), me, from_checkpoint=named, changed=start.change)
    runs.record(run, attempt)
    if stop.asked:
        return Outcome(attempt, "stopped", f"asked to stop ({stop.asked}) before it began")
    runs.note(run, "started", attempt=attempt.attempt, from_checkpoint=named, change=dict(start.change) or None)
    watcher = Watcher(run, time.monotonic(), facts.decided.precision == "fp16", task.stall)
    live = LiveAttempt(task, stop, attempt, watcher, DiskSpace(run, facts.decided.arguments), Sealing(run))
    child = _launch(live, start)
    try:
        _watch(live, child)
    finally:
        live.kill()
        live.sealing.end()
        code = process.ended(child, EXIT_SECONDS)
    live.attempt = replace(live.attempt, returncode=code)
    return _judge(live)


def _launch(live: LiveAttempt, start: Start) -> process.Child:
    run, me = live.run, live.attempt.supervisor
    arguments = launch.resumed_arguments(run, start.checkpoint) if run.output.exists() else run.arguments
    environment = {**live.task.environment, "IIS_SUPERVISOR": f"{me.pid} {me.started}"}
    child = launch.start(run, environment, arguments)
    live.attempt = replace(live.attempt, process=process.identity(child.pid))
    runs.record(run, live.attempt)
    return child


def _watch(live: LiveAttempt, child: process.Child) -> None:
    """Look until nothing is left to wait for, or until something is wrong."""
    while child.poll() is None or (_saving(live, child) and live.attempt.living()):
        time.sleep(live.task.poll_seconds)
        live.run.arguments.stat()  # FileNotFoundError: somebody has removed the folder
        now = time.monotonic()
        live.know_workers(now)
        live.sealing.look(now)
        if live.stop.now:
            return
        why = f"asked to stop ({live.stop.asked})" if live.stop.asked else live.space.look(now)
        if why and not live.requested:
            live.request(why)
        live.seen = live.watcher.look(now)
        if live.seen:
            runs.note(live.run, live.seen.trouble, step=live.seen.step, why=live.seen.what)
            if live.seen.trouble == "stall":
                live.dump()
            return


def _saving(live: LiveAttempt, child: process.Child) -> bool:
    """Whether workers that lost their launcher are saving a checkpoint; otherwise they are ended."""
    if child.poll() == -signal.SIGTERM and not live.requested:
        live.request("SIGTERM from outside")  # kill, a shutdown, Slurm: meant for the run, reached the launcher alone
    return live.run.stop_requested.exists()


def _judge(live: LiveAttempt) -> Outcome:
    """How it ended: what was reached counts first, then what was asked for, then what went wrong."""
    run, attempt = live.run, live.attempt
    if attempt.returncode == 0 and runs.reached_last_step(run) and not live.seen:
        wrong = runs.weight_faults(run.output)
        if not wrong:
            return Outcome(attempt, "finished")
        return Outcome(attempt, Failure("not finite", live.watcher.step, "; ".join(wrong)))
    asked = _asked(live)
    return Outcome(attempt, "stopped", asked) if asked else Outcome(attempt, _failure(live))


def _asked(live: LiveAttempt) -> str | None:
    """Who asked for this end; None when it came by itself."""
    code = live.attempt.returncode
    if live.stop.asked:
        return f"asked to stop ({live.stop.asked})"
    if live.seen or code is None:
        return None
    if live.requested:
        return live.requested
    saved = code == 0 and live.run.stop_at_step.exists()
    if saved and not live.run.stop_requested.exists():
        return "another node was asked to stop"
    return "SIGTERM from outside" if saved or code == -signal.SIGTERM else None


def _failure(live: LiveAttempt) -> Failure:
    run, code, step = live.run, live.attempt.returncode, live.watcher.step
    if code is None:
        return Failure("stuck", step, "the training cannot be ended")
    if live.seen:
        return Failure(live.seen.trouble, live.seen.step, live.seen.what)
    log = tail(run.log, LOG_BYTES, live.watcher.begin)
    cause, line = cause_in(log) or ("killed" if code == -signal.SIGKILL else None, "")
    if cause == "killed":
        return _killed(live, step)
    if cause:
        return Failure(_memory(live) if cause == "out of memory" else cause, step, line)
    return _unnamed(live, log)


def _unnamed(live: LiveAttempt, log: str) -> Failure:
    """A failure that no known words in the log name."""
    run, step, begun = live.run, live.watcher.step, live.attempt.from_checkpoint
    why = raised(run.log, live.watcher.begin)
    if why is None and not live.space.room():  # nor was there room for the trace
        return Failure("disk full", step, "the disk is full")
    why = why or _code(live.attempt.returncode)
    if begun and in_loading(log):
        return Failure("checkpoint", step, f"{begun} cannot be loaded: {why}")
    return Failure("crash" if began(run) else "refused", step, why)


def _killed(live: LiveAttempt, step: int | None) -> Failure:
    """The kernel kills for memory with the same signal that anyone can send; its counters tell which it was."""
    before, now = live.killed_before, killed_for_memory()
    pids = [who.pid for who in (live.attempt.process, *live.attempt.workers) if who]
    if (before is not None and now is not None and now > before) or named_in_kernel_log(pids):
        return Failure(_memory(live), step, "the kernel killed the training: the computer's memory is full")
    return Failure("killed", step, "killed by SIGKILL from outside")


def _memory(live: LiveAttempt) -> Cause:
    """A smaller micro-batch helps only once the model is loaded."""
    return "out of memory" if began(live.run, live.watcher.begin) else "no memory to load"


def _code(code: int | None) -> str:
    if code == 0:
        return "the training program ended without reaching the last step"
    return f"ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"

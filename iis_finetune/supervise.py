"""Start a run's training, watch it, end it; the only writer of attempts and events while a run lives."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import FrameType

from . import launch, process
from .observe import raised
from .runs import Attempt, Ending, Run, attempts, end, note, reached_last_step, record

POLL_SECONDS = 0.5
GRACE_SECONDS = 30.0


@dataclass
class Stop:
    """Set by SIGTERM or SIGINT to the supervisor; a hang-up is ignored."""

    asked: str | None = None

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name


def supervise(run: Run, environment: Mapping[str, str], stop: Stop) -> Ending:
    """Run the training of a prepared folder to its end; `environment` is the training's own, whole."""
    me = process.identity(os.getpid())
    if me is None:
        raise OSError("this process cannot be found in /proc")
    attempt = Attempt(len(attempts(run)) + 1, time.time(), me)
    record(run, attempt)
    note(run, "started", attempt=attempt.attempt)
    child = launch.start(run, environment)
    attempt = replace(attempt, process=process.identity(child.pid))
    record(run, attempt)
    attempt = _wait(run, attempt, child, stop)
    ending, why = _judge(run, attempt, stop)
    end(run, attempt, ending, why)
    note(run, ending, attempt=attempt.attempt, returncode=attempt.returncode, why=why)
    return ending


def _wait(run: Run, attempt: Attempt, child: process.Child, stop: Stop) -> Attempt:
    """Wait for the program's end, or end it when asked to; returns the attempt with its processes and exit code."""
    began = time.monotonic()
    while child.poll() is None and not stop.asked:
        time.sleep(POLL_SECONDS)
        if attempt.process and not attempt.workers and time.monotonic() - began > 5:
            attempt = replace(attempt, workers=tuple(process.tree(attempt.process)[1:]))
            record(run, attempt)
    if attempt.process:
        _end_all(attempt, child)
    return replace(attempt, returncode=child.wait())


def _end_all(attempt: Attempt, child: process.Child) -> None:
    """End what still runs: the tree as it is now, and workers that their parent left behind."""
    now = process.tree(attempt.process) if attempt.process else []
    left = {who.pid: who for who in (*attempt.workers, *now) if process.alive(who)}
    process.end(list(left.values()), GRACE_SECONDS)
    if child.poll() is None:
        child.kill()


def _judge(run: Run, attempt: Attempt, stop: Stop) -> tuple[Ending, str | None]:
    if stop.asked:
        return "stopped", f"asked to stop ({stop.asked})"
    if attempt.returncode == 0 and reached_last_step(run):
        return "finished", None
    if attempt.returncode == 0:
        return "failed", "the training program ended without reaching the last step"
    if attempt.returncode is not None and attempt.returncode < 0:
        return "failed", f"killed by {signal.Signals(-attempt.returncode).name}"
    return "failed", raised(run.log) or f"exit code {attempt.returncode}"

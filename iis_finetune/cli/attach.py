"""Follow a detached start, or a run, from the terminal; nothing here can harm what is followed."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

from .. import process, runs
from ..errors import FINE, INTERRUPTED, RUN_FAILED
from ..observe import Signs, follow, last_lines, signs
from ..process import Identity
from ..runs import Request, Run
from . import result, show
from .words import workspace

POLL_SECONDS = 0.3
PLAIN_SECONDS = 10.0
SILENT_SECONDS = 30.0
LONGEST_LINE = 150


class Meter:
    """The progress of one run: a bar on a terminal, a line every few seconds otherwise."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.told: int | None = None
        self.printed = time.monotonic()
        self.bar: Any = None
        self.task: Any = None

    def update(self, final: bool = False) -> None:
        now = signs(self.run)
        if now.step is None:
            self._before_the_first_step()
        if now.step is None or now.step == self.told:
            return
        first = self.told is None
        if sys.stdout.isatty():
            self.told = now.step
            self._draw(now)
        elif first or final or now.step == now.total_steps or time.monotonic() - self.printed >= PLAIN_SECONDS:
            self.told, self.printed = now.step, time.monotonic()
            show.line(sentence(now))

    def _before_the_first_step(self) -> None:
        """Loading a large model takes minutes: what LLaMA-Factory said last shows that it is at work."""
        if time.monotonic() - self.printed >= SILENT_SECONDS:
            self.printed = time.monotonic()
            show.line(f"no step yet; the log's end: {' '.join(last_lines(self.run.log, 1))[:LONGEST_LINE]}")

    def _draw(self, now: Signs) -> None:
        if self.bar is None:
            from rich.progress import BarColumn, Progress, TextColumn

            self.bar = Progress(TextColumn(self.run.name), BarColumn(), TextColumn("{task.fields[text]}"))
            self.task = self.bar.add_task("", total=now.total_steps, text="")
            self.bar.start()
        self.bar.update(self.task, completed=now.step, total=now.total_steps, text=sentence(now))

    def close(self) -> None:
        self.update(final=True)
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def sentence(now: Signs) -> str:
    """`step 12/300  loss 2.113  grad norm 0.81  learning rate 1e-05  1240 tokens/s  4 min 10 s left`."""
    parts = [f"step {now.step}/{now.total_steps}"]
    for name, value in (("loss", now.loss), ("grad norm", now.grad_norm), ("learning rate", now.learning_rate)):
        parts += [f"{name} {value:.4g}"] if value is not None else []
    parts += [f"{now.tokens_per_second:.0f} tokens/s"] if now.tokens_per_second else []
    return "  ".join([*parts, f"{show.duration(now.eta_seconds)} left"])


def to_request(request: Request, supervisor: Identity) -> int:
    """Follow a start until it ends; Ctrl-C asks it to stop and waits for that."""
    follower = _Follower(request)
    asked = False
    while True:
        try:
            while follower.code is None and process.alive(supervisor):
                follower.step()
                time.sleep(POLL_SECONDS)
            follower.step()
            break
        except KeyboardInterrupt:
            if asked:
                process.send([supervisor], signal.SIGQUIT)
                continue
            asked = True
            run = follower.meter.run if follower.meter else None
            what = waiting_for(run) if run else "waiting for what it is doing"
            show.aside(f"stopping; {what} (Ctrl-C again ends it at once)")
            process.send([supervisor], signal.SIGINT)
    follower.close()
    if follower.code is None:
        show.aside(f"error: the supervisor is gone; the end of {request.log}:")
        for text in last_lines(request.log, 15):
            show.aside(f"  {text}")
        return INTERRUPTED if asked else RUN_FAILED
    return follower.code


def waiting_for(run: Run) -> str:
    """What a stop waits for, and about how long that takes."""
    pace = signs(run).seconds_per_step
    usual = f", about {show.duration(pace)} a step" if pace and pace >= 1 else ""
    return f"waiting for the step under way and its checkpoint{usual}"


class _Follower:
    """Prints what a request tells; knows the exit code once it is told."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.position = 0
        self.code: int | None = None
        self.meter: Meter | None = None

    def step(self) -> None:
        for text, position in follow(self.request.progress, self.position):
            self.position = position
            self._tell(runs.json_object(text))
        if self.meter:
            self.meter.update()

    def _tell(self, told: dict[str, Any]) -> None:
        self.close()
        if "run" in told and "phase" not in told:
            run = Run(workspace().runs / told["run"])
            show.line(f"run {run.name}: {run.folder}")
            self.meter = Meter(run)
        elif "phase" in told:
            show.line(f"{told['phase']} ...")
        elif "exit" in told:
            self.code = int(told["exit"])
        else:
            result.tell(told, workspace().runs)

    def close(self) -> None:
        if self.meter:
            self.meter.close()
            self.meter = None


def to_run(run: Run) -> int:
    """Follow a run that is already there; Ctrl-C only looks away."""
    meter = Meter(run)
    try:
        while runs.state(run) in ("starting", "running"):
            meter.update()
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        meter.close()
        show.line(f"\n{run.name} goes on; next: iis-finetune status {run.number:04d}")
        return FINE
    meter.close()
    show.line(f"{run.name}: {runs.state(run)}")
    return FINE if runs.state(run) == "finished" else RUN_FAILED

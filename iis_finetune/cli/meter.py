"""Show the progress of a training or a download: bars on a terminal, lines otherwise."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from rich.filesize import decimal

from ..hub import Progress
from ..observe import Signs, evaluating, last_lines, signs
from ..runs import Run
from . import show

STEP_SECONDS, DOWNLOAD_SECONDS = 10.0, 5.0  # between two lines
SILENT_SECONDS = 30.0
LONGEST_LINE = 150


class StepMeter:
    """The progress of one run: a bar on a terminal, a line every few seconds otherwise."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.told: int | None = None
        self.evaluating: str | None = None
        self.printed = time.monotonic()
        self.bar: Any = None
        self.task: Any = None

    def update(self) -> None:
        busy = evaluating(self.run)
        if busy:
            self._tell_evaluating(busy)
        else:
            self._tell_step()

    def _tell_step(self, final: bool = False) -> None:
        now = signs(self.run)
        if now.step is None:
            self._before_the_first_step()
        if now.step is None or now.step == self.told:
            return
        first = self.told is None
        if sys.stdout.isatty():
            self.told = now.step
            self._draw(now)
        elif first or final or now.step == now.total_steps or time.monotonic() - self.printed >= STEP_SECONDS:
            self.told, self.printed = now.step, time.monotonic()
            show.line(sentence(now))

    def _before_the_first_step(self) -> None:
        """Loading a large model takes minutes: what LLaMA-Factory said last shows that it is at work."""
        if time.monotonic() - self.printed >= SILENT_SECONDS:
            self.printed = time.monotonic()
            show.line(f"no step yet; last line of the log: {' '.join(last_lines(self.run.log, 1))[:LONGEST_LINE]}")

    def _tell_evaluating(self, text: str) -> None:
        """A line whenever it is further on, every few seconds at most."""
        if text != self.evaluating and time.monotonic() - self.printed >= (STEP_SECONDS if self.evaluating else 0):
            self._end_bar()
            self.evaluating, self.printed = text, time.monotonic()
            show.line(text)

    def _draw(self, now: Signs) -> None:
        if self.bar is None:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bars

            self.bar = Bars(
                TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[text]}")
            )
            self.task = self.bar.add_task(show.shown(self.run.name), total=now.total_steps, text="")
            self.bar.start()
        self.bar.update(self.task, completed=now.step, total=now.total_steps, text=sentence(now))

    def close(self) -> None:
        if self.evaluating is None:
            self._tell_step(final=True)
        self._end_bar()

    def _end_bar(self) -> None:
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


class DownloadMeter:
    """Shows a download: bars on a terminal, a line every few seconds otherwise; called from several threads."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.printed, self.began = say, time.monotonic(), time.monotonic()
        self.first: int | None = None
        self.lock = threading.Lock()
        self.bar: Any = None
        self.tasks: dict[str, Any] = {}

        if sys.stderr.isatty():
            self.bar = _bars()
            self.bar.start()

    def close(self) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, progress: Progress) -> None:
        with self.lock:
            if progress.note:
                self.say(progress.note)
            elif self.bar:
                self._draw(progress)
            elif time.monotonic() - self.printed >= DOWNLOAD_SECONDS:
                self.printed = time.monotonic()
                self.say(self.sentence(progress))

    def _draw(self, progress: Progress) -> None:
        parts = ((progress.path, progress.path_bytes, progress.path_total_bytes),)
        for name, done, total in (*parts, ("total", progress.bytes, progress.total_bytes)):
            if name not in self.tasks:
                self.tasks[name] = self.bar.add_task(name, total=total)
            self.bar.update(self.tasks[name], completed=done)

    def sentence(self, progress: Progress) -> str:
        """`412.0 MB of 15.2 GB  38.1 MB/s  6 min 28 s left  model-00001-of-00004.safetensors`."""
        self.first = progress.bytes if self.first is None else self.first
        rate = (progress.bytes - self.first) / max(time.monotonic() - self.began, 1e-3)
        left = (progress.total_bytes - progress.bytes) / rate if rate > 0 else None
        done = f"{decimal(progress.bytes)} of {decimal(progress.total_bytes)}"
        return f"{done}  {decimal(int(rate))}/s  {show.duration(left)} left  {progress.path}"


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Bars("{task.description}", *columns, console=Console(stderr=True))

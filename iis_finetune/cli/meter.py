"""Show the progress of a training or a download: drawn on a terminal, lines otherwise."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from rich.filesize import decimal

from ..hub import Progress
from ..observe import HeldOut, Signs, evaluating, follow, held_out, last_lines, signs, take
from ..runs import Run, json_object
from . import show

STEP_SECONDS, DOWNLOAD_SECONDS = 10.0, 5.0  # between two lines
SILENT_SECONDS = 30.0
LONGEST_LINE = 150
FEWEST_COLUMNS = 8  # of a bar
CURVE_ROWS, FEWEST_LOSSES = 5, 5
EIGHTHS = " ▁▂▃▄▅▆▇█"


class StepMeter:
    """The progress of one run: its loss curve and a bar on a terminal, a line every few seconds otherwise."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.now = Signs()
        self.losses: dict[int, float] = {}  # by step
        self.held: dict[int, float] = {}
        self.read = 0
        self.held_out: HeldOut | None = None
        self.evaluating: str | None = None
        self.printed = time.monotonic()
        self.live: Any = None

    def update(self) -> None:
        busy = evaluating(self.run)
        if busy:
            self._tell_evaluating(busy)
        else:
            self._tell_step()

    def _tell_step(self, final: bool = False) -> None:
        now, told = signs(self.run), self.now.step
        fresh = self._read_log()
        if now.step is None:
            self._before_the_first_step()
        if now.step is None or (now.step == told and not fresh):
            return
        if sys.stdout.isatty():
            self.now = now
            self._draw()
            return
        due = told is None or final or now.step == now.total_steps or time.monotonic() - self.printed >= STEP_SECONDS
        if due and now.step != told:
            self.now, self.printed = now, time.monotonic()
            show.line(sentence(now))
        if fresh:
            show.line(fresh.told)

    def _before_the_first_step(self) -> None:
        """Loading a large model takes minutes: what LLaMA-Factory said last shows that it is at work."""
        if time.monotonic() - self.printed >= SILENT_SECONDS:
            self.printed = time.monotonic()
            show.line(f"no step yet; last line of the log: {' '.join(last_lines(self.run.log, 1))[:LONGEST_LINE]}")

    def _read_log(self) -> HeldOut | None:
        """Read on in the trainer's log; what it says of the held-out rows, when that is new."""
        for text, position in follow(self.run.trainer_log, self.read):
            self.read = position
            take(json_object(text), self.losses, self.held)
        before, self.held_out = self.held_out, held_out(self.losses, self.held)
        return self.held_out if self.held_out and (before is None or self.held_out.step != before.step) else None

    def _draw(self) -> None:
        if self.live is None:
            from rich.live import Live

            self.live = Live(self, auto_refresh=False)
            self.live.start()
        self.live.refresh()

    def __rich_console__(self, _console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        losses = [loss for _, loss in sorted(self.losses.items())]
        if len(losses) >= FEWEST_LOSSES and options.size.height >= 3 * CURVE_ROWS:
            yield Text("\n".join(curve(losses, options.max_width)), style="cyan")
        if self.held_out:
            yield Text(self.held_out.told)
        yield Text(bar(show.shown(self.run.name), self.now, options.max_width))

    def _tell_evaluating(self, text: str) -> None:
        """A line whenever it is further on, every few seconds at most."""
        if text != self.evaluating and time.monotonic() - self.printed >= (STEP_SECONDS if self.evaluating else 0):
            self._end_live()
            self.evaluating, self.printed = text, time.monotonic()
            show.line(text)

    def close(self) -> None:
        if self.evaluating is None:
            self._tell_step(final=True)
        self._end_live()

    def _end_live(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None


def sentence(now: Signs, columns: int | None = None) -> str:
    """`step 12/300  loss 2.113  grad norm 0.81  learning rate 1e-05  1240 tokens/s  4 min 10 s left`.

    On few columns step, loss and time left alone; of the rest what has room, the rate first.
    """
    known = [(f"loss {now.loss:.4g}", 0)] if now.loss is not None else []
    known += [(f"grad norm {now.grad_norm:.4g}", 2)] if now.grad_norm is not None else []
    known += [(f"learning rate {now.learning_rate:.4g}", 3)] if now.learning_rate is not None else []
    known += [(f"{now.tokens_per_second:.0f} tokens/s", 1)] if now.tokens_per_second else []
    parts = [(f"step {now.step}/{now.total_steps}", 0), *known, (f"{show.duration(now.eta_seconds)} left", 0)]
    for least in (3, 2, 1):
        if columns is not None and len("  ".join(text for text, _ in parts)) > columns:
            parts = [part for part in parts if part[1] < least]
    return "  ".join(text for text, _ in parts)


def bar(name: str, now: Signs, columns: int) -> str:
    """A line for so many columns: what a step says of itself; in the rest of it a bar, the run's name before it."""
    said = sentence(now, columns)
    rest = columns - len(said) - 2
    if rest < FEWEST_COLUMNS:
        return said
    beside = f"{name}  " if show.cell_width(name) + 2 + FEWEST_COLUMNS <= rest else ""
    rest -= show.cell_width(beside)
    done = min(rest, rest * (now.step or 0) // (now.total_steps or 1))
    return f"{beside}{'━' * done}{'─' * (rest - done)}  {said}"


def curve(losses: Sequence[float], columns: int) -> list[str]:
    """A small chart of a loss over all steps so far, a column the mean of as many as it stands for."""
    low, high = min(losses), max(losses)
    labels = [f"{value:.3g}" for value in (high, low)]
    margin = max(map(len, labels)) + 1
    wide = min(columns - margin, len(losses))
    edges = [len(losses) * column // wide for column in range(wide + 1)]
    means = [sum(losses[start:end]) / (end - start) for start, end in pairwise(edges)]
    heights = [round((mean - low) / ((high - low) or 1) * (8 * CURVE_ROWS - 1)) + 1 for mean in means]
    rows = []
    for row in reversed(range(CURVE_ROWS)):
        label = {CURVE_ROWS - 1: labels[0], 0: labels[1]}.get(row, "")
        blocks = "".join(EIGHTHS[min(max(height - 8 * row, 0), 8)] for height in heights)
        rows.append(f"{label:>{margin - 1}} {blocks}")
    return rows


class DownloadMeter:
    """Shows a download: bars on a terminal, a line every few seconds otherwise; called from several threads."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.printed, self.began = say, time.monotonic(), time.monotonic()
        self.first: int | None = None
        self.lock = threading.Lock()
        self.bars: Any = None
        self.tasks: dict[str, Any] = {}
        if sys.stderr.isatty():
            from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            self.bars = show.progress_bars("{task.description}", *columns)

    def close(self) -> None:
        if self.bars:
            self.bars.stop()

    def __call__(self, progress: Progress) -> None:
        with self.lock:
            if progress.note:
                self.say(progress.note)
            elif self.bars:
                self._draw(progress)
            elif time.monotonic() - self.printed >= DOWNLOAD_SECONDS:
                self.printed = time.monotonic()
                self.say(self.sentence(progress))

    def _draw(self, progress: Progress) -> None:
        parts = ((progress.path, progress.path_bytes, progress.path_total_bytes),)
        for name, done, total in (*parts, ("total", progress.bytes, progress.total_bytes)):
            if name not in self.tasks:
                self.tasks[name] = self.bars.add_task(name, total=total)
            self.bars.update(self.tasks[name], completed=done)

    def sentence(self, progress: Progress) -> str:
        """`412.0 MB of 15.2 GB  38.1 MB/s  6 min 28 s left  model-00001-of-00004.safetensors`."""
        self.first = progress.bytes if self.first is None else self.first
        rate = (progress.bytes - self.first) / max(time.monotonic() - self.began, 1e-3)
        left = (progress.total_bytes - progress.bytes) / rate if rate > 0 else None
        done = f"{decimal(progress.bytes)} of {decimal(progress.total_bytes)}"
        return f"{done}  {decimal(int(rate))}/s  {show.duration(left)} left  {progress.path}"

"""Follow one attempt from outside: what it prints, how fast it goes, what is wrong with it."""

import math
import re
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from msgspec import Struct

from ..runs import Run
from .signs import LOGGED, number
from .text import size

Trouble = Literal["not finite", "stall"]

COUNTER = re.compile(r"(\d+)/(\d+) \[")
TOTAL = re.compile(r"Total optimization steps = ([\d,]+)")
VALUE = re.compile(r"'(loss|grad_norm)': '?([-+.\w]+)")
KEPT_BYTES = 4096  # of a line that is not yet whole
ZERO_LOGS = 5
# A run that has learned all has a smaller norm; 1, or 1.732, at every log is broken (LlamaFactory#8004, #9567).
LEARNED_NORM = 0.1
SCALER_LOGS = 10  # fp16 begins with steps whose overflow only lowers the loss scale: no weight is touched by them


class StallLimits(Struct, frozen=True):
    """How long without a sign of life is a stall; a step of 20 minutes is ordinary, a large checkpoint silent.

    `factor` times the median step, at least `floor_seconds`; `start_seconds` before the first step.
    """

    factor: float = 5.0
    floor_seconds: float = 900.0
    start_seconds: float = 3600.0


class Seen(Struct, frozen=True):
    """A trouble, in a sentence, and the step at which it was seen."""

    trouble: Trouble
    what: str
    step: int | None


@dataclass
class Watcher:
    """Reads what is new in the log at each look; one for each attempt."""

    run: Run
    now: float
    scaled: bool = False
    limits: StallLimits = field(default_factory=StallLimits)

    def __post_init__(self) -> None:
        self.begin = self.position = size(self.run.log)
        self.alive_at, self.rest, self.counter = self.now, "", ""
        self.step: int | None = None
        self.total: int | None = None
        self.stepped_at: float | None = None
        self.steps: deque[float] = deque(maxlen=50)
        self.zeros = self.overflows = 0
        self.norm: float | None = None
        self.fresh = False

    def look(self, now: float) -> Seen | None:
        """Read on; the first trouble found, else None. `now` is in seconds, monotonic."""
        text = self._new_text()
        if self.fresh:
            self._count(text + self.rest, now)
        for printed in LOGGED.findall(text):
            wrong = self._wrong({name: number(value) for name, value in VALUE.findall(printed)})
            if wrong:
                return Seen("not finite", wrong, self.step)
        return self._stalled(now)

    def _new_text(self) -> str:
        """What was printed since the last look, a line that is not yet whole being kept for the next."""
        try:
            with self.run.log.open("rb") as stream:
                stream.seek(self.position)
                data = stream.read()
        except OSError:
            data = b""
        self.position, self.fresh = self.position + len(data), bool(data)
        text = self.rest + data.decode("utf-8", errors="replace")
        cut = max(text.rfind("\n"), text.rfind("\r")) + 1
        self.rest = text[cut:][-KEPT_BYTES:]
        return text[:cut]

    def _count(self, text: str, now: float) -> None:
        """Note signs of life: any text before the first step, then only a progress bar that moves or a logged step."""
        total = TOTAL.search(text)
        if total:
            self.total = int(total[1].replace(",", ""))
        counters = COUNTER.findall(text)
        if self.step is None or LOGGED.search(text) or (counters and "/".join(counters[-1]) != self.counter):
            self.alive_at = now
        self.counter = "/".join(counters[-1]) if counters else self.counter
        done = [int(at) for at, of in counters if int(of) == self.total]
        if not done or done[-1] == self.step:
            return
        if self.step is not None and self.stepped_at is not None and done[-1] > self.step:
            self.steps.append((now - self.stepped_at) / (done[-1] - self.step))
        self.step, self.stepped_at = done[-1], now

    def _wrong(self, logged: dict[str, float | None]) -> str | None:
        loss, norm = logged.get("loss"), logged.get("grad_norm")
        if loss is not None and not math.isfinite(loss):
            return f"the loss is {loss}"
        overflowed = norm is not None and not math.isfinite(norm)
        self.overflows = self.overflows + 1 if overflowed else 0
        if overflowed and (not self.scaled or self.overflows >= SCALER_LOGS):
            times = f" for {self.overflows} logs in a row" if self.scaled else ""
            return f"the gradient norm is {norm}{times}"
        fixed = norm is not None and norm == self.norm and norm > LEARNED_NORM
        self.zeros = self.zeros + 1 if loss == 0 and (not norm or overflowed or fixed) else 0
        self.norm = norm
        still = f", the gradient norm stays at {norm}" if fixed and not overflowed else ""
        return f"the loss is exactly 0 for {self.zeros} logs in a row{still}" if self.zeros >= ZERO_LOGS else None

    def _stalled(self, now: float) -> Seen | None:
        silent = now - self.alive_at
        if silent < self.limit_seconds():
            return None
        usual = f"; a step takes {statistics.median(self.steps):.0f} s" if self.steps else ""
        return Seen("stall", f"no sign of life for {silent:.0f} s{usual}", self.step)

    def limit_seconds(self) -> float:
        """How long the run may be silent now."""
        if not self.steps:
            return self.limits.start_seconds
        return max(self.limits.floor_seconds, self.limits.factor * statistics.median(self.steps))

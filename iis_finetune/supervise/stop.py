"""What the supervisor was asked by signal."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """SIGTERM or SIGINT ask for a checkpoint and an end, a second SIGINT or SIGQUIT for the end at once."""

    asked: str | None = None
    now: bool = False

    def install(self) -> None:
        """Take the signals over; a hang-up is ignored."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._ask)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        # A second SIGTERM is no hurry: systemd and Slurm send several on the way to one end.
        self.now = self.now or number == signal.SIGQUIT or (number == signal.SIGINT and self.asked == "SIGINT")
        self.asked = signal.Signals(number).name

"""Checksums of the checkpoints while the training goes on, in a thread of the supervisor: no step waits for them."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

from ..runs import Listing, Run, listing, seal, sealed

LOOK_SECONDS = 5.0


@dataclass
class Sealing:
    """Takes a checkpoint as complete when two looks in a row find the same in it."""

    run: Run
    looked_at: float = float("-inf")
    seen: dict[Path, Listing] = field(default_factory=dict)
    thread: threading.Thread | None = None

    def look(self, now: float) -> None:
        """Begin with the newest complete checkpoint that has no checksums; `now` is in seconds, monotonic."""
        if now - self.looked_at < LOOK_SECONDS or (self.thread and self.thread.is_alive()):
            return
        self.looked_at = now
        before, self.seen = self.seen, {path: listing(path) for path in self.run.checkpoints()[-2:]}
        for path, found in reversed(self.seen.items()):
            if found and before.get(path) == found and not sealed(self.run, path):
                self.thread = threading.Thread(target=seal, args=(self.run, path), daemon=True)
                self.thread.start()
                return

    def end(self) -> None:
        """Wait for the one under way."""
        if self.thread:
            self.thread.join()

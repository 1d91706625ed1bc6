"""The checkpoints on the disk while the training goes on: whether the next one fits, and checksums of the others."""

import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..runs import Contents, Run, contents, note, seal, sealed
from .task import loaded_by

LOOK_SECONDS, SEAL_SECONDS = 10.0, 5.0
SPARE_BYTES = 16 * 2**20  # logs, pictures and the final weights' small files
ADAM_BYTES = 12  # a trained parameter in a checkpoint: its weight and two moments, 4 bytes each
GIB = 2**30


@dataclass
class DiskSpace:
    """Looks every few seconds; warns once, then says when the run has to stop while a checkpoint still fits."""

    run: Run
    arguments: Mapping[str, Any]
    looked_at: float = float("-inf")
    warned: bool = False

    def look(self, now: float) -> str | None:
        """Why the run has to stop now; None while there is room. `now` is in seconds, monotonic."""
        if now - self.looked_at < LOOK_SECONDS:
            return None
        self.looked_at = now
        free, need, reserve = self._measured()
        told = f"{free / GIB:.2f} GiB are free, a checkpoint takes {need / GIB:.2f} GiB"
        if free < reserve:
            return f"the disk is nearly full: {told}"
        if free < reserve + 2 * need and not self.warned:
            self.warned = True
            note(self.run, "disk low", why=told)
        return None

    def room(self) -> bool:
        """Whether a checkpoint fits now."""
        free, _, reserve = self._measured()
        return free >= reserve

    def _measured(self) -> tuple[int, int, float]:
        """Free bytes, those of a checkpoint, those that have to stay free."""
        free, need = shutil.disk_usage(self.run.folder).free, self._checkpoint_bytes()
        return free, need, need * (2.1 if self._grows() else 1.1) + SPARE_BYTES

    def _grows(self) -> bool:
        """Whether the next checkpoint comes on top of the others instead of in an old one's place."""
        limit = self.arguments.get("save_total_limit")
        return not limit or len(self.run.checkpoints()) < int(limit)

    def _checkpoint_bytes(self) -> int:
        kept = self.run.checkpoints()
        if len(kept) > 1:
            return sum(size for size, _ in contents(kept[-2]).values())  # the newest one may be half written
        trained = loaded_by(self.run).parameters.get("trainable", {})
        return int(sum(trained.values())) * ADAM_BYTES


@dataclass
class Sealing:
    """Checksums, in a thread that no step waits for; a checkpoint is complete when two looks in a row find the same."""

    run: Run
    looked_at: float = float("-inf")
    seen: dict[Path, Contents] = field(default_factory=dict)
    thread: threading.Thread | None = None

    def look(self, now: float) -> None:
        """Begin with the newest complete checkpoint that has no checksums; `now` is in seconds, monotonic."""
        if now - self.looked_at < SEAL_SECONDS or (self.thread and self.thread.is_alive()):
            return
        self.looked_at = now
        before, self.seen = self.seen, {path: contents(path) for path in self.run.checkpoints()[-2:]}
        for path, found in reversed(self.seen.items()):
            if found and before.get(path) == found and not sealed(self.run, path):
                self.thread = threading.Thread(target=seal, args=(self.run, path), daemon=True)
                self.thread.start()
                return

    def end(self) -> None:
        """Wait for the one under way."""
        if self.thread:
            self.thread.join()

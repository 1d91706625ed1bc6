"""Whether the next checkpoint still fits on the disk."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runs import Run, note
from .task import loaded_by

LOOK_SECONDS = 10.0
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
            return _bytes(kept[-2])  # the newest one may be half written
        trained = loaded_by(self.run).parameters.get("trainable", {})
        return int(sum(trained.values())) * ADAM_BYTES


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # removed while we look
            continue
    return total

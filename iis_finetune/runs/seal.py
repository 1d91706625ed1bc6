"""The checksums of finished checkpoints: a resume starts from the bytes that were saved."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from .documents import read_json, typed, write
from .run import Run

LAST = "trainer_state.json"
Listing = dict[str, tuple[int, int]]  # each file's size and time of change


@dataclass(frozen=True)
class Seal:
    """SHA-256 of each file; `saved` is when: a checkpoint that was saved anew, or copied, is another one."""

    saved: int
    sha256: Mapping[str, str]


def listing(checkpoint: Path) -> Listing:
    """What lies in a checkpoint; nothing while its last file, trainer_state.json, is not there, or as it is removed."""
    try:
        found = {str(path.relative_to(checkpoint)): path.stat() for path in checkpoint.rglob("*") if path.is_file()}
    except OSError:
        return {}
    return {name: (told.st_size, told.st_mtime_ns) for name, told in found.items()} if LAST in found else {}


def sealed(run: Run, checkpoint: Path) -> Seal | None:
    """The seal of this very checkpoint, if it has one."""
    file, now = run.checksums / f"{checkpoint.name}.json", listing(checkpoint)
    read = read_json(file)
    seal = typed(file, Seal, read) if read else None
    return seal if seal and now and seal.saved == now[LAST][1] else None


def seal(run: Run, checkpoint: Path) -> None:
    """Write down the checksums of a checkpoint, once; one that changes or goes meanwhile gets none."""
    before = listing(checkpoint)
    if not before or sealed(run, checkpoint):
        return
    try:
        sums = {name: _sha256(checkpoint / name) for name in before}
        if listing(checkpoint) != before:
            return
        run.checksums.mkdir(exist_ok=True)
        text = json.dumps(asdict(Seal(before[LAST][1], sums)), indent=1) + "\n"
        write(run.checksums / f"{checkpoint.name}.json", text)
        for old in run.checksums.glob("*.json"):
            if not (run.output / old.stem).is_dir():
                old.unlink(missing_ok=True)
    except OSError:  # rotated away while it was read, or no room: it goes on without
        return


def changed(run: Run, checkpoint: Path) -> list[str]:
    """The files of a sealed checkpoint that are not what was saved."""
    seal = sealed(run, checkpoint)
    if seal is None:
        return []
    return [f"{name} is not what was saved" for name, sha256 in seal.sha256.items() if _of(checkpoint / name) != sha256]


def _of(path: Path) -> str | None:
    try:
        return _sha256(path)
    except OSError:
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

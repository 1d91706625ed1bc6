"""Whether a checkpoint is good: every file there, readable, of one step, every weight finite; read without torch.

Checksums of finished checkpoints are kept, so that a resume starts from the bytes that were saved.
"""

import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from msgspec import Struct, to_builtins

from ..tensors import FLOATING, Header, read_header
from .documents import read_json, typed, write_json
from .run import Run, step_of

INCOMPLETE_MARKER = "checkpoint-is-incomplete.txt"  # transformers 5.6, enable_jit_checkpoint; nothing there reads it
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "pytorch_model.bin")
SHARDED_WEIGHTS = "pytorch_model_fsdp_0"  # FSDP with sharded state: a torch.distributed.checkpoint folder
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_0")
ZIPPED = (".pt", ".pth", ".bin")
CHUNK_BYTES = 8 * 2**20
LAST = "trainer_state.json"
Contents = dict[str, tuple[int, int]]  # each file's size and time of change


class Skipped(Struct, frozen=True):
    """A checkpoint that a resume must not use, and every reason."""

    folder: Path
    why: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.folder.name}: {'; '.join(self.why)}"


def newest_good(run: Run, processes: int = 1, ranks: range | None = None) -> tuple[Path | None, list[Skipped]]:
    """Walk back from the newest checkpoint to the first good one; returns it and those skipped, newest first.

    `ranks` are those of the `processes` that save here, all of them unless the run is on several machines.
    """
    skipped: list[Skipped] = []
    for folder in reversed(run.checkpoints()):
        why = faults(folder, processes, ranks) or changed(run, folder)
        if not why:
            return folder, skipped
        skipped.append(Skipped(folder, tuple(why)))
    return None, skipped


def faults(folder: Path, processes: int = 1, ranks: range | None = None) -> list[str]:
    """All that is wrong with a checkpoint; reads every byte of it, about 1 GB a second."""
    if (folder / INCOMPLETE_MARKER).exists():
        return ["its save was broken off"]
    states = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in ranks or range(processes)]
    found = [*_missing(folder, states), *_step(folder)]
    return found or [*_unreadable(folder), *weight_faults(folder)]


def weight_faults(folder: Path) -> list[str]:
    """What is wrong with the safetensors files of a folder: cut off, or holding a value that is not finite."""
    return [f"{path.name} {why}" for path in sorted(folder.glob("*.safetensors")) if (why := _tensor_fault(path))]


def _missing(folder: Path, states: list[str]) -> list[str]:
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    sharded = sorted(name for name in there if re.fullmatch(r"global_step\d+", name))
    found = _deepspeed(folder, sharded, len(states)) if sharded else []
    if not sharded:
        found += ["no optimizer state"] * (not there & set(OPTIMIZERS))
        found += ["no scheduler.pt"] * ("scheduler.pt" not in there)
    if not there & {*WEIGHTS, *INDEXES, SHARDED_WEIGHTS} and not sharded:
        found.append("no weights")
    for index in there & set(INDEXES):
        shards = set(((read_json(folder / index) or {}).get("weight_map") or {"": "a readable index"}).values())
        found += [f"no {name}" for name in sorted(shards - there)]
    for folder_name in there & {SHARDED_WEIGHTS, "optimizer_0"}:
        found += [f"{folder_name} is not whole"] * (not (folder / folder_name / ".metadata").is_file())
    return found + [f"no {name}" for name in states if name not in there]


def _deepspeed(folder: Path, sharded: list[str], processes: int) -> list[str]:
    """ZeRO keeps the optimizer in a folder of its own, one file a process, named by the file `latest`."""
    try:
        latest = (folder / "latest").read_text().strip()
    except OSError:
        return ["no file `latest`"]
    optimizers = list((folder / latest).glob("*optim_states.pt"))
    found = [f"{latest} is not there"] * (latest not in sharded)
    return found or [f"{len(optimizers)} optimizer files for {processes} processes"] * (len(optimizers) < processes)


def _step(folder: Path) -> list[str]:
    state = read_json(folder / "trainer_state.json")
    if state is None:
        return ["no readable trainer_state.json"]
    step = state.get("global_step")
    return [] if step == step_of(folder) else [f"trainer_state.json is of step {step}"]


def _unreadable(folder: Path) -> list[str]:
    """Files of torch.save, zip archives with checksums, that cannot be read back to their end."""
    return [
        f"{path.relative_to(folder)} cannot be read"
        for path in sorted(folder.rglob("*"))
        if path.suffix in ZIPPED and path.name != "training_args.bin" and not _whole_zip(path)
    ]


def _whole_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError):
        return False


def _tensor_fault(path: Path) -> str | None:
    header = read_header(path)
    if header is None:
        return "cannot be read"
    if header.file_bytes != path.stat().st_size:
        return "is cut off"
    try:
        return next((f"has a value that is not finite in {name}" for name in _not_finite(path, header)), None)
    except (OSError, ValueError):
        return "cannot be read"


def _not_finite(path: Path, header: Header) -> Iterator[str]:
    import numpy  # comes with torch; 60 ms that only this check pays

    floating = [(name, each, FLOATING[each.dtype]) for name, each in header.tensors.items() if each.dtype in FLOATING]
    with path.open("rb") as stream:
        for name, tensor, kind in floating:
            stream.seek(tensor.begin)
            for at in range(tensor.begin, tensor.end, CHUNK_BYTES):
                bits = numpy.frombuffer(stream.read(min(CHUNK_BYTES, tensor.end - at)), f"<u{kind.bytes}")
                if ((bits & bits.dtype.type(kind.exponent)) == kind.exponent).any():
                    yield name


class Seal(Struct, frozen=True):
    """SHA-256 of each file; `saved` is when: a checkpoint that was saved anew, or copied, is another one."""

    saved: int
    sha256: Mapping[str, str]


def contents(checkpoint: Path) -> Contents:
    """What lies in a checkpoint; nothing while its last file, trainer_state.json, is not there, or as it is removed."""
    try:
        found = {str(path.relative_to(checkpoint)): path.stat() for path in checkpoint.rglob("*") if path.is_file()}
    except OSError:
        return {}
    return {name: (told.st_size, told.st_mtime_ns) for name, told in found.items()} if LAST in found else {}


def sealed(run: Run, checkpoint: Path) -> Seal | None:
    """The seal of this very checkpoint, if it has one."""
    file, now = run.checksums / f"{checkpoint.name}.json", contents(checkpoint)
    read = read_json(file)
    seal = typed(file, Seal, read) if read else None
    return seal if seal and now and seal.saved == now[LAST][1] else None


def seal(run: Run, checkpoint: Path) -> None:
    """Write down the checksums of a checkpoint, once; one that changes or goes meanwhile gets none."""
    before = contents(checkpoint)
    if not before or sealed(run, checkpoint):
        return
    sums = {name: sha256 for name in before if (sha256 := _sha256(checkpoint / name))}
    if sums.keys() != before.keys() or contents(checkpoint) != before:
        return
    with suppress(OSError):  # no room: it goes on without
        run.checksums.mkdir(exist_ok=True)
        write_json(run.checksums / f"{checkpoint.name}.json", to_builtins(Seal(before[LAST][1], sums)))
        for old in run.checksums.glob("*.json"):
            if not (run.output / old.stem).is_dir():
                old.unlink(missing_ok=True)


def changed(run: Run, checkpoint: Path) -> list[str]:
    """The files of a sealed checkpoint that are not what was saved."""
    seal = sealed(run, checkpoint)
    if seal is None:
        return []
    names = [name for name, sha256 in seal.sha256.items() if _sha256(checkpoint / name) != sha256]
    return [f"{name} is not what was saved" for name in names]


def _sha256(path: Path) -> str | None:
    """None where it cannot be read: rotated away, or broken."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None

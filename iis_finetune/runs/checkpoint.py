"""Whether a checkpoint is good: every file there, readable, of one step, every weight finite; read without torch."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .documents import read_json
from .run import Run, step_of

INCOMPLETE_MARKER = "checkpoint-is-incomplete.txt"  # transformers 5.6, enable_jit_checkpoint; nothing there reads it
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "pytorch_model.bin")
SHARDED_WEIGHTS = "pytorch_model_fsdp_0"  # FSDP with sharded state: a torch.distributed.checkpoint folder
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_0")
ZIPPED = (".pt", ".pth", ".bin")
# A value of these bits in the exponent is infinite or not a number: element size in bytes, mask.
EXPONENTS = {"F64": (8, 0x7FF << 52), "F32": (4, 0xFF << 23), "BF16": (2, 0xFF << 7), "F16": (2, 0x1F << 10)}
CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that a resume must not use, and every reason."""

    folder: Path
    why: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.folder.name}: {'; '.join(self.why)}"


def newest_good(run: Run, processes: int = 1, ranks: range | None = None) -> tuple[Path | None, list[Skipped]]:
    """Walk back from the newest checkpoint to the first good one; returns it and those passed over, newest first.

    `ranks` are those of the `processes` that save here, all of them unless the run is on several machines.
    """
    skipped: list[Skipped] = []
    for folder in reversed(run.checkpoints()):
        why = faults(folder, processes, ranks)
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
    try:
        header, start = read_header(path)
        ends = [row["data_offsets"][1] for row in header.values()]
        if start + max(ends, default=0) != path.stat().st_size:
            return "is cut off"
        return next((f"has a value that is not finite in {name}" for name in _not_finite(path, header, start)), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "cannot be read"


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The tensors of a safetensors file (dtype, shape, data_offsets by name) and where its data starts, in bytes."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("the header is longer than the file")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _not_finite(path: Path, header: dict[str, Any], start: int) -> Iterator[str]:
    import numpy  # comes with torch; 60 ms that only this check pays

    with path.open("rb") as stream:
        for name, row in header.items():
            size, mask = EXPONENTS.get(row["dtype"], (0, 0))
            begin, end = row["data_offsets"]
            stream.seek(start + begin)
            for chunk in _chunks(stream, end - begin) if size else ():
                bits = numpy.frombuffer(chunk, dtype=f"<u{size}")
                if ((bits & bits.dtype.type(mask)) == mask).any():
                    yield name


def _chunks(stream: Any, size: int) -> Iterator[bytes]:
    while size > 0:
        data = stream.read(min(size, CHUNK_BYTES))
        if not data:
            raise ValueError("the file ends within a tensor")
        size -= len(data)
        yield data

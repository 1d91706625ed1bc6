"""Names, dtypes and shapes of the tensors in safetensors files, from their headers alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

LONGEST_HEADER = 100_000_000  # safetensors' own limit in bytes
DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class Headers:
    """The tensors of all the files that were asked for; files that cannot be read are left out."""

    tensors: Mapping[str, Tensor]

    @property
    def dtype(self) -> str | None:
        """The floating dtype most tensors have; None without any."""
        counts = Counter(DTYPES[each.dtype] for each in self.tensors.values() if each.dtype in DTYPES)
        return counts.most_common(1)[0][0] if counts else None

    @property
    def data_bytes(self) -> int:
        return sum(each.size_bytes for each in self.tensors.values())

    @property
    def modules(self) -> frozenset[str]:
        """The last name of each module that holds a tensor: `q_proj`, `embed_tokens`, `norm`."""
        return frozenset(name.split(".")[-2] for name in self.tensors if name.count("."))

    def parameters(self, tied: bool) -> int | None:
        """Number of parameters; an output layer that is tied to the embedding counts once. None without tensors."""
        counted = (
            prod(each.shape)
            for name, each in self.tensors.items()
            if each.dtype in DTYPES and not name.endswith("inv_freq") and not (tied and name == "lm_head.weight")
        )
        return sum(counted) or None


def read_headers(folder: Path, pattern: str = "model*.safetensors") -> Headers:
    """Read the headers of a folder's safetensors files; some milliseconds, whatever the model's size."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob(pattern)):
        tensors |= read_header(path) or {}
    return Headers(tensors)


def read_header(path: Path) -> dict[str, Tensor] | None:
    """The tensors of one file; None when it has no whole header (a git-lfs pointer, a broken download)."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, LONGEST_HEADER)))
        return {
            name: Tensor(row["dtype"], tuple(row["shape"]), row["data_offsets"][1] - row["data_offsets"][0])
            for name, row in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None

"""What safetensors files hold, read from their headers alone; the floating types of numbers by all their names."""

import json
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path

from msgspec import Struct

LONGEST_HEADER = 100_000_000  # safetensors' own limit in bytes


class Dtype(Struct, frozen=True):
    """`exponent` masks the bits of a number that are all set where it is infinite or not a number."""

    torch: str
    safetensors: str
    bytes: int
    exponent: int
    precision: str | None = None  # the kit's name, where one can train in it


DTYPES = (
    Dtype("float64", "F64", 8, 0x7FF << 52),
    Dtype("float32", "F32", 4, 0xFF << 23, "fp32"),
    Dtype("float16", "F16", 2, 0x1F << 10, "fp16"),
    Dtype("bfloat16", "BF16", 2, 0xFF << 7, "bf16"),
)
BYTES = {each.torch: each.bytes for each in DTYPES}
FLOATING = {each.safetensors: each for each in DTYPES}
TORCH_NAMES = {each.precision: each.torch for each in DTYPES if each.precision}
PRECISIONS = {torch: precision for precision, torch in TORCH_NAMES.items()}


class Tensor(Struct, frozen=True):
    """`dtype` is safetensors' name; `begin` and `end` are where the numbers lie in the file, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(Struct, frozen=True):
    """The tensors of one file, or of all the files of a folder; `file_bytes` is how long the files must be."""

    tensors: Mapping[str, Tensor]
    file_bytes: int = 0

    @property
    def dtype(self) -> str | None:
        """Torch's name of the floating type that most tensors have; None without any."""
        counts = Counter(each.dtype for each in self.tensors.values() if each.dtype in FLOATING)
        return FLOATING[counts.most_common(1)[0][0]].torch if counts else None

    @property
    def data_bytes(self) -> int:
        return sum(each.end - each.begin for each in self.tensors.values())

    @property
    def modules(self) -> frozenset[str]:
        """The last name of each module that holds a tensor: `q_proj`, `embed_tokens`, `norm`."""
        return frozenset(name.split(".")[-2] for name in self.tensors if name.count("."))

    def parameters(self, tied: bool) -> int | None:
        """Number of parameters; an output layer that is tied to the embedding counts once. None without tensors."""
        counted = (
            prod(each.shape)
            for name, each in self.tensors.items()
            if each.dtype in FLOATING and not name.endswith("inv_freq") and not (tied and name == "lm_head.weight")
        )
        return sum(counted) or None


def read_header(path: Path) -> Header | None:
    """The header of one file; None when it has no whole one (a git-lfs pointer, a broken download)."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            rows = json.loads(file.read(min(length, LONGEST_HEADER)))
        rows.pop("__metadata__", None)
        start = 8 + length
        tensors = {
            name: Tensor(row["dtype"], tuple(row["shape"]), *(start + offset for offset in row["data_offsets"]))
            for name, row in rows.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Header(tensors, max((each.end for each in tensors.values()), default=start))


def read_headers(folder: Path, pattern: str = "model*.safetensors") -> Header:
    """The headers of a folder's files in some milliseconds; a file that cannot be read is left out."""
    found = [header for path in sorted(folder.glob(pattern)) if (header := read_header(path))]
    tensors = {name: tensor for header in found for name, tensor in header.tensors.items()}
    return Header(tensors, sum(header.file_bytes for header in found))

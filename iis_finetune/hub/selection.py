"""Which of a hub's files training needs, and whether the weights on disk are all there."""

import json
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from ..tables import read
from ..tensors import read_header
from .order import RemoteFile

# Configuration, tokenizer, chat template, modelling code; the patterns are matched against the whole path, so that
# folders with other formats or originals (original/, onnx/, gguf/, consolidated/) are left out.
TEXT = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")
SUBFOLDERS = ("additional_chat_templates/*.jinja",)
SAFETENSORS = re.compile(r"(adapter_)?model([-.][\w.-]*)?\.safetensors")
PYTORCH = re.compile(r"pytorch_model([-.][\w.-]*)?\.bin|adapter_model\.bin")
VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema|int8|int4)[.-]")
HELD_OUT = re.compile(r"(^|[/._-])(test|valid|validation|dev|eval)[/._-]")
TOKENIZER = re.compile(r"tokenizer.*|vocab\..*|.*\.(model|tiktoken)|spiece.*")


def needed(files: Iterable[RemoteFile], texts_alone: bool = False) -> list[RemoteFile]:
    """Return the text files and, if wanted, one set of weights: safetensors where there are any, else PyTorch's."""
    seen = [file for file in files if not any(part.startswith(".") for part in file.path.split("/"))]
    top = [file for file in seen if "/" not in file.path]
    weights = [] if texts_alone else _weights(top)
    index = (".bin" if any(file.path.endswith(".bin") for file in weights) else ".safetensors") + ".index.json"
    texts = [
        file
        for file in top
        if any(fnmatch(file.path, pattern) for pattern in TEXT)
        and (not file.path.endswith(".index.json") or (weights and file.path.endswith(index)))
        and not VARIANT.search(file.path)
        and not file.path.startswith("consolidated")
    ]
    nested = [file for file in seen if any(fnmatch(file.path, pattern) for pattern in SUBFOLDERS)]
    return sorted(texts + nested + weights, key=lambda file: file.path)


def of_rows(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Return the data files of the likeliest ending: those to train on where the names tell, else all."""
    seen = [file for file in files if not re.search(r"(^|/)(\.|dataset_infos?\.json$)", file.path)]
    for ending in read("hubs.toml")["data_endings"]:
        if found := [file for file in seen if file.path.lower().endswith(ending)]:
            train = [file for file in found if "train" in file.path.lower()]
            return train or [file for file in found if not HELD_OUT.search(file.path.lower())] or found
    return []


def _weights(top: list[RemoteFile]) -> list[RemoteFile]:
    for pattern in (SAFETENSORS, re.compile(r"(?!consolidated).*\.safetensors"), PYTORCH):
        found = [file for file in top if pattern.fullmatch(file.path)]
        if found:
            return [file for file in found if not VARIANT.search(file.path)] or found
    return []


def weights_faults(folder: Path) -> list[tuple[str, str]]:
    """Return (file, fault) for each weight file that the shard index or its own header contradicts."""
    faults = []
    for index in sorted(folder.glob("*.index.json")):
        try:
            wanted: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        except (ValueError, KeyError, TypeError):
            faults.append((index.name, "is not a shard index"))
            continue
        for shard in sorted(set(wanted.values())):
            names = {name for name, owner in wanted.items() if owner == shard}
            if fault := _shard_fault(folder / shard, names):
                faults.append((shard, f"{fault} ({index.name})"))
    single = folder / "model.safetensors"
    if single.is_file() and (fault := _shard_fault(single, set())):
        faults.append((single.name, fault))
    return faults


def _shard_fault(shard: Path, names: set[str]) -> str | None:
    """Compare a shard with the index and with the length that its own safetensors header states."""
    if not shard.is_file():
        return "is named by the shard index and missing"
    if shard.suffix != ".safetensors":
        return None
    header = read_header(shard)
    if header is None:
        return "has no safetensors header"
    if shard.stat().st_size != header.file_bytes:
        return "is not as long as its own header says"
    return "lacks tensors that the shard index names" if names - header.tensors.keys() else None


def is_model(folder: Path) -> bool:
    """Return whether a folder without a manifest holds a whole model: configuration, tokenizer and every shard."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    has_weights = any(name.endswith((".safetensors", ".bin")) and (folder / name).is_file() for name in names)
    has_tokenizer = any(TOKENIZER.fullmatch(name) for name in names)
    return "config.json" in names and has_tokenizer and has_weights and not weights_faults(folder)

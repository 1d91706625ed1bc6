"""A precision view: a model folder of links whose config.json names another dtype.

LLaMA-Factory loads weights in the dtype that config.json names, whatever `fp16` and `bf16` say, so FP32 needs a
folder that says so. The original is never touched.
"""

import fcntl
import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..errors import Place, Problem, ProblemsFound
from ..hub import read_manifest
from ..runs import read_json
from ..tensors import TORCH_NAMES
from .facts import CONFIG, ModelFacts

RECORD = ".view.json"
ABSOLUTE = re.compile(r"""(?<![\w.:/~-])~?/(?:[^\s/"',\]}]+/)+([^\s/"',\]}]+)""")


def needs_view(facts: ModelFacts, precision: str) -> bool:
    """Whether the model would load in another dtype than the plan's; quantised weights keep their own."""
    return precision in TORCH_NAMES and facts.quantization is None and facts.dtype != TORCH_NAMES[precision]


def view_path(folder: Path, precision: str, models_root: Path) -> Path:
    """Where the view of a folder lies: `models/<name>@fp32`; a folder elsewhere adds a hash of its real path."""
    name = folder.name
    if folder.parent.resolve() != models_root.resolve():
        name += "-" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return models_root / f"{name}@{precision}"


def precision_view(folder: Path, precision: str, models_root: Path) -> Path:
    """Make the view, or leave one that is up to date; returns its path. Raises ProblemsFound without a config.json."""
    config = read_json(folder / CONFIG)
    if config is None:
        what = f"{folder / CONFIG} is missing or cannot be read"
        raise ProblemsFound([Problem(what, "fetch the model again, whole", Place(str(folder)), kind="missing")])
    path = view_path(folder, precision, models_root)
    record = _record(folder, precision)
    models_root.mkdir(parents=True, exist_ok=True)
    with (models_root / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits, then finds the view made
        if not _up_to_date(path, record):
            _make(path, with_dtype(config, TORCH_NAMES[precision]), record)
    return path


def with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config with every dtype in it replaced, those of the text and vision parts as well."""
    edited = {
        key: with_dtype(value, dtype) if key.endswith("_config") and isinstance(value, dict) else value
        for key, value in config.items()
        if key not in ("dtype", "torch_dtype")
    }
    return {**edited, "dtype": dtype}


def called(model: str) -> str:
    """What to call a model elsewhere: its hub's id where that is known, else its folder's name; never a path."""
    if not Path(model).is_absolute():
        return model
    folder = Path((read_json(Path(model) / RECORD) or {}).get("source", model))
    manifest = read_manifest(folder.resolve())
    name = folder.parent.name if folder.name in ("output", "export") else folder.name
    return manifest.model if manifest else name.partition("@")[0]


def without_folders(text: str) -> str:
    """A text for others: of each absolute path in it the last name alone."""
    return ABSOLUTE.sub(r"\1", text)


def _record(folder: Path, precision: str) -> dict[str, Any]:
    """What the view is made from: each file's real path, size and time; another record makes another view."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    return {
        "source": str(folder.resolve()),
        "precision": precision,
        "files": {each.name: [str(each.resolve()), each.stat().st_size, each.stat().st_mtime_ns] for each in files},
    }


def _up_to_date(path: Path, record: dict[str, Any]) -> bool:
    links = {name: target for name, (target, _, _) in record["files"].items() if name != CONFIG}
    there = all((path / name).is_symlink() and str((path / name).readlink()) == links[name] for name in links)
    return there and (path / CONFIG).is_file() and read_json(path / RECORD) == record


def _make(path: Path, config: dict[str, Any], record: dict[str, Any]) -> None:
    """Build beside, then rename: nobody sees half a view, and a training that reads the old one keeps its files."""
    for left_over in path.parent.glob(f".{path.name}-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    made.chmod(0o755)
    for name, (target, _, _) in record["files"].items():
        if name != CONFIG:
            (made / name).symlink_to(target)
    (made / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (made / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    if path.exists():
        path.rename(made / ".old")
    made.rename(path)
    shutil.rmtree(path / ".old", ignore_errors=True)

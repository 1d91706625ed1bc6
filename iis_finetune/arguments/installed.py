"""Ask an installed LLaMA-Factory for its arguments in a child process, and keep the answer."""

import contextlib
import hashlib
import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from msgspec import Struct

from .. import process, runs

Row = Mapping[str, Any]

PROBE = Path(__file__).parent.parent / "probe" / "arguments.py"
SECONDS = 120.0
SOURCES = ("hparams/*.py", "data/template.py", "data/tool_utils.py", "extras/constants.py", "training_args*.py")


class Installation(Struct, frozen=True):
    """The folders of the two packages, and the Python that imports them."""

    llamafactory: Path
    transformers: Path
    python: str = sys.executable

    @property
    def folders(self) -> tuple[Path, Path]:
        return self.llamafactory, self.transformers


@cache
def ask(installed: Installation) -> Mapping[str, Row] | None:
    """Name -> row of each argument; None where the packages cannot be imported.

    The child takes about 7 s; its answer is kept below ~/.cache/iis-finetune until one of the sources changes.
    """
    kept = Path.home() / ".cache" / "iis-finetune" / f"arguments-{_fingerprint(installed)}.json"
    with contextlib.suppress(OSError, ValueError):
        return _rows(kept.read_text("utf-8"))
    sites = dict.fromkeys(str(folder.parent) for folder in installed.folders)
    done = process.capture([installed.python, str(PROBE), "arguments", *sites], SECONDS)
    if done is None or done.returncode != 0:
        return None
    text = done.stdout.strip().splitlines()[-1]
    with contextlib.suppress(OSError):  # a home that cannot be written to costs the 7 s each time
        kept.parent.mkdir(parents=True, exist_ok=True)
        runs.write(kept, text)
    return _rows(text)


def _rows(text: str) -> Mapping[str, Row]:
    rows: Mapping[str, Row] = json.loads(text)["arguments"]
    return rows


def _fingerprint(installed: Installation) -> str:
    """The files that define the arguments, with size and time: an editable installation changes under its version."""
    files = [PROBE, *(file for folder in installed.folders for each in SOURCES for file in sorted(folder.glob(each)))]
    looks = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((installed.python, looks)).encode()).hexdigest()[:16]

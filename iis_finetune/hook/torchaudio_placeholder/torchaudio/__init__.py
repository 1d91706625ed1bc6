"""Stands in for a torchaudio that cannot load, so that text models train; every use of it says what is missing.

LLaMA-Factory imports torchaudio whatever the model is. This folder is on the path of the training processes only, and
only where set-up found that the installed build does not load.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import ModuleType
from typing import NoReturn

__version__ = "0.0.0+text.only"
__all__: list[str] = []

SENTENCE = (
    "audio needs a torchaudio built for the installed torch, and this environment has none: "
    "install the torchaudio of the same version from the same index as torch, then run `make setup` again"
)


def refuse(module: str, name: str) -> NoReturn:
    # Dunder names are looked up by inspect, pickle and doctest on every module; those must get the ordinary answer.
    if name.startswith("__"):
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    raise ImportError(f"{module}.{name}: {SENTENCE}")


def __getattr__(name: str) -> NoReturn:
    refuse(__name__, name)


for _part in (f"{__name__}.functional", f"{__name__}.transforms"):  # can be imported, not used
    _module = module_from_spec(ModuleSpec(_part, None))
    _module.__getattr__ = partial(refuse, _part)  # type: ignore[method-assign]
    sys.modules[_part] = globals()[_part.rpartition(".")[2]] = _module


class _NoOtherParts:
    """Answers `import torchaudio.anything` with the sentence in place of `No module named`."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        if name.startswith(__name__ + "."):
            raise ImportError(f"{name}: {SENTENCE}")
        return None


# Last in line: the parts that do exist here are found before it.
sys.meta_path.append(_NoOtherParts())

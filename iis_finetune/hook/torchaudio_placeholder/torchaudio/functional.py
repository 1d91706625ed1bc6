"""The placeholder's `torchaudio.functional`: can be imported, not used."""

from __future__ import annotations

from typing import NoReturn

from . import refuse


def __getattr__(name: str) -> NoReturn:
    refuse(__name__, name)

"""Looks at files that a recipe names; a name that no file can have is a file that is not there."""

from __future__ import annotations

from pathlib import Path


def is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def names_in(folder: str) -> list[str]:
    """The names in a folder; none when it is not one."""
    try:
        return [entry.name for entry in Path(folder).iterdir()]
    except (OSError, ValueError):
        return []


def same(one: str, other: str) -> bool:
    """Whether two paths are the same place, links followed."""
    try:
        return Path(one).resolve() == Path(other).resolve()
    except (OSError, ValueError, RuntimeError):
        return one == other

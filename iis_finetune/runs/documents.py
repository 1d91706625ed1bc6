"""Read and write the small files of a run: whole or not at all, one JSON object a line."""

import errno
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..errors import Place, Problem, ProblemsFound

T = TypeVar("T")


@contextmanager
def even_on_a_full_disk() -> Iterator[None]:
    """What is told must not end the one who tells it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a JSON line with the time (seconds since the epoch)."""
    text = json.dumps({"time": time.time(), **line}, ensure_ascii=False) + "\n"
    with path.open("a+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(end - 1, 0))
        half = end > 0 and stream.read() != b"\n"  # the computer went down, or the disk was full, in mid-line
        stream.write(("\n" * half + text).encode())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line; one that is half written is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return
    yield from filter(None, map(json_object, lines))


def json_object(text: str) -> dict[str, Any]:
    """A line as a JSON object; empty when it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def typed(path: Path, kind: type[T], value: Any) -> T:
    """What was read from a file as its record; raises ProblemsFound that names the file."""
    try:
        return msgspec.convert(value, kind)
    except ValueError as wrong:  # not of its type, or a name that is no text
        what, _, at = str(wrong).partition(" - at ")
        key = at.strip("`").removeprefix("$.")
        told = f"{key}: " * bool(key) + what[0].lower() + what[1:]
        what = f"{path.parent.name}/{path.name} is damaged: {told}"
        fix = "mend that line, or put the file back from a copy; the other runs are not touched by it"
        raise ProblemsFound([Problem(what, fix, Place(str(path), key=key))]) from None


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, document: Any) -> None:
    """Whole or not at all, for people to read as well."""
    write(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write(path: Path, text: str) -> None:
    """Whole or not at all: a temporary file beside it, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")  # open() keeps to the umask
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

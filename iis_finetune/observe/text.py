"""Read growing logs: their end, their new lines, the exception that ended a program."""

import re
from collections.abc import Iterator
from pathlib import Path

TAIL_BYTES = 65_536
RAISED = re.compile(r"^(?:\[rank\d+\]: ?)?(\w[\w.]*(?:Error|Exception|Interrupt|Exit|Failure)): ?(.*)$")


def tail(path: Path, size: int = TAIL_BYTES, after: int = 0) -> str:
    """The last bytes of a file as text, from a line's start; progress bars' carriage returns count as line ends.

    Only what lies after the position `after`, in bytes: what an earlier attempt printed is left out.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(0, 2)
            begin = max(after, stream.tell() - size)
            stream.seek(begin)
            data = stream.read()
    except OSError:
        return ""
    text = data.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    return text.partition("\n")[2] if begin > after else text


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log without the progress bars."""
    lines = [line for line in tail(path).splitlines() if line.strip() and "it/s]" not in line and "s/it]" not in line]
    return lines[-count:]


def raised(path: Path, after: int = 0) -> str | None:
    """The exception that ended a program, from its log; torchrun's own report of it is passed over."""
    found = [match for match in map(RAISED.match, tail(path, 4 * TAIL_BYTES, after).splitlines()) if match]
    real = [match for match in found if not match[1].endswith(("ChildFailedError", "CalledProcessError"))]
    return f"{real[-1][1]}: {real[-1][2]}" if real else found[-1][0] if found else None


def follow(path: Path, position: int = 0) -> Iterator[tuple[str, int]]:
    """Whole new lines of a growing file with the position after each; ends where the file ends."""
    try:
        with path.open("rb") as stream:
            stream.seek(position)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                position += len(line)
                yield line.decode("utf-8", errors="replace").rstrip("\n"), position
    except OSError:
        return


def size(path: Path) -> int:
    """Bytes of a file; 0 when it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def changed_at(path: Path) -> float:
    """When a file was last written, in seconds since the epoch; 0 when it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0

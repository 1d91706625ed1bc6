"""The standard streams: closed, full or broken ones lose what is said, never the work and its exit code."""

import errno
import io
import os
import sys
from typing import TextIO


class Lasting(io.FileIO):
    """A descriptor that takes everything; `lost` is the first error, after which all is dropped."""

    lost: OSError | None = None

    def write(self, data: object) -> int:
        if self.lost is None:
            try:
                return super().write(data)  # type: ignore[arg-type]
            except OSError as error:
                self.lost = error
        return memoryview(data).nbytes  # type: ignore[arg-type]


def make_lasting() -> None:
    """Put streams that last in the place of the standard ones; descriptors that are closed lead nowhere."""
    spare = 0
    while spare <= 2:  # else the next file that is opened would be taken for a closed stream
        spare = os.open(os.devnull, os.O_RDWR)
    os.close(spare)
    sys.stdin = sys.stdin or open(0, encoding="utf-8")  # noqa: SIM115
    sys.stdout, sys.stderr = _lasting(1, sys.stdout), _lasting(2, sys.stderr)


def _lasting(number: int, stream: TextIO | None) -> TextIO:
    raw = Lasting(number, "w", closefd=False)
    # A name that is no text is shown escaped, as in `show`.
    encoding = stream.encoding if stream else "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)


def lost(stream: TextIO) -> OSError | None:
    """Why nothing more can be said to a stream; None while it takes what it is told."""
    return getattr(getattr(getattr(stream, "buffer", None), "raw", None), "lost", None)


def ending() -> str | None:
    """The sentence about a stdout that could not take what was asked for; a reader who has left needs none."""
    sys.stdout.flush()
    error = lost(sys.stdout)
    if error is None or error.errno == errno.EPIPE:
        return None
    return f"error: not all could be printed: {error.strerror}"

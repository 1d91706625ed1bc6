"""Read the signs of a run from its files; nothing here changes anything."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .runs import Run

TAIL_BYTES = 65_536
LOGGED = re.compile(r"\{'loss':[^{}]*\}")
RAISED = re.compile(r"^(?:\[rank\d+\]: ?)?(\w[\w.]*(?:Error|Exception|Interrupt|Exit|Failure)): ?(.*)$")
FIRST_STEP = "***** Running training *****"


@dataclass(frozen=True)
class Signs:
    """What a run last said of itself; loss and grad norm as LLaMA-Factory prints them, rates a second."""

    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None


def tail(path: Path, size: int = TAIL_BYTES) -> str:
    """The last bytes of a file as text, from a line's start; progress bars' carriage returns count as line ends."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, 2)
            length = stream.tell()
            stream.seek(max(0, length - size))
            data = stream.read()
    except OSError:
        return ""
    text = data.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    return text.partition("\n")[2] if length > size else text


def signs(run: Run) -> Signs:
    """The newest step, loss and rates; grad norm and loss from the printed line, the only place grad norm is live."""
    logged = _last_logged(run)
    if not logged:
        return Signs()
    printed = _last_printed(run)
    return Signs(
        step=logged.get("current_steps"),
        total_steps=logged.get("total_steps"),
        loss=number(printed.get("loss", logged.get("loss"))),
        grad_norm=number(printed.get("grad_norm")),
        learning_rate=number(logged.get("lr", printed.get("learning_rate"))),
        epoch=number(logged.get("epoch")),
        tokens_per_second=number(logged.get("throughput")),
        eta_seconds=_seconds(logged.get("remaining_time")),
    )


def _last_logged(run: Run) -> dict[str, Any]:
    """The newest line of the trainer's log, completed by the values the closing line leaves out."""
    merged: dict[str, Any] = {}
    for line in tail(run.trainer_log).splitlines()[-3:]:
        try:
            merged.update(json.loads(line))
        except ValueError:
            continue
    return merged


def _last_printed(run: Run) -> dict[str, Any]:
    found = LOGGED.findall(tail(run.log))
    return _literal(found[-1]) if found else {}


def _literal(text: str) -> dict[str, Any]:
    try:
        value = ast.literal_eval(re.sub(r"\b(nan|inf)\b(?!')", "None", text))
    except (ValueError, SyntaxError):
        return {}
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _seconds(text: Any) -> float | None:
    """Seconds of a `1 day, 2:03:04` or `0:00:07`."""
    match = re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)", str(text))
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log without the progress bars."""
    lines = [line for line in tail(path).splitlines() if line.strip() and "it/s]" not in line and "s/it]" not in line]
    return lines[-count:]


def raised(path: Path) -> str | None:
    """The exception that ended a program, from its log; torchrun's own report of it is passed over."""
    found = [match for match in map(RAISED.match, tail(path, 4 * TAIL_BYTES).splitlines()) if match]
    real = [match for match in found if not match[1].endswith(("ChildFailedError", "CalledProcessError"))]
    return f"{real[-1][1]}: {real[-1][2]}" if real else found[-1][0] if found else None


def began(run: Run) -> bool:
    """Whether training reached its first step's start; before it, a refusal is about the input."""
    return run.trainer_log.is_file() or FIRST_STEP in tail(run.log, 4 * TAIL_BYTES)


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

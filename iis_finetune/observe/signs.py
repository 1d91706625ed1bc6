"""What a run last said of itself: step, loss, rates, and a time left that is right after a resume too."""

import ast
import contextlib
import json
import re
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from ..runs import Run, holder, read_json
from .text import TAIL_BYTES, changed_at, tail


class Logged(Struct, frozen=True):
    """A line of LLaMA-Factory's trainer_log.jsonl."""

    current_steps: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    lr: float | None = None
    epoch: float | None = None
    throughput: float | None = None
    total_tokens: float | None = None
    elapsed_time: str | None = None
    remaining_time: str | None = None


LOGGED = re.compile(r"\{'loss':[^{}]*\}")
OWN_BAR = re.compile(r"^(?:Running \S+ requests:)? *\d+%\|.*?(\d+)/(\d+) \[", re.MULTILINE)  # lm_eval's have names
FIRST_STEP = "***** Running training *****"
WINDOW_SECONDS = 60  # the trainer's log tells whole seconds: a shorter window would show their rounding
WINDOW_LINES = 20


class Signs(Struct, frozen=True):
    """What a run last said of itself; loss and grad norm as LLaMA-Factory prints them, rates a second."""

    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    seconds_per_step: float | None = None


def signs(run: Run) -> Signs:
    """The newest step, loss and rates; grad norm and loss from the printed line, the only place grad norm is live."""
    lines = _logged(run)
    if not lines:
        return Signs()
    last = lines[-1] | {key: value for line in lines[-3:] for key, value in line.items() if key not in lines[-1]}
    printed = _last_printed(run)
    pace, tokens = _rates(lines)
    step, total = last.get("current_steps"), last.get("total_steps")
    left = (total - step) * pace if pace and step is not None and total is not None else None
    return Signs(
        step=step,
        total_steps=total,
        loss=number(printed.get("loss", last.get("loss"))),
        grad_norm=number(printed.get("grad_norm")),
        learning_rate=number(last.get("lr", printed.get("learning_rate"))),
        epoch=number(last.get("epoch")),
        tokens_per_second=tokens if tokens is not None else number(last.get("throughput")),
        eta_seconds=left if left is not None else seconds_of(last.get("remaining_time")),
        seconds_per_step=pace,
    )


def _logged(run: Run) -> list[dict[str, Any]]:
    """The newest lines of the trainer's log; one that is still being written is left out."""
    found = []
    for line in tail(run.trainer_log).splitlines():
        with contextlib.suppress(ValueError):
            logged = msgspec.convert(json.loads(line), Logged)  # msgspec's own reader knows no NaN
            found.append({name: value for name, value in asdict(logged).items() if value is not None})
    return found


def _rates(lines: list[dict[str, Any]]) -> tuple[float | None, float | None]:
    """Seconds a step and tokens a second of this attempt; LLaMA-Factory's own count the steps before a resume too."""
    window: list[tuple[int, float, float | None]] = []
    for line in reversed(lines):
        at, step = seconds_of(line.get("elapsed_time")), line.get("current_steps")
        if at is None or step is None or (window and (at > window[-1][1] or step > window[-1][0])):
            break  # an earlier attempt's line: its clock or its step was further on
        window.append((step, at, number(line.get("total_tokens"))))
        if len(window) > WINDOW_LINES and window[0][1] - at >= WINDOW_SECONDS:
            break
    if len(window) < 2:
        return None, None
    (last, now, tokens), (first, before, earlier) = window[0], window[-1]
    if now <= before or last <= first:
        return None, None
    read = (tokens - earlier) / (now - before) if tokens is not None and earlier is not None else None
    return (now - before) / (last - first), read


def _last_printed(run: Run) -> dict[str, Any]:
    found = LOGGED.findall(tail(run.log)) or ["{}"]
    try:
        value = ast.literal_eval(re.sub(r"\b(nan|inf)\b(?!')", "None", found[-1]))
    except (ValueError, SyntaxError):
        return {}
    return value if isinstance(value, dict) else {}


def evaluating(run: Run) -> str | None:
    """How far the evaluation under way is: `evaluating on news: base 40%`; None when the run is not being evaluated."""
    held = holder(run)
    if held is None or held.work != "evaluated":
        return None
    logs = {changed_at(path): path for path in run.evaluation.glob("*/*.log")}
    if not logs or max(logs) < changed_at(run.claim):
        return "evaluating"  # it still reads its rows
    log = logs[max(logs)]
    at, of = (OWN_BAR.findall(tail(log)) or [("0", "1")])[-1]
    parts = [name for name in read_json(log.parent / "rows" / "dataset_info.json") or {} if name.startswith("part-")]
    whole = 1 if log.stem.endswith("-loss") else max(len(parts), 1)
    done = len(list((log.parent / "parts" / log.stem).glob("*.jsonl"))) + int(at) / max(int(of), 1)
    doing = (read_json(log.parent / "state.json") or {}).get("doing", log.stem)
    return f"evaluating on {log.parent.name}: {doing} {min(done / whole, 1):.0%}"


def number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def seconds_of(text: Any) -> float | None:
    """Seconds of a `1 day, 2:03:04` or `0:00:07`."""
    match = re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)", str(text))
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def began(run: Run, after: int = 0) -> bool:
    """Whether the first step began; an end before it means that the input was refused."""
    return (not after and run.trainer_log.is_file()) or FIRST_STEP in tail(run.log, 4 * TAIL_BYTES, after)

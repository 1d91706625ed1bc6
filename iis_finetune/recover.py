"""What to do about a failure: a pure table from what happened so far to the next action."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

from msgspec import Struct, field

from .rules import known_failures
from .tables import read

Cause = Literal[
    "not finite",
    "out of memory",
    "no memory to load",
    "stall",
    "killed",
    "crash",
    "checkpoint",
    "disk full",
    "refused",
    "stuck",
    "left alone",
    "gpu fault",
]

ATTEMPTS_WITHOUT_PROGRESS = 3
PAUSES_SECONDS = (2.0, 5.0, 10.0)
LONGEST_PAUSE_SECONDS = 300.0
LOW_PRECISION = ("fp16", "bf16")


class Failure(Struct, frozen=True):
    """One ending that was not wanted: its cause, the step it was seen at, what was seen in a sentence."""

    cause: Cause
    step: int | None
    what: str


class Situation(Struct, frozen=True):
    """All that the decision rests on.

    `attempts` counts the attempts in a row, this one included, that left no new good checkpoint and changed nothing;
    `precision` is what was really loaded, where that is known. One of several nodes may not change anything alone.
    """

    failure: Failure
    before: tuple[Failure, ...] = ()
    attempts: int = 1
    precision: str = "fp32"
    attention: str = "sdpa"
    micro_batch: int = 1
    arch: str = "cpu"
    may_recover: bool = True
    may_change: bool = True
    nothing_older: bool = False  # no good checkpoint is left


class Action(Struct, frozen=True):
    """Resume after a pause, with `change` made first (precision, attention or micro_batch); or give up, and why."""

    resume: bool
    why: str
    change: Mapping[str, Any] = field(default_factory=dict)
    pause_seconds: float = 0.0


def decide(now: Situation) -> Action:
    """The next action; the same situation always gives the same one."""
    failure = now.failure
    row = next(row for row in read("recovery.toml")["cause"] if row["name"] == failure.cause)
    if not now.may_recover:
        return Action(False, f"{failure.what}; kit.on_failure is `stop`")
    if not row["resume"] or (failure.cause == "checkpoint" and now.nothing_older):
        return _give_up(failure, row["advice"])
    change = next(filter(None, (_safer(name, now) for name in row["change"])), {})
    if change and not now.may_change:
        told = _words(change).removeprefix("going on ")
        return _give_up(failure, f"the nodes have to change together: resume each of them {told}")
    if change:
        return Action(True, f"{failure.what}; {_words(change)}", change, PAUSES_SECONDS[0])
    known = any(old.cause == failure.cause for old in now.before)
    if row["change"] and (known or failure.cause == "out of memory"):
        return _give_up(failure, row["advice"])
    return _again(now, row)


def _again(now: Situation, row: Mapping[str, Any]) -> Action:
    """Try the same again, unless that has been tried often enough."""
    failure = now.failure
    same = 1 + sum(1 for old in now.before if old == failure)
    if row["same"] and same >= row["same"]:
        return _give_up(failure, f"{_count(same)} at the same step: {row['advice']}")
    recent = (*now.before[len(now.before) - now.attempts + 1 :], failure)
    often = sum(1 for old in recent if old.cause == failure.cause)
    if row["times"] and often >= row["times"]:
        return _give_up(failure, f"{_count(often)} without a new checkpoint: {row['advice']}")
    if now.attempts >= ATTEMPTS_WITHOUT_PROGRESS:
        return _give_up(failure, f"{now.attempts} attempts in a row without a new good checkpoint; {row['advice']}")
    return Action(True, failure.what, {}, pause_seconds(now.attempts))


def pause_seconds(attempts: int) -> float:
    """2, 5, 10 seconds, then twice the last, five minutes at most."""
    if attempts <= len(PAUSES_SECONDS):
        return PAUSES_SECONDS[attempts - 1]
    return min(PAUSES_SECONDS[-1] * 2.0 ** (attempts - len(PAUSES_SECONDS)), LONGEST_PAUSE_SECONDS)


def _give_up(failure: Failure, advice: str) -> Action:
    return Action(False, f"{failure.what}; {advice}")


def _count(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def _words(change: Mapping[str, Any]) -> str:
    return "going on with " + ", ".join(f"{name.replace('_', '-')} {value}" for name, value in change.items())


def _safer(name: str, now: Situation) -> dict[str, Any]:
    """A change that makes a training safer, by its name in the table; empty where there is nothing left to change."""
    if name == "precision":
        return {"precision": "fp32"} if now.precision in LOW_PRECISION else {}
    if name == "attention":
        rows = [row for row in read("recovery.toml")["attention"] if row["from"] == now.attention]
        known = (row for row in rows if any(fnmatchcase(now.arch, pattern) for pattern in row["names"]))
        return next(({"attention": row["to"]} for row in known), {})
    # The largest divisor up to the half, so that the accumulation keeps the global batch exactly.
    parts = range(now.micro_batch // 2, 0, -1)
    return next(({"micro_batch": part} for part in parts if now.micro_batch % part == 0), {})


def cause_in(log: str) -> tuple[Cause, str] | None:
    """What a log's text says of the cause, with the line that says it; None when it says nothing known."""
    for row, match in known_failures(log):
        if "cause" in row:
            line = log[log.rfind("\n", 0, match.start()) + 1 :].partition("\n")[0].strip()
            return row["cause"], line[:300]
    return None


def in_loading(log: str) -> bool:
    """Whether a log's trace passes through one of the functions that load a checkpoint."""
    return any(f", in {name}\n" in log for name in read("recovery.toml")["loading"]["functions"])

"""What was tried and what happened: the lines of attempts.jsonl and events.jsonl."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field, to_builtins
from msgspec.structs import replace

from ..process import Identity, tree
from .claim import mark
from .documents import append, even_on_a_full_disk, read_lines, typed, write
from .run import Run

# `interrupted` is an attempt that another one is to follow; if none does, so is the run.
Ending = Literal["finished", "failed", "stopped", "interrupted"]
LAST_SECOND = 1e11  # since the epoch: no calendar shows a later one
When = Annotated[float, Meta(ge=0, lt=LAST_SECOND)]


class Attempt(Struct, frozen=True):
    """One start of the training program: who ran it, from where, how it ended and why."""

    attempt: int
    started: When
    supervisor: Identity
    process: Identity | None = None
    workers: tuple[Identity, ...] = ()
    from_checkpoint: str | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)
    ended: When | None = None
    ending: Ending | None = None
    returncode: int | None = None
    why: str | None = None
    folder: str | None = None  # which one it serves: a copy of a run has no process of its own

    def living(self) -> list[Identity]:
        """Every process of it that still runs, workers that their parent left behind included."""
        known = (who for who in (self.process, *self.workers) if who)
        return list(dict.fromkeys(each for who in known for each in tree(who)))


def attempts(run: Run) -> list[Attempt]:
    """Every attempt, in order; raises ProblemsFound for a damaged file."""
    return list(typed(run.attempts, tuple[Attempt, ...], list(read_lines(run.attempts))))


def record(run: Run, attempt: Attempt) -> None:
    """Write an attempt's line: a new one, or over the earlier line of the same attempt."""
    attempt = replace(attempt, folder=mark(run.folder))
    lines = [old for old in attempts(run) if old.attempt != attempt.attempt]
    text = "".join(json.dumps(to_builtins(each), sort_keys=True) + "\n" for each in [*lines, attempt])
    with even_on_a_full_disk():
        write(run.attempts, text)


def living(run: Run) -> list[Identity]:
    """The training processes of this very folder that live, those without a supervisor too."""
    mine = [each for each in attempts(run) if each.folder in (None, mark(run.folder))]
    return list(dict.fromkeys(who for each in mine for who in each.living()))


def note(run: Run, event: str, **details: Any) -> None:
    """Append a line to events.jsonl: what was seen or done; a detail that is None is left out."""
    with even_on_a_full_disk():
        append(run.events, {"event": event, **{key: value for key, value in details.items() if value is not None}})


def events(run: Run) -> list[dict[str, Any]]:
    """What was seen and done; a line that is none is left out."""
    told = [line for line in read_lines(run.events) if isinstance(line.get("event"), str)]
    return [line for line in told if isinstance(line.get("time"), int | float) and 0 <= line["time"] < LAST_SECOND]

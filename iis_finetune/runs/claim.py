"""One hand on a run folder at a time: a lock that ends with the process that holds it, and who that is."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from msgspec import Struct, to_builtins

from ..errors import COMMAND_LINE, Place, Problem, ProblemsFound
from ..process import Identity, alive, identity, locked
from .documents import even_on_a_full_disk, json_object
from .run import Run, Workspace

Work = Literal["prepared", "trained", "evaluated", "exported", "stopped", "deleted"]


class Holder(Struct, frozen=True):
    """The process that has a run folder, what becomes of the run there, and which folder that is."""

    work: Work
    process: Identity
    folder: str


@dataclass
class Claim:
    """A held run folder; whoever opens it writes what is done."""

    run: Run
    handle: int

    def tell(self, work: Work) -> None:
        """Say what is done with the run from now on."""
        who = identity(os.getpid())
        line = json.dumps(to_builtins(Holder(work, who, mark(self.run.folder)))) + "\n" if who else ""
        with even_on_a_full_disk():  # the lock holds without its text, and `--delete` makes room
            os.pwrite(self.handle, line.encode(), 0)  # in one go: a reader takes the first line
            os.ftruncate(self.handle, len(line))


@contextlib.contextmanager
def claimed(run: Run, work: Work) -> Iterator[Claim]:
    """Hold a run's folder, before anything is written into it; raises ProblemsFound with the process that has it."""
    gone = ProblemsFound([Problem(f"{run.name} is gone", "see `iis-finetune runs`", Place(COMMAND_LINE))])
    try:
        stream = os.fdopen(os.open(run.claim, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    except FileNotFoundError:
        raise gone from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise held(run) from None
        if _mark_of(os.fstat(stream.fileno())) != mark(run.claim):
            raise gone  # deleted between the two lines above
        claim = Claim(run, stream.fileno())
        claim.tell(work)
        try:
            yield claim
        finally:
            stream.truncate(0)


def held(run: Run) -> ProblemsFound:
    """Why nothing may be done with a run now."""
    who = holder(run)
    told = f"{who.work} by process {who.process.pid}" if who else "worked on by another process"
    fix = f"wait for it, or stop it: iis-finetune stop {run.number:04d}"
    return ProblemsFound([Problem(f"{run.name} is being {told}", fix, Place(COMMAND_LINE))])


def holder(run: Run) -> Holder | None:
    """Who has a run folder now; None for a copy of it, whose file names somebody else's folder."""
    try:
        told = json_object(run.claim.read_text(encoding="utf-8", errors="replace").partition("\n")[0])
        found = Holder(told["work"], Identity(**told["process"]), told["folder"])
    except (OSError, KeyError, TypeError):
        return None
    mine = found.work in get_args(Work) and found.folder == mark(run.folder)
    return found if mine and alive(found.process) else None


def mark(path: Path) -> str:
    """What tells a folder or file from its copies and still holds when it is renamed; empty when it is gone."""
    try:
        return _mark_of(path.stat())
    except OSError:
        return ""


def _mark_of(there: os.stat_result) -> str:
    return f"{there.st_dev}:{there.st_ino}"


@contextlib.contextmanager
def turn(workspace: Workspace) -> Iterator[None]:
    """One start after the other: between the look for a free device and the word that it is taken."""
    workspace.runs.mkdir(parents=True, exist_ok=True)
    with locked(workspace.runs / ".turn"):
        yield

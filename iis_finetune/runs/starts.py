"""Detached starts that have no run: those being prepared, and those that failed before they had one."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..process import Identity, alive
from .documents import read_json, read_lines
from .run import Request, Run, Workspace

TOLD_SECONDS = 7 * 86400.0  # how long a failed start is spoken of


class Detached(Struct, frozen=True, kw_only=True):
    """A detached start: what it does; if it failed, the reason and the fix; whether it has its run."""

    request: Request
    name: str
    smoke: bool
    process: Identity
    began: float
    doing: str
    fix: str | None
    made: bool


def starts(workspace: Workspace) -> Iterator[Detached]:
    """Those without a run, the newest first; a failed one only until a later start has its run."""
    found, superseded = [], False
    for folder in (workspace.runs / ".requests").glob("*/"):
        with suppress(OSError, KeyError, TypeError):  # removed meanwhile, or not whole
            if time.time() - Request(folder).progress.stat().st_mtime < TOLD_SECONDS:
                found.append(_read(Request(folder)))
    for start in sorted(found, key=lambda each: each.began, reverse=True):
        superseded = superseded or start.made
        if not start.made and not (superseded and start.fix):
            yield start


def _read(request: Request) -> Detached:
    asked = read_json(request.asked) or {}
    last: dict[str, Any] = {}  # the last word of each kind; of the times, that of the start
    for line in read_lines(request.progress):
        if "phase" in line:
            last.pop("download", None)
        last |= line if "process" not in line else {**line, "began": line["time"]}
    name, who = asked["resume"] or Path(asked["recipe"]).stem, Identity(**last["process"])
    named = Run(Path(last.get("run", last.get("claimed", "-"))))  # its own comes after those of its bases
    made = name in (named.name, named.recipe_name, named.name.partition("-")[2])
    fix, doing = None, last.get("phase", "being examined")
    if last.get("download", {}).get("total_bytes"):
        doing += f": {100 * last['download']['bytes'] // last['download']['total_bytes']} %"
    if not made and ("exit" in last or not alive(who)):
        doing, fix = last.get("failed", "its process ended without a word"), f"see {request.log}"
        for problem in [each for each in last.get("problems", ()) if each["severity"] == "error"][:1]:
            doing, fix = problem["what"], problem["fix"]
    return Detached(
        request=request,
        name=name,
        smoke=asked["smoke"],
        process=who,
        began=last["began"],
        doing=doing,
        fix=fix,
        made=made,
    )

"""The verbs of a run's life: runs, status, watch, logs, stop."""

from __future__ import annotations

import os
import signal
import time
from typing import Annotated, Any

import typer

from .. import process, runs
from ..errors import COMMAND_LINE, Place, Problem, ProblemsFound
from ..observe import follow, last_lines, signs
from ..runs import Run
from . import attach, show
from .words import AsJson, RunName, workspace

Follow = Annotated[bool, typer.Option("-f", "--follow", help="Go on printing as the log grows.")]
Lines = Annotated[int, typer.Option("-n", "--lines", min=1, help="How many of the last lines.")]


def runs_(as_json: AsJson = False) -> None:
    """List the runs with state and progress."""
    rows = [_row(run) for run in runs.listed(workspace())]
    if as_json:
        show.document({"runs": rows})
        return
    if not rows:
        show.line("no runs yet\nnext: iis-finetune train RECIPE")
        return
    show.table(
        ("run", "state", "step", "of", "loss", "started"),
        [(r["run"], r["state"], r["step"], r["total_steps"], r["loss"], _when(r["started"])) for r in rows],
    )


runs_.__name__ = "runs"


def _row(run: Run) -> dict[str, Any]:
    now, tried = signs(run), runs.attempts(run)
    return {
        "run": run.name,
        "recipe": run.recipe_name,
        "state": runs.state(run),
        "started": tried[0].started if tried else None,
        "step": now.step,
        "total_steps": now.total_steps,
        "loss": now.loss,
    }


def _when(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def status(run: RunName, as_json: AsJson = False) -> None:
    """One run: state, step, loss, rates, processes, attempts, events."""
    found = runs.find(workspace(), run)
    content = _status(found)
    if as_json:
        show.document(content)
        return
    for key in ("run", "state", "step", "total_steps", "loss", "grad_norm", "tokens_per_second"):
        show.line(f"{key:18} {show.cell(content[key])}")
    show.line(f"{'time left':18} {show.duration(content['eta_seconds'])}")
    show.line(f"{'processes':18} {', '.join(map(str, content['pids'])) or '-'}")
    for event in content["events"][-8:]:
        details = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("time", "event") and value)
        show.line(f"{_when(event['time'])}   {event['event']}  {details}")
    show.line(f"folder             {found.folder}")


def _status(run: Run) -> dict[str, Any]:
    now, tried = signs(run), runs.attempts(run)
    last = tried[-1] if tried else None
    living = [who.pid for who in process.tree(last.process)] if last and last.process else []
    state = runs.state(run)
    return {
        "run": run.name,
        "recipe": run.recipe_name,
        "state": state,
        "step": now.step,
        "total_steps": now.total_steps,
        "loss": now.loss,
        "grad_norm": now.grad_norm,
        "eta_seconds": now.eta_seconds if state in ("starting", "running") else None,
        "tokens_per_second": now.tokens_per_second,
        "pids": living,
        "supervisor_pid": last.supervisor.pid if last and process.alive(last.supervisor) else None,
        "attempts": list(runs.read_lines(run.attempts)),
        "events": runs.events(run),
    }


def watch(run: RunName) -> None:
    """Follow a run; Ctrl-C looks away and leaves it alone."""
    raise typer.Exit(attach.to_run(runs.find(workspace(), run)))


def logs(run: RunName, following: Follow = False, lines: Lines = 40) -> None:
    """What LLaMA-Factory printed."""
    found = runs.find(workspace(), run)
    for text in last_lines(found.log, lines):
        show.line(text)
    position = found.log.stat().st_size if found.log.is_file() else 0
    while following and runs.state(found) in ("starting", "running"):
        for text, reached in follow(found.log, position):
            position = reached
            show.line(text)
        time.sleep(attach.POLL_SECONDS)


def stop(run: RunName) -> None:
    """Ask a run to end, and wait until it has."""
    found = runs.find(workspace(), run)
    tried = runs.attempts(found)
    if not tried or not process.alive(tried[-1].supervisor):
        what = f"{found.name} is not running: it is {runs.state(found)}"
        raise ProblemsFound([Problem(what, "see `iis-finetune runs`", Place(COMMAND_LINE), code=2)])
    supervisor = tried[-1].supervisor
    process.send([supervisor], signal.SIGTERM)
    show.line(f"{found.name} is asked to stop ...")
    while process.alive(supervisor) and supervisor.pid != os.getpid():
        time.sleep(attach.POLL_SECONDS)
    show.line(f"{found.name}: {runs.state(found)}")

"""The verbs of a run's life: runs, status, watch, logs, stop."""

import math
import signal
import sys
import time
from contextlib import nullcontext
from typing import Annotated, Any

import typer
from msgspec import to_builtins

from .. import process, runs
from ..errors import Misused
from ..observe import devices, evaluating, follow, held_out, last_lines, losses_of, signs
from ..runs import Detached, Run
from . import attach, show, streams
from .words import AsJson, RunName, newest_start, run_named, workspace

Follow = Annotated[bool, typer.Option("-f", "--follow", help="Go on printing as the log grows.")]
Lines = Annotated[int, typer.Option("-n", "--lines", min=1, help="How many of the last lines.")]
Delete = Annotated[str | None, typer.Option("--delete", metavar="RUN", help="Delete a run that is not running.")]
Yes = Annotated[bool, typer.Option("--yes", help="Delete it without a question.")]
Now = Annotated[bool, typer.Option("--now", help="End it at once, without a checkpoint.")]
DEVICE_UNITS = {"memory_used_gib": "GiB", "temperature_celsius": "°C", "power_watts": "W"}


def runs_(as_json: AsJson = False, delete: Delete = None, yes: Yes = False) -> None:
    """List the runs with state and progress, or delete one."""
    if delete:
        _delete(run_named(delete), yes)
        return
    rows, without = [_row(run) for run in runs.listed(workspace())], list(runs.starts(workspace()))
    show.answer({"runs": rows, "starts": [_of_start(each) for each in without]}, as_json)
    if not rows and not without:
        show.line("no runs yet\nnext: iis-finetune recipes")
        return
    for row in rows:
        if row["damaged"]:
            show.aside(f"warning: {row['damaged']}")
        row |= {"state": "evaluating" if row["evaluating"] else row["state"], "started": _when(row["started"])}
    columns = {"total_steps": "of"}
    keys = ("run", "state", "step", "total_steps", "loss", "started")
    if rows:
        show.table([columns.get(key, key) for key in keys], [[row[key] for key in keys] for row in rows])
    for start in without:
        _tell_start(start)


runs_.__name__ = "runs"


def _of_start(start: Detached) -> dict[str, Any]:
    """What `status` says of a start: its folder has none of a run's files, so that all else is unknown."""
    state, pid = ("failed", None) if start.fix else ("starting", start.process.pid)
    told = {"run": None, "recipe": start.name, "state": state, "supervisor_pid": pid}
    return {**_status(Run(start.request.folder)), **told, "doing": start.doing, "fix": start.fix}


def _tell_start(start: Detached) -> None:
    became = "failed before it had a run" if start.fix else "is being prepared"
    show.line(f"{start.name}, started {_when(start.began)}, {became}: {start.doing}")
    show.line(f"  fix: {start.fix}" if start.fix else "next: iis-finetune watch last")


def _delete(run: Run, sure: bool) -> None:
    """Refuses a run that somebody works on, or that still trains without its supervisor."""
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    if not sure and not asks:
        what = f"{run.name} would be deleted with all that it made, and there is no terminal to ask on"
        raise Misused(what, f"iis-finetune runs --delete {run.name} --yes")
    if not sure and not typer.confirm(f"delete {run.name} with all that it made?"):
        show.line(f"{run.name} is kept")
        return
    with runs.claimed(run, "deleted"):
        if not runs.damage(run) and runs.living(run):
            fix = f"iis-finetune stop {run.number:04d}"
            raise Misused(f"{run.name} is running", fix)
        runs.delete(run)
    show.line(f"{run.name} is deleted")


def _row(run: Run) -> dict[str, Any]:
    now, damaged = signs(run), runs.damage(run)
    tried = [] if damaged else runs.attempts(run)
    return {
        "run": run.name,
        "recipe": run.recipe_name,
        "state": None if damaged else runs.state(run),
        "evaluating": evaluating(run),
        "damaged": damaged.what if damaged else None,
        "started": tried[0].started if tried else None,
        "step": now.step,
        "total_steps": now.total_steps,
        "loss": now.loss,
    }


def _when(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def status(run: RunName = "last", as_json: AsJson = False) -> None:
    """One run: state, step, loss, rates, processes, attempts, events."""
    start = newest_start(run)
    if start:
        show.answer(_of_start(start), as_json)
        _tell_start(start)
        return
    found = runs.find(workspace(), run)
    content = _status(found)
    show.answer(content, as_json)
    for key in ("run", "state", "step", "total_steps", "loss", "grad_norm", "tokens_per_second"):
        show.line(f"{key:18} {show.cell(content[key])}")
    if content["held_out"]:
        show.line(content["held_out"]["told"])
    if content["evaluating"]:
        show.line(f"{'now':18} {content['evaluating']}")
    show.line(f"{'time left':18} {show.duration(content['eta_seconds'])}")
    show.line(f"{'processes':18} {', '.join(map(str, content['pids'])) or '-'}")
    for number, device in enumerate(content["device"] or ()):
        told = ", ".join(f"{show.cell(device[key])} {unit}" for key, unit in DEVICE_UNITS.items())
        show.line(f"{f'device {number}':18} {told}")
    for event in content["events"][-8:]:
        details = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("time", "event") and value)
        show.line(f"{_when(event['time'])}   {event['event']}  {details}")
    show.line(f"folder             {found.folder}")


def _status(run: Run) -> dict[str, Any]:
    now, held, state = signs(run), runs.holder(run), runs.state(run)
    active = state in ("starting", "running")
    return {
        "run": run.name,
        "recipe": run.recipe_name,
        "state": state,
        "held": held.work if held else None,
        "step": now.step,
        "total_steps": now.total_steps,
        "loss": _finite(now.loss),
        "grad_norm": _finite(now.grad_norm),
        "held_out": to_builtins(held_out(*losses_of(run))),
        "eta_seconds": now.eta_seconds if active else None,
        "tokens_per_second": now.tokens_per_second,
        "pids": [who.pid for who in runs.living(run)],
        "supervisor_pid": held.process.pid if held else None,
        "attempts": list(runs.read_lines(run.attempts)),
        "events": runs.events(run),
        "device": devices() if active else None,
        "evaluating": evaluating(run),
    }


def _finite(value: float | None) -> float | None:
    """JSON has no word for NaN; the events tell of it."""
    return value if value is not None and math.isfinite(value) else None


def watch(run: RunName = "last") -> None:
    """Follow a run; Ctrl-C leaves it running."""
    start = newest_start(run)
    if start:
        raise typer.Exit(attach.to_request(start.request, start.process, looks=True))
    raise typer.Exit(attach.to_run(runs.find(workspace(), run)))


def logs(run: RunName = "last", following: Follow = False, lines: Lines = 40) -> None:
    """What LLaMA-Factory printed."""
    found = run_named(run)
    for text in last_lines(found.log, lines):
        show.line(text)
    position = found.log.stat().st_size if found.log.is_file() else 0
    while following and not streams.lost(sys.stdout) and runs.state(found) in ("starting", "running"):
        for text, reached in follow(found.log, position):
            position = reached
            show.line(text)
        time.sleep(attach.POLL_SECONDS)


def stop(run: RunName, now: Now = False) -> None:
    """Ask a run for a checkpoint and an end, and wait for both; Ctrl-C stops the waiting, not the run."""
    found = run_named(run)
    held = runs.holder(found)
    if held is None or held.work in ("stopped", "deleted"):
        with runs.claimed(found, "stopped") if runs.living(found) else nullcontext():  # a resume may come meanwhile
            _stop_orphans(found, now)
        return
    supervisor = held.process
    process.send([supervisor], signal.SIGQUIT if now else signal.SIGTERM)
    show.line(
        f"{found.name} is asked to stop{'' if now or held.work != 'trained' else '; ' + attach.waiting_for(found)} ..."
    )
    while (held := runs.holder(found)) and held.process == supervisor:
        time.sleep(attach.POLL_SECONDS)
    kept = found.checkpoints()
    show.line(f"{found.name}: {runs.state(found)}" + (f" with {kept[-1].name}" if kept else ""))
    if runs.state(found) == "stopped":
        show.line(f"next: iis-finetune resume {found.number:04d}")


def _stop_orphans(run: Run, now: bool) -> None:
    """Stop training processes that have lost their supervisor."""
    left = runs.living(run)
    if not left:
        others = [other for other in runs.listed(workspace()) if runs.holder(other)]
        fix = "; ".join(f"iis-finetune stop {other.number:04d}" for other in others) or "nothing is left to stop"
        raise Misused(f"{run.name} is not running: it is {runs.state(run)}", fix)
    if now or not run.loaded.exists():
        process.end(left, 0)
    else:
        run.stop_requested.touch()
        show.line(f"{run.name} has lost its supervisor and is asked to stop; {attach.waiting_for(run)} ...")
        while runs.living(run):
            time.sleep(attach.POLL_SECONDS)
    show.line(f"{run.name}: {runs.state(run)}")

"""`train`: examine, start a detached process that does the rest, attach to it."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import notify, preflight, process, runs
from ..errors import COMMAND_LINE, INPUT, RUN_FAILED, Place, Problem, ProblemsFound, exit_code
from ..plan import Nodes
from ..preflight import Question
from ..runs import Run
from . import attach, bringup, resuming, show
from . import smoke as smoke_run
from .words import Master, Number, Overrides, Rank, RecipeName, RunName, nodes_of, question, workspace

Background = Annotated[bool, typer.Option("--background", help="Return at once; the run goes on by itself.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="The whole path in a minute or two, on a shrunken model.")]
Accept = Annotated[bool, typer.Option("--accept-changes", help="Go on although data or arguments have changed.")]
NAMED_SECONDS = 10.0


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    background: Background = False,
    smoke: Smoke = False,
    nodes: Number = 1,
    node_rank: Rank = 0,
    master: Master = "",
) -> None:
    """Check, fetch what is missing, train, watch; Ctrl-C stops the run."""
    asking = replace(question(recipe, overrides), nodes=nodes_of(nodes, node_rank, master))
    examined = preflight.examine(asking)
    code = exit_code(examined.problems)
    stops = code == INPUT or (code and not smoke)  # a smoke run needs neither the model nor the memory
    show.problems(examined.problems, nothing_started=bool(stops))
    if stops:
        raise typer.Exit(code)
    asked = {"recipe": str(examined.recipe.path.absolute()), "overrides": overrides or [], "smoke": smoke}
    if smoke:
        alone = "; --nodes is not tried" if nodes > 1 else ""
        show.line(f"a smoke run of {examined.recipe.name}: its model shrunken, five steps, on the CPU{alone}")
        start(asked, background)
        return
    resuming.check_devices(examined, asking)
    for decision in examined.plan.decisions:
        if decision.name in ("precision", "attention", "launcher", "nodes"):
            show.line(f"{decision.name}: {decision.value} ({decision.reason})")
    start({**asked, "nodes": asdict(asking.nodes) if asking.nodes else None}, background)


def start(asked: dict[str, Any], background: bool) -> None:
    """Start the detached process that does what is asked; attach to it, or say where it is."""
    request = runs.new_request(workspace(), asked)
    supervisor = _detach(request)
    if not background:
        raise typer.Exit(attach.to_request(request, supervisor))
    run = _run_of(request, supervisor)
    show.line(f"started in the background, process {supervisor.pid}; log: {run.log if run else request.log}")
    show.line(f"next: iis-finetune watch {run.number:04d}" if run else "next: iis-finetune runs")


def _run_of(request: runs.Request, supervisor: process.Identity) -> Run | None:
    """The run that a start makes, if it is there within moments; a base or a download comes first."""
    until = time.monotonic() + NAMED_SECONDS
    while time.monotonic() < until and process.alive(supervisor):
        told = [line for line in runs.read_lines(request.progress) if "run" in line or "phase" in line]
        if told:
            return Run(workspace().runs / told[0]["run"]) if "phase" not in told[0] else None
        time.sleep(0.1)
    return None


def _detach(request: runs.Request) -> process.Identity:
    words = [sys.executable, "-m", "iis_finetune", "_train", str(request.folder)]
    child = process.start(process.Launch(words, dict(os.environ), Path.cwd(), request.log))
    supervisor = process.identity(child.pid)
    if supervisor is None:
        what = f"the supervisor ended at once; see {request.log}"
        raise ProblemsFound([Problem(what, "run it again", Place(COMMAND_LINE), kind="machine")])
    return supervisor


def detached(folder: Path) -> None:
    """The detached process itself; its user is `train`, not a person."""
    request = runs.Request(folder)
    asked = runs.read_json(request.asked) or {}
    if not asked:
        raise typer.Exit(INPUT)
    made = runs.find(workspace(), asked["resume"]) if asked.get("resume") else None
    work = smoke_run.run if asked.get("smoke") else partial(bringup.train, made=made)
    raise typer.Exit(bringup.run(request, _question(asked["recipe"], asked["overrides"], asked.get("nodes")), work))


def _question(recipe: str, overrides: list[str], nodes: dict[str, Any] | None) -> Question:
    return replace(question(recipe, overrides), nodes=Nodes(**nodes) if nodes else None)


def resume(
    run: RunName,
    overrides: Overrides = None,
    accept_changes: Accept = False,
    background: Background = False,
    master: Master = "",
) -> None:
    """Go on with a run from its newest good checkpoint; refused when what it stands on has changed."""
    found = runs.find(workspace(), run)
    now = runs.state(found)
    if now in ("starting", "running", "finished"):
        fix = "nothing is left to do" if now == "finished" else f"iis-finetune watch {found.number:04d}"
        raise ProblemsFound([Problem(f"{found.name} is {now}", fix, Place(COMMAND_LINE))])
    nodes = (runs.read_json(found.decisions) or {}).get("nodes")
    if nodes and master:
        nodes |= asdict(nodes_of(nodes["number"], nodes["rank"], master) or Nodes(**nodes))
    asked = _question(str(found.recipe), overrides or [], nodes)
    examined = resuming.examine_run(found, asked)
    show.problems(examined.problems)
    resuming.check_footing(found, examined, asked, accept_changes)
    resuming.check_devices(examined, asked, found)
    words = {"recipe": str(found.recipe), "overrides": overrides or [], "resume": found.name, "nodes": nodes}
    start({**words, "accept_changes": accept_changes}, background)


def notice(target: str, body: str) -> None:
    """Deliver one notice; its user is the supervisor, not a person."""
    wrong = notify.deliver(target, body, dict(os.environ))
    if wrong:
        show.aside(f"notice not delivered: {wrong}")
        raise typer.Exit(RUN_FAILED)

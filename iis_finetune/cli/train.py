"""The verbs train and resume: examine, start a detached process that does the rest, attach to it."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from msgspec import to_builtins
from msgspec.structs import replace

from .. import dataset, notify, preflight, process, rules, runs, session
from ..errors import COMMAND_LINE, INPUT, RUN_FAILED, Place, Problem, ProblemsFound, errors_of, exit_code
from ..runs import Nodes, Run
from ..session import Order
from . import attach, show
from .download import fetch_rows
from .words import Master, Number, Overrides, Rank, RecipeName, RunName, nodes_of, question, run_named, workspace

Background = Annotated[bool, typer.Option("--background", help="Return at once; the run goes on by itself.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="Try everything in a minute or two, on a very small model.")]
Accept = Annotated[bool, typer.Option("--accept-changes", help="Go on although data or arguments have changed.")]
NAMED_SECONDS = 60.0


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
    placed = nodes_of(nodes, node_rank, master)
    with show.meter("reading rows") as progress:
        asking = replace(question(recipe, overrides), nodes=placed, smoke=smoke, progress=progress)
        examined = preflight.examine(asking)
    _tell_problems(examined.problems, smoke)
    if _register(asking, examined):  # what was fetched has not been read yet
        train(recipe, overrides, background, smoke, nodes, node_rank, master)
        return
    if smoke:
        alone = "; --nodes is not tried" if nodes > 1 else ""
        show.line(f"smoke run of {examined.recipe.name}: a very small model, five steps, on the CPU{alone}")
    else:
        session.check_devices(examined, workspace())
        for decision in examined.plan.decisions:
            if decision.name in ("precision", "attention", "launcher", "nodes", "tuned", "expected_seconds"):
                show.line(f"{decision.name}: {decision.value} ({decision.reason})")
    order = Order(str(examined.recipe.path.absolute()), asking.overrides, None if smoke else asking.nodes, smoke)
    _start(order, asking.readings, background)


def _register(asking: preflight.Question, examined: preflight.Examined) -> bool:
    """Register data sets named by their files or hub ids, now that all else is right; whether some were fetched."""
    data = workspace().data
    dataset.register(asking.also, data)
    fetched = [each for each in asking.also if each.hub_id]
    for each in fetched:
        dataset.add(dataset.OwnFile(path=fetch_rows(each.word, examined.recipe.kit.source), name=each.name), data)
    for each in asking.also:
        show.line(f"registered {each.word} as '{each.name}'")
    return bool(fetched)


def _tell_problems(found: Sequence[Problem], smoke: bool) -> None:
    """Show what is wrong; ends the command unless it can go on: a smoke run needs neither the model nor the memory."""
    code = exit_code(found)
    stops = code == INPUT or (code and not smoke) or rules.NO_LLAMAFACTORY in found
    notes = errors_of(found) if not stops else []
    show.problems([each for each in found if each not in notes], nothing_started=bool(stops))
    if stops:
        raise typer.Exit(code)
    for note in notes:
        show.line(f"note: {note.what}: a smoke run goes without, the training itself needs it ({note.fix})")


def resume(
    run: RunName,
    overrides: Overrides = None,
    accept_changes: Accept = False,
    background: Background = False,
    master: Master = "",
) -> None:
    """Go on with a run from its newest good checkpoint, a finished one as a longer run (max_steps=N); refused when its
    data or arguments have changed."""
    found = run_named(run)
    finished = runs.state(found) == "finished"
    if runs.holder(found):
        raise runs.held(found)
    with show.meter("reading rows") as progress:
        asking = replace(question(str(found.recipe), overrides), nodes=_nodes_of(found, master), progress=progress)
        examined = session.examine_run(found, asking)
    show.problems(examined.problems)
    session.refuse_changes(found, examined, asking, accept_changes)
    session.check_devices(examined, workspace(), found)
    _register(asking, examined)
    if finished:
        schedule = examined.plan.settings["lr_scheduler_type"]
        show.line(f"{found.name} goes on from {found.checkpoints()[-1].name} as a longer run")
        show.line(f"schedule: {schedule} over the longer run: the learning rate goes on from there, not from its end")
    order = Order(asking.recipe, asking.overrides, asking.nodes, resume=found.name, accept_changes=accept_changes)
    _start(order, asking.readings, background)


def _nodes_of(run: Run, master: str) -> Nodes | None:
    """The place among several machines that a run was started with; the first may have a new address."""
    nodes = runs.read_decided(run).nodes
    return nodes_of(nodes.number, nodes.rank, master) if nodes and master else nodes


def _start(order: Order, readings: dataset.Readings, background: bool) -> None:
    """Start the detached process; attach to it, or say where it is."""
    request = session.place(order, workspace(), readings)
    words = [sys.executable, "-m", "iis_finetune", "_train", str(request.folder)]
    child = process.start(process.Launch(words, dict(os.environ), Path.cwd(), request.log))
    supervisor = process.identity(child.pid)
    if supervisor:
        request.tell(process=to_builtins(supervisor))
    else:
        what = f"the supervisor ended at once; see {request.log}"
        raise ProblemsFound([Problem(what, "run it again", Place(COMMAND_LINE), kind="machine")])
    if not background:
        raise typer.Exit(attach.to_request(request, supervisor))
    run = _run_of(request, supervisor)
    if run is None and not process.alive(supervisor):
        raise typer.Exit(attach.to_request(request, supervisor))  # refused: another start was first
    show.line(f"started in the background, process {supervisor.pid}; log: {run.log if run else request.log}")
    show.line(f"next: iis-finetune watch {f'{run.number:04d}' if run else 'last'}")


def _run_of(request: runs.Request, supervisor: process.Identity) -> Run | None:
    """The run that a start makes, if it is there within moments; a base or a download comes first."""
    until = time.monotonic() + NAMED_SECONDS
    while time.monotonic() < until and process.alive(supervisor):
        for line in runs.read_lines(request.progress):
            if "phase" in line:
                return None
            if named := line.get("run", line.get("claimed")):
                return Run(workspace().runs / named)
        time.sleep(0.1)
    return None


def detached(folder: Path) -> None:
    """The detached process itself; its user is `train`, not a person."""
    code = session.carry_out(folder, workspace(), dict(os.environ))
    if code:
        attach.Follower(runs.Request(folder)).step()  # its output is the log that `train` names
    raise typer.Exit(code)


def notice(target: str, body: str) -> None:
    """Deliver one notice; its user is the supervisor, not a person."""
    wrong = notify.deliver(target, body, dict(os.environ))
    if wrong:
        show.aside(f"notice not delivered: {wrong}")
        raise typer.Exit(RUN_FAILED)

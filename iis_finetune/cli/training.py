"""`train`: examine, start a detached process that does the rest, attach to it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import preflight, process, runs
from ..errors import COMMAND_LINE, INPUT, Place, Problem, ProblemsFound, exit_code
from . import attach, bringup, show
from .words import Overrides, RecipeName, question, workspace

Background = Annotated[bool, typer.Option("--background", help="Return at once; the run goes on by itself.")]


def train(recipe: RecipeName, overrides: Overrides = None, background: Background = False) -> None:
    """Check, fetch what is missing, train, watch; Ctrl-C stops the run."""
    examined = preflight.examine(question(recipe, overrides))
    code = exit_code(examined.problems)
    show.problems(examined.problems)
    if code:
        raise typer.Exit(code)
    for decision in examined.plan.decisions:
        if decision.name in ("precision", "attention", "launcher"):
            show.line(f"{decision.name}: {decision.value} ({decision.reason})")
    asked = {"recipe": str(examined.recipe.path.absolute()), "overrides": overrides or []}
    request = runs.new_request(workspace(), asked)
    supervisor = _detach(request)
    if background:
        show.line(f"started in the background, process {supervisor.pid}; log: {request.log}")
        show.line("next: iis-finetune runs")
        return
    raise typer.Exit(attach.to_request(request, supervisor))


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
    raise typer.Exit(bringup.run(request, question(asked["recipe"], asked["overrides"])))

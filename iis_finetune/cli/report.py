"""The verb report."""

from pathlib import Path
from typing import Annotated

import typer

from .. import report as reporting
from .. import runs
from . import show
from .words import workspace

Names = Annotated[list[str], typer.Argument(metavar="RUN...", help="One run, or several to compare.")]
To = Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Write it there; else the run's report.html.")]


def report(names: Names, to: To = None) -> None:
    """One HTML page that needs no network: curves, decisions, events, metrics, answers side by side."""
    found = [runs.find(workspace(), name) for name in names]
    target = to or found[0].report
    if target.is_dir():
        target = target / "report.html"
    runs.write(target, reporting.page(found))
    show.line(f"{target}: {target.stat().st_size / 1024:.0f} KB")

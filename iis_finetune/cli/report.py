"""The verb report."""

from pathlib import Path
from typing import Annotated

import typer

from .. import report as reporting
from .. import runs
from ..errors import COMMAND_LINE, Place, Problem, ProblemsFound
from . import show
from .words import workspace

Names = Annotated[list[str], typer.Argument(metavar="RUN...", help="One run, or several to compare.")]
To = Annotated[
    Path | None,
    typer.Option("--to", metavar="FILE.html|DIR", help="Else report.html of the run, or of several a file in runs/."),
]


def report(names: Names, to: To = None) -> None:
    """One HTML page that needs no network: curves, decisions, events, metrics, answers side by side."""
    found = list(dict.fromkeys(runs.find(workspace(), name) for name in names))
    numbers = "-".join(f"{run.number:04d}" for run in found)
    target = found[0].report if len(found) == 1 else workspace().runs / f"report-{numbers}.html"
    if to is not None:
        target = to if to.suffix.lower() in (".html", ".htm") and not to.is_dir() else to / target.name
    page = reporting.page(found)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        runs.write(target, page)
    except OSError as error:
        what = f"'{target}' cannot be written: {error.strerror}"
        raise ProblemsFound([Problem(what, "give --to another place", Place(COMMAND_LINE, key="--to"))]) from None
    show.line(f"{target}: {target.stat().st_size / 1024:.0f} KB")

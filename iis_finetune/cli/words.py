"""The words that several verbs share: arguments, options, the folders they work in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .. import preflight
from ..runs import Workspace

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or the path of a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Override a value: lora_rank=8, kit.precision=fp32."),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's number, name, unique prefix, or `last`.")]
On = Annotated[str | None, typer.Option("--on", metavar="MACHINE", help="Plan for another machine: mi50x2, h200, cpu.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
Full = Annotated[bool, typer.Option("--full", help="Read every row of the data, not the first 200,000 only.")]


def workspace() -> Workspace:
    """The current folder's; IIS_MODELS and IIS_RUNS move two of its parts."""
    root = Path.cwd()
    models = Path(os.environ.get("IIS_MODELS") or root / "models").expanduser()
    runs = Path(os.environ.get("IIS_RUNS") or root / "runs").expanduser()
    return Workspace(root, models.absolute(), runs.absolute())


def question(recipe: str, overrides: list[str] | None, on: str | None = None, rows: bool = True) -> preflight.Question:
    return preflight.Question(recipe, tuple(overrides or ()), workspace(), dict(os.environ), on, rows)

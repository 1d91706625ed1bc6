"""The verb slurm."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .. import launch, preflight
from ..errors import Problem, exit_code
from ..plan import UNNAMED
from ..runs import write
from . import show
from .words import Number, On, Overrides, RecipeName, nodes_of, question

To = Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Write it there instead of printing it.")]


def slurm(recipe: RecipeName, overrides: Overrides = None, nodes: Number = 1, on: On = None, to: To = None) -> None:
    """A Slurm job of a recipe, printed or written to a file; it saves and queues itself again when told to leave."""
    asked = question(recipe, overrides, on, rows=False)
    examined = preflight.examine(replace(asked, nodes=nodes_of(nodes, 0, f"{UNNAMED}:29500")))
    problems = [*examined.problems, *_unmade(examined)]
    show.problems(problems)
    if exit_code(problems):
        raise typer.Exit(exit_code(problems))
    text = launch.sbatch(examined.plan, shlex.join([recipe, *(overrides or ())]), nodes)
    if to is None:
        show.line(text.rstrip())
    else:
        write(to, text)
        show.line(f"written: {to}\nnext: sbatch {shlex.quote(str(to))}")


def _unmade(examined: preflight.Examined) -> list[Problem]:
    """A base that has still to be trained: every node would, each for itself."""
    missing = [base.recipe for base in (examined.base, examined.reward) if base and not base.ready]
    place = examined.recipe.place("kit.base")
    return [Problem(f"'{each.name}' is not trained yet", f"iis-finetune train {each.path}", place) for each in missing]

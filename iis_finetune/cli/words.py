"""The words that several verbs share: arguments, options, the folders they work in."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .. import preflight
from ..errors import COMMAND_LINE, Place, Problem, ProblemsFound
from ..runs import Nodes, Workspace

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or the path of a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Override a value: lora_rank=8, kit.precision=fp32."),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's number, name, unique prefix, or `last`.")]
On = Annotated[str | None, typer.Option("--on", metavar="MACHINE", help="Plan for another machine: mi50x2, h200, cpu.")]
Number = Annotated[int, typer.Option("--nodes", min=1, metavar="N", help="How many machines train together.")]
Rank = Annotated[int, typer.Option("--node-rank", min=0, metavar="R", help="Which of them this is; the first is 0.")]
Master = Annotated[str, typer.Option("--master", metavar="HOST:PORT", help="Where the first of them is reached.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
Full = Annotated[bool, typer.Option("--full", help="Read every row of the data, not the first 200,000 only.")]


def workspace() -> Workspace:
    """The current folder's; IIS_MODELS and IIS_RUNS move two of its parts, IIS_PPO names stage ppo's environment."""
    root = Path.cwd()
    models = Path(os.environ.get("IIS_MODELS") or root / "models").expanduser()
    runs = Path(os.environ.get("IIS_RUNS") or root / "runs").expanduser()
    ppo = Path(os.environ.get("IIS_PPO") or Workspace.ppo).expanduser()
    return Workspace(root, models.absolute(), runs.absolute(), ppo.absolute())


def question(recipe: str, overrides: list[str] | None, on: str | None = None, rows: bool = True) -> preflight.Question:
    return preflight.Question(recipe, tuple(overrides or ()), workspace(), dict(os.environ), on, rows)


def nodes_of(number: int, rank: int, master: str) -> Nodes | None:
    """The place of this machine among several; None when it is alone."""
    if number == 1 and rank == 0:
        return None
    host, _, port = master.rpartition(":")
    wrong = []
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        wrong.append(("--master", f"'{master}' is not HOST:PORT", "--master 10.0.0.1:29500, the first node's address"))
    if rank >= number:
        what = f"{number} nodes have the ranks 0 to {number - 1}, not {rank}" if number > 1 else "--nodes is not given"
        wrong.append(("--node-rank", what, "--node-rank 0" if number > 1 else f"--nodes {rank + 1}, or more"))
    if wrong:
        raise ProblemsFound([Problem(what, fix, Place(COMMAND_LINE, key=key)) for key, what, fix in wrong])
    return Nodes(number, rank, host, int(port))

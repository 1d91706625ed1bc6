"""The words that several verbs share: arguments, options, the folders they work in."""

import os
import stat
from pathlib import Path
from typing import Annotated

import typer

from .. import dataset, preflight
from ..errors import COMMAND_LINE, Place, Problem, ProblemsFound
from ..runs import Nodes, Workspace
from . import show

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or the path of a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Override a value: lora_rank=8, kit.precision=fp32."),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's number, name, unique prefix, or `last`.")]
On = Annotated[str | None, typer.Option("--on", metavar="MACHINE", help="Plan for another one: `machines` lists them.")]
Number = Annotated[
    int, typer.Option("--nodes", min=1, max=10_000, metavar="N", help="How many machines train together.")
]
Rank = Annotated[int, typer.Option("--node-rank", min=0, metavar="R", help="Which of them this is; the first is 0.")]
Master = Annotated[str, typer.Option("--master", metavar="HOST:PORT", help="Where the first of them is reached.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
Full = Annotated[bool, typer.Option("--full", help="Read every row of the data, not the first 200,000 only.")]

NAMING_DATA = ("dataset", "eval_dataset", "kit.evaluate_after")


def workspace() -> Workspace:
    """The current folder's; IIS_MODELS and IIS_RUNS move two of its parts, IIS_PPO names stage ppo's environment."""
    try:
        root = Path.cwd()
    except OSError:
        what = "the current folder does not exist any more"
        raise ProblemsFound([Problem(what, "cd to the project's folder", Place(COMMAND_LINE))]) from None
    models, runs = _folder("IIS_MODELS", root / "models"), _folder("IIS_RUNS", root / "runs")
    return Workspace(root, models, runs, _folder("IIS_PPO", Workspace.ppo))


def _folder(variable: str, usual: Path) -> Path:
    """The folder that a variable names, absolute; it need not be there yet."""
    given, reason = os.environ.get(variable), ""
    try:
        folder = Path(given or usual).expanduser().absolute()
        if not stat.S_ISDIR(folder.stat().st_mode):
            reason = "it is not a folder"
    except FileNotFoundError:
        reason = "it is a link that leads nowhere" if folder.is_symlink() else ""
    except (RuntimeError, ValueError, OSError) as error:  # no such user; a name that no file can have
        reason = str(getattr(error, "strerror", None) or error).lower()
    if reason:
        what, fix = f"{variable}={given} cannot be used: {reason}", f"export {variable}=FOLDER, or unset {variable}"
        what = what if given else f"{usual} cannot be used: {reason}"
        raise ProblemsFound([Problem(what, fix, Place(variable if given else str(usual)), kind="machine")])
    return folder


def question(recipe: str, overrides: list[str] | None, on: str | None = None, rows: bool = True) -> preflight.Question:
    """What a verb before training asks; data sets that are given as paths or hub ids are registered on the way."""
    given = tuple(map(_by_name, overrides or ()))
    return preflight.Question(recipe, given, workspace(), dict(os.environ), on, rows)


def _by_name(override: str) -> str:
    """An override that names data sets, with each path or hub id in it replaced by the name it is registered by."""
    key, sign, value = override.partition("=")
    if key not in NAMING_DATA or value.startswith("["):
        return override
    found = [dataset.register_named(word.strip(), workspace().data) for word in value.split(",")]
    for said in (sentence for _, sentence in found if sentence):
        show.aside(said)
    return f"{key}{sign}{','.join(name for name, _ in found)}"


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

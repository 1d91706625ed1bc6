"""The words that several verbs share: arguments, options, the folders they work in."""

import os
import shlex
import stat
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from .. import dataset, preflight, recipe, runs
from ..errors import COMMAND_LINE, Misused, Place, Problem, ProblemsFound
from ..runs import Detached, Nodes, Run, Workspace
from . import show


def recipe_names(incomplete: str) -> list[str]:
    """What a shell completes to a recipe."""
    return [name for name in recipe.registered(workspace().recipes) if name.startswith(incomplete)]


def run_names(incomplete: str) -> list[str]:
    """What a shell completes to a run."""
    return [name for name in ("last", *(run.name for run in runs.listed(workspace()))) if name.startswith(incomplete)]


RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's name, or a YAML file.", autocompletion=recipe_names)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Override a value: lora_rank=8, kit.precision=fp32."),
]
A_RUN = "A run's number, name, unique prefix, or `last`"
RunName = Annotated[str, typer.Argument(metavar="RUN", help=f"{A_RUN}.", autocompletion=run_names)]
On = Annotated[str | None, typer.Option("--on", metavar="MACHINE", help="Plan for another one: `machines` lists them.")]
Number = Annotated[
    int, typer.Option("--nodes", min=1, max=10_000, metavar="N", help="How many machines train together.")
]
Rank = Annotated[int, typer.Option("--node-rank", min=0, metavar="R", help="Which of them this is; the first is 0.")]
Master = Annotated[str, typer.Option("--master", metavar="HOST:PORT", help="Where the first of them is reached.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
Full = Annotated[bool, typer.Option("--full", help="Read every row of the data, not the first 200,000 only.")]

NAMING_DATA = ("dataset", "eval_dataset", "kit.evaluate_after", "kit.guard")


def workspace() -> Workspace:
    """The current folder's; IIS_MODELS, IIS_RUNS, IIS_MEASURED move its parts, IIS_PPO is stage ppo's environment."""
    try:
        root = Path.cwd()
    except OSError:
        raise Misused("the current folder does not exist any more", "cd to the project's folder") from None
    models, ran = _folder("IIS_MODELS", root / "models"), _folder("IIS_RUNS", root / "runs")
    ppo, measured = _folder("IIS_PPO", runs.PPO), _folder("IIS_MEASURED", root / "measured")
    return Workspace(root, models, ran, ppo, measured_in=measured)


def newest_start(name: str) -> Detached | None:
    """The start that `last` means while it has no run; smoke runs are left out."""
    return next((each for each in runs.starts(workspace()) if not each.smoke), None) if name == "last" else None


def run_named(name: str, find: Callable[[Workspace, str], Run] = runs.find) -> Run:
    """A run; `last` is refused while a newer start prepares its own, and is told of when a newer one failed."""
    start = newest_start(name)
    if start and start.fix is None:
        fix = "iis-finetune watch last, and this again when it is done; or give an older run's number"
        raise Misused(f"the newest start, {start.name}, has no run yet: {start.doing}", fix)
    if start:
        show.aside(f"warning: the newest start, {start.name}, failed before it had a run: {start.doing}")
        show.aside(f"  fix:   {start.fix}")
    found = find(workspace(), name)
    if start:
        show.aside(f"`last` is taken for the run before it, {found.name}")
    return found


def in_project(words: list[str]) -> list[str]:
    """From below a project work in it, as git does: the nearest folder above with recipes; paths keep their meaning."""
    try:
        here = Path.cwd()
    except OSError:  # the verb will say it
        return words
    above = next((folder for folder in here.parents if recipe.own_recipes(folder / "recipes")), None)
    if above is None or any((here / name).is_dir() for name in ("recipes", "data", "runs")):
        return words
    show.aside(f"project: {above}")
    os.chdir(above)
    if words[0] == "push":  # its --to is a repository
        return words
    return [_whole(word, before, here) for before, word in pairwise(["", *words])]


def _whole(word: str, before: str, here: Path) -> str:
    """A word, or an override's value, that is a path as it is typed here, written out."""
    key, equals, value = word.rpartition("=")
    there = (here / value).is_file() or ("/" in value and (here / value).exists())
    return f"{key}{equals}{here / value}" if there or {"--to", "--html"} & {before, key} else word


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


def question(asked: str, overrides: list[str] | None, on: str | None = None, rows: bool = True) -> preflight.Question:
    """What a verb before training asks; data sets given as paths or hub ids are looked at as if they had a name."""
    new: list[dataset.Unregistered] = []
    named = tuple(_by_name(each, new) for each in overrides or ())
    for each in new:
        show.aside(f"{each.word} is not registered; it is looked at as '{each.name}'")
    return preflight.Question(asked, named, workspace(), dict(os.environ), on, rows, also=tuple(new))


def _by_name(override: str, new: list[dataset.Unregistered]) -> str:
    """An override that names data sets, with the name that each path or hub id in it has, or gets: those are `new`."""
    key, sign, value = override.partition("=")
    if key not in NAMING_DATA or value.startswith("["):
        return override
    names = []
    for word in value.split(","):
        name, unregistered = dataset.unregistered(word.strip(), workspace().data, new)
        names.append(name)
        new += [unregistered] if unregistered else []
    return f"{key}{sign}{','.join(names)}"


def typed(asked: str, overrides: Sequence[str] | None) -> str:
    """A recipe and its overrides as they are typed into a shell here; a file of the registry goes by its name."""
    path = Path(asked)
    if recipe.registered(workspace().recipes).get(path.stem) == path.absolute():
        asked = path.stem
    return shlex.join([asked, *(overrides or ())])


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

"""The verb push: what is given away is listed first, sent only when that is wanted, and compared afterwards."""

import os
import re
import shlex
import sys
from collections.abc import Mapping
from typing import Annotated, Literal

import typer
from rich.filesize import decimal

from .. import evaluate, hub, process, runs
from ..errors import Misused
from ..export.parcel import Kind, Parcel, pack
from ..models import called
from . import show
from .words import RunName, run_named

Repository = Annotated[str, typer.Option("--to", metavar="OWNER/NAME", help="The repository; made if it is not there.")]
REPOSITORY = re.compile(
    r"(?!.*(\.\.|--|\.git$))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<![.-])", re.ASCII
)  # to both hubs
Source = Annotated[
    Literal["auto", "huggingface", "modelscope"], typer.Option("--source", help="auto: as for downloads, the first.")
]
What = Annotated[Kind, typer.Option("--what", help="What the training made, or what `export` made of it.")]
Private = Annotated[bool, typer.Option("--private", help="For its owner alone; a public one of that name is refused.")]
Yes = Annotated[bool, typer.Option("--yes", help="Send it without a question.")]


def push(
    run: RunName,
    to: Repository,
    source: Source = "auto",
    what: What = "adapter",
    private: Private = False,
    yes: Yes = False,
) -> None:
    """Give the result away on a hub: a list first, no secrets, and every hash compared."""
    if not REPOSITORY.fullmatch(to):
        raise Misused(f"'{to}' is not a repository's name", "--to OWNER/NAME, as in --to me/my-model", "--to")
    found, environment = run_named(run, runs.finished_run), dict(os.environ)
    trained = evaluate.result_of(found)
    with process.scratch_folder() as folder:
        base = called(str(trained.arguments["model_name_or_path"]))
        licence = hub.licence_of(base, environment) if "/" in base else None
        packed = pack(Parcel(found, trained, what, folder), licence, environment)
        gift = hub.Gift(to, folder, tuple(packed), source, private)
        _list(packed, f"to {to} on {gift.hub(environment).name}{', private' if private else ''}:")
        _tell_what_is_there(gift, environment)
        if what == "adapter" and trained.weights.adapters and "/" not in base:
            show.aside(f"warning: '{base}' came from no hub: others cannot load the adapter without it (--what export)")
        if not yes and not _wanted(len(packed)):
            show.line("nothing was sent")
            return
        page, sent = hub.give(gift, environment)
    show.line(f"{len(packed)} files are there, {len(sent)} of them sent now; every hash is as it is here")
    show.line(f"{page}\nnext: iis-finetune report {found.number:04d}")


def _list(packed: Mapping[hub.RemoteFile, str], title: str) -> None:
    show.line(title)
    rows = [(f"  {file.path}", decimal(file.size), note) for file, note in packed.items()]
    total = decimal(sum(file.size for file in packed))
    show.table(("  file", "size", ""), [*rows, ("  together", total, "nothing else of the run")], numbers=(1,))


def _tell_what_is_there(gift: hub.Gift, environment: Mapping[str, str]) -> None:
    standing = hub.standing(gift, environment)
    if standing:
        replaced, others = standing
        which = f"{len(replaced)} of its files are replaced{': ' if replaced else ''}{', '.join(replaced)}"
        show.line(f"{gift.repository} is there already: {which}; {others} other files stay there")


def _wanted(count: int) -> bool:
    """Whether a person on a terminal wants it sent; raises Misused where there is none to ask."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        again = shlex.join(["iis-finetune", *sys.argv[1:], "--yes"])
        raise Misused("nothing was sent: there is no terminal to ask on", again)
    return typer.confirm(f"send these {count} files?")

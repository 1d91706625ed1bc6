"""The verb push: what is given away is listed first, sent only when that is wanted, and compared afterwards."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import typer
from rich.filesize import decimal

from .. import evaluate, hub, process, runs
from ..errors import Misused
from ..export.parcel import Kind, Parcel, Piece, pack
from ..models import called
from . import show
from .words import AsJson, RunName, run_named

Repository = Annotated[str, typer.Option("--to", metavar="OWNER/NAME", help="The repository; made if it is not there.")]
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
    as_json: AsJson = False,
) -> None:
    """Give the result away on a hub: a list first, no secrets, and every hash compared."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", to):
        raise Misused(f"'{to}' is not a repository's name", "--to OWNER/NAME, as in --to me/my-model", "--to")
    found, environment = run_named(run, runs.finished_run), dict(os.environ)
    trained = evaluate.result_of(found)
    with process.scratch_folder() as folder:
        licence = hub.licence_of(called(trained.weights.model), environment)
        pieces = pack(Parcel(found, trained, what, folder), licence, environment)
        files = tuple(piece.file for piece in pieces)
        gift = hub.Gift(repository=to, folder=folder, files=files, source=source, private=private)
        _list(pieces, f"{to} on {gift.hub(environment).name}{', private' if private else ''}", as_json)
        sure = yes or _asked(len(files))
        sent = hub.give(gift, environment) if sure else None
    if as_json:
        show.document({"run": found.name, "files": files, "sent": sent})
    elif sent:
        show.line(f"sent {len(sent.sent)} files, {len(sent.kept)} were there already: every hash is as it is here")
        show.line(sent.page)
        show.line(f"next: iis-finetune report {found.number:04d}")


def _list(pieces: Sequence[Piece], where: str, as_json: bool) -> None:
    say = show.aside if as_json else show.line
    say(f"to {where}:")
    rows = [(f"  {piece.file.path}", decimal(piece.file.size), piece.note) for piece in pieces]
    total = decimal(sum(piece.file.size for piece in pieces))
    if not as_json:
        show.table(("  file", "size", ""), [*rows, ("  together", total, "nothing else of the run")], numbers=(1,))


def _asked(count: int) -> bool:
    """Whether a person on a terminal wants it sent; raises Misused where there is none to ask."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        again = shlex.join(["iis-finetune", *sys.argv[1:], "--yes"])
        raise Misused("nothing was sent: there is no terminal to ask on", again)
    if not typer.confirm(f"send these {count} files?"):
        show.line("nothing was sent")
        return False
    return True

"""The verbs download and models."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.filesize import decimal

from .. import arguments, hub, preflight, recipe
from ..errors import Misused, ProblemsFound
from . import show
from .meter import DownloadMeter
from .words import AsJson, typed, workspace

Asked = Annotated[
    str, typer.Argument(metavar="RECIPE-or-MODEL", help="A recipe, or a hub's id: Qwen/Qwen2.5-7B-Instruct.")
]
Source = Annotated[
    Literal["auto", "huggingface", "modelscope"] | None, typer.Option("--source", help="auto asks both.")
]
To = Annotated[Path | None, typer.Option("--to", metavar="DIR", help="The model's folder, in place of models/.")]
Revision = Annotated[str | None, typer.Option("--revision", help="A branch, tag or commit.")]
Verify = Annotated[bool, typer.Option("--verify", help="Only hold what is on disk against its manifest, offline.")]
Offline = Annotated[bool, typer.Option("--offline", help="Not one packet: only what is here or in a hub's cache.")]


def download(
    asked: Asked,
    source: Source = None,
    to: To = None,
    revision: Revision = None,
    verify: Verify = False,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a base model, resumable and verified."""
    request = _request(asked, source, to, revision, offline)
    if verify:
        folder = request.folder
        document = {"folder": str(folder)} if as_json else None
        show.verdict(hub.verify(folder), document, f"{folder}: every file is as it was fetched")
    say = show.aside if as_json else show.line
    fetched = fetch(request, say)
    show.answer(fetched.as_json(), as_json)
    show.line(f"{fetched.manifest.model}: {fetched.folder} ({decimal(fetched.manifest.size_bytes)}), {fetched.reason}")
    show.line("next: iis-finetune models")


def fetch(order: hub.ModelOrder, say: Callable[[str], None] = show.line) -> hub.Fetched:
    """Fetch what is ordered, and show how far that is."""
    with contextlib.closing(DownloadMeter(say)) as meter:
        return hub.fetch(order, dict(os.environ), meter)


def fetch_rows(hub_id: str, source: Any) -> Path:
    """The folder of the data folder in which a hub's data set lies; fetched, unless it is there."""
    order = hub.ModelOrder(hub_id, workspace().data, source=source or "auto", noun="data set")
    fetched = fetch(order)
    show.line(f"{hub_id}: {fetched.folder} ({decimal(fetched.manifest.size_bytes)}), {fetched.reason}")
    return fetched.folder


def _request(asked: str, source: Any, to: Path | None, revision: str | None, offline: bool) -> hub.ModelOrder:
    """A recipe's model when there is such a recipe, a hub's id otherwise; a word that is neither is refused."""
    names, name = recipe.registered(workspace().recipes), asked
    if asked in names or Path(asked).suffix in recipe.SUFFIXES:
        found, _ = recipe.read(asked, (), workspace().recipes)
        name = str(found.value("model_name_or_path") or "")
        if preflight.looks_local(name) or found.kit.from_scratch:
            raise Misused(
                f"recipe '{asked}' uses no hub model; nothing to download", f"iis-finetune train {typed(asked, ())}"
            )
        revision, source = revision or found.value("model_revision"), source or found.kit.source
    elif "/" not in asked and arguments.find_model(asked) is None:
        raise ProblemsFound([recipe.unknown(asked, names, workspace().recipes)])
    return hub.ModelOrder(name, to or workspace().models, to is not None, revision, source or "auto", offline)


def models(as_json: AsJson = False) -> None:
    """The base models on disk: where from, which revision, how big, when verified."""
    found = hub.installed(workspace().models, dict(os.environ))
    show.answer({"models": [each.as_json() for each in found]}, as_json)
    if not found:
        show.line(f"no models in {workspace().models}\nnext: iis-finetune recipes")
        return
    rows = []
    for each in found:
        state = "whole" if each.complete else "incomplete"
        rows.append((each.model, decimal(each.size_bytes), each.place, (each.commit or "-")[:12], each.verified, state))
    show.table(("model", "size", "where", "revision", "verified", "state"), rows)

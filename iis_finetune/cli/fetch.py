"""The verbs on base models: download, models; and how a download shows itself."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .. import arguments, hub, preflight, recipe
from ..errors import COMMAND_LINE, Place, Problem, ProblemsFound, exit_code
from ..hub import Progress
from . import show
from .words import AsJson, workspace

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

PLAIN_SECONDS = 5.0


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
        _verify(request.folder, as_json)
    say = show.aside if as_json else show.line
    with Meter(say) as meter:
        fetched = hub.fetch(request, dict(os.environ), meter)
    if as_json:
        show.document(fetched.as_json())
        return
    show.line(f"{fetched.manifest.model}: {fetched.folder} ({size(fetched.manifest.size_bytes)}), {fetched.reason}")
    show.line("next: iis-finetune models")


def _request(asked: str, source: Any, to: Path | None, revision: str | None, offline: bool) -> hub.Order:
    """A recipe's model when there is such a recipe, a hub's id otherwise; a word that is neither is refused."""
    names = recipe.registered(workspace().recipes)
    if asked in names or Path(asked).suffix in recipe.SUFFIXES:
        found, _ = recipe.read(asked, (), workspace().recipes)
        name = str(found.value("model_name_or_path") or "")
        if preflight.looks_local(name) or found.kit.from_scratch:
            what = f"recipe '{asked}' starts from nothing that a hub has"
            raise ProblemsFound([Problem(what, f"iis-finetune train {asked} makes it", Place(COMMAND_LINE))])
        revision = revision or found.value("model_revision")
        return of_model(name, source or found.kit.source, to, revision, offline)
    if "/" not in asked and arguments.find_model(asked) is None:
        raise ProblemsFound([recipe.unknown(asked, names, workspace().recipes)])
    return of_model(asked, source or "auto", to, revision, offline)


def of_model(
    name: str, source: Any, to: Path | None = None, revision: str | None = None, offline: bool = False
) -> hub.Order:
    """The order for a model, into the models folder or exactly `to`."""
    return hub.Order(name, to or workspace().models, to is not None, revision, source, offline)


def _verify(folder: Path, as_json: bool) -> None:
    problems = hub.verify(folder)
    if as_json:
        show.document({"folder": str(folder), "problems": [problem.as_json() for problem in problems]})
    else:
        show.problems(problems, nothing_started=False)
        show.line(f"{folder}: {'every file is as it was fetched' if not problems else show.count(problems)}")
    raise typer.Exit(exit_code(problems))


def models(as_json: AsJson = False) -> None:
    """What is on disk: from where, which revision, how big, verified when."""
    found = hub.installed(workspace().models, dict(os.environ))
    if as_json:
        show.document({"models": [each.as_json() for each in found]})
        return
    if not found:
        show.line(f"no models in {workspace().models}\nnext: iis-finetune download RECIPE")
        return
    rows = [
        (each.model, size(each.size_bytes), each.place, (each.commit or "-")[:12], each.verified, _whole(each.complete))
        for each in found
    ]
    show.table(("model", "size", "where", "revision", "verified", "state"), rows)


def _whole(complete: bool) -> str:
    return "whole" if complete else "incomplete"


def size(count: float) -> str:
    """`15.2 GB`, `812 MB`, `4 kB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


class Meter:
    """Shows a download: bars on a terminal, a line every few seconds otherwise; called from several threads."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.printed, self.began = say, time.monotonic(), time.monotonic()
        self.first: int | None = None
        self.lock = threading.Lock()
        self.bar: Any = None
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Meter:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

            columns = (
                "{task.description}",
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.bar.start()
        return self

    def __exit__(self, *_reason: object) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, progress: Progress) -> None:
        with self.lock:
            if progress.note:
                self.say(progress.note)
            elif self.bar:
                self._draw(progress)
            elif time.monotonic() - self.printed >= PLAIN_SECONDS:
                self.printed = time.monotonic()
                self.say(self.sentence(progress))

    def _draw(self, progress: Progress) -> None:
        parts = ((progress.path, progress.path_bytes, progress.path_total_bytes),)
        for name, done, total in (*parts, ("total", progress.bytes, progress.total_bytes)):
            if name not in self.tasks:
                self.tasks[name] = self.bar.add_task(name, total=total)
            self.bar.update(self.tasks[name], completed=done)

    def sentence(self, progress: Progress) -> str:
        """`412.0 MB of 15.2 GB  38.1 MB/s  6 min 28 s left  model-00001-of-00004.safetensors`."""
        self.first = progress.bytes if self.first is None else self.first
        rate = (progress.bytes - self.first) / max(time.monotonic() - self.began, 1e-3)
        left = (progress.total_bytes - progress.bytes) / rate if rate > 0 else None
        done = f"{size(progress.bytes)} of {size(progress.total_bytes)}"
        return f"{done}  {size(rate)}/s  {show.duration(left)} left  {progress.path}"

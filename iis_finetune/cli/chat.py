"""The verbs chat and serve."""

import ipaddress
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from .. import launch, process, runs
from ..errors import COMMAND_LINE, RUN_FAILED, Place, Problem, ProblemsFound
from ..plan import after
from . import show
from .tuned import Checkpoint, RunOrRecipe, Tuned, tuned

Host = Annotated[str, typer.Option("--host", help="The address to listen at; another than this machine needs a key.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="The port to listen at.")]


def chat(run: RunOrRecipe, checkpoint: Checkpoint = None) -> None:
    """Talk to the tuned model in this terminal; `exit` or Ctrl-D ends it."""
    subject = tuned(run, checkpoint)
    kit = {"PYTHONPATH": str(launch.KIT.parent), "LLAMAFACTORY_VERBOSITY": "WARN"}
    words = [sys.executable, "-m", "iis_finetune.probe.chat", "arguments.yaml"]
    raise typer.Exit(_attached(words, subject, kit))


def serve(run: RunOrRecipe, host: Host = "127.0.0.1", port: Port = 8000, checkpoint: Checkpoint = None) -> None:
    """An OpenAI-style server of the tuned model; the key is taken from $API_KEY."""
    if not loopback(host) and not os.environ.get("API_KEY"):
        what = f"'{host}' can be reached from other machines, and there is no API key"
        fix = "export API_KEY=... (anything long), or --host 127.0.0.1"
        raise ProblemsFound([Problem(what, fix, Place(COMMAND_LINE, key="--host"))])
    subject = tuned(run, checkpoint)
    show.line(f"serving {subject.trained.name} at http://{host}:{port}/v1 (Ctrl-C ends it)")
    chosen = after.server_environment(host, port, subject.trained.name)
    raise typer.Exit(_attached(launch.program("api", "arguments.yaml"), subject, chosen))


def loopback(host: str) -> bool:
    """Whether only this machine can reach an address; names other than localhost are not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _attached(words: list[str], subject: Tuned, chosen: Mapping[str, str]) -> int:
    with tempfile.TemporaryDirectory(prefix="iis-finetune-") as folder:
        runs.write(Path(folder) / "arguments.yaml", launch.yaml_text(after.converse(subject.trained)))
        own = after.one_process(subject.environment)
        path = ":".join(filter(None, [chosen.get("PYTHONPATH"), own["PYTHONPATH"]]))
        code = process.attached(words, {**own, **chosen, "PYTHONPATH": path}, Path(folder))
    return RUN_FAILED if code > 0 else 0

"""The verbs chat and serve."""

import errno
import ipaddress
import os
import sys
from collections.abc import Mapping
from typing import Annotated

import typer

from .. import launch, process, runs
from ..errors import COMMAND_LINE, RUN_FAILED, Place, Problem, ProblemsFound
from ..plan import after
from . import show
from .tuned import Checkpoint, RunOrRecipe, Tuned, tuned

Host = Annotated[str, typer.Option("--host", help="The address to listen at; another than this machine needs a key.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="The port to listen at.")]
Origins = Annotated[
    list[str] | None, typer.Option("--allow-origin", metavar="URL", help="A web page's origin that may ask it.")
]
NOT_LISTENING = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)  # exit codes of the server's program
FREE = "an address of this machine and a port above 1023, as in --host 127.0.0.1 --port 8000"


def chat(run: RunOrRecipe, checkpoint: Checkpoint = None) -> None:
    """Talk to the tuned model in this terminal; `exit` or Ctrl-D ends it."""
    code = _attached("chat", tuned(run, checkpoint), {"LLAMAFACTORY_VERBOSITY": "WARN"})
    raise typer.Exit(RUN_FAILED if code else 0)


def serve(
    run: RunOrRecipe,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    allow_origin: Origins = None,
    checkpoint: Checkpoint = None,
) -> None:
    """An OpenAI-style server of the tuned model; the key is taken from $API_KEY."""
    if not loopback(host) and not os.environ.get("API_KEY"):
        what = f"'{host}' can be reached from other machines, and there is no API key"
        fix = "export API_KEY=... (anything long), or --host 127.0.0.1"
        raise ProblemsFound([Problem(what, fix, Place(COMMAND_LINE, key="--host"))])
    subject = tuned(run, checkpoint)
    show.aside(f"loading {subject.trained.name} ...")
    chosen = after.server_environment(host, port, subject.trained.name)
    code = _attached("serve", subject, {**chosen, "IIS_ALLOW_ORIGIN": ",".join(allow_origin or ())})
    if code in NOT_LISTENING:
        what = f"cannot listen at {host}, port {port}: {os.strerror(code)}"
        fix = f"--port {port % 65535 + 1}, or end what listens there"
        raise ProblemsFound(
            [Problem(what, fix if code == errno.EADDRINUSE else FREE, Place(COMMAND_LINE, key="--port"))]
        )
    raise typer.Exit(RUN_FAILED if code else 0)


def loopback(host: str) -> bool:
    """Whether only this machine can reach an address; names other than localhost are not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _attached(probe: str, subject: Tuned, chosen: Mapping[str, str]) -> int:
    """Run LLaMA-Factory's own program on this terminal; its exit code, 0 when a signal ended it."""
    process.ends_alike()
    with process.scratch_folder() as folder:
        runs.write(folder / "arguments.yaml", launch.yaml_text(after.converse(subject.trained)))
        own = after.one_process(subject.environment)
        path = ":".join(filter(None, [str(launch.KIT.parent), own["PYTHONPATH"]]))
        words = [sys.executable, "-m", f"iis_finetune.probe.{probe}", "arguments.yaml"]
        code = process.attached(words, {**own, **chosen, "PYTHONPATH": path}, folder)
    return max(code or 0, 0)

"""Tell somebody how a run is doing, from a short process of its own, so that a run never waits for it.

`kit.notify` is a command line, which gets the JSON as its last word, or `env:NAME`: a webhook URL in that variable.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field, to_builtins

from . import process

WEBHOOK = "env:"
COMMAND_SECONDS, REQUEST_SECONDS = 60.0, 20.0


class Notice(Struct, frozen=True):
    """What is told: the run's name, the event (finished, failed, stopped, recovering), why, how far it is."""

    run: str
    event: str
    why: str
    step: int | None = None
    total_steps: int | None = None
    host: str = field(default_factory=lambda: os.uname().nodename)
    time: float = field(default_factory=time.time)

    def as_json(self) -> str:
        """With `text`, one line for people, under the key that chat services read."""
        of = f" at step {self.step} of {self.total_steps}" if self.step is not None else ""
        text = f"{self.run} on {self.host}: {self.event}{of}" + (f": {self.why}" if self.why else "")
        return json.dumps({"text": text, **to_builtins(self)}, ensure_ascii=False)


def send(target: str, notice: Notice, environment: Mapping[str, str], log: Path) -> process.Child:
    """Start telling and return at once; what goes wrong is in the log."""
    words = [sys.executable, "-m", "iis_finetune", "_notify", target, notice.as_json()]
    path = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    return process.start(process.Launch(words, {**environment, **path}, Path.cwd(), log))


def deliver(target: str, body: str, environment: Mapping[str, str]) -> str | None:
    """Tell now, within a time limit; returns what went wrong."""
    if target.startswith(WEBHOOK):
        name = target.removeprefix(WEBHOOK)
        url = environment.get(name, "")
        return _post(url, body) if url.startswith(("http://", "https://")) else f"{name} holds no http(s) address"
    words = [*shlex.split(target), body]
    done = process.capture(words, COMMAND_SECONDS, environment)
    if done is None:
        return f"there is no program '{words[0]}'"
    return None if done.returncode == 0 else f"'{words[0]}' ended with {done.returncode}: {done.stderr.strip()[:300]}"


def _post(url: str, body: str) -> str | None:
    import urllib.error
    import urllib.request

    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, body.encode(), headers, method="POST")  # noqa: S310 - http(s) only, seen above
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_SECONDS):  # noqa: S310
            return None
    except (OSError, ValueError) as error:  # the address may hold a secret: it is not repeated
        return f"the webhook did not take it: {getattr(error, 'reason', None) or type(error).__name__}"

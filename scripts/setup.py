#!/usr/bin/env python3
"""Make the virtual environment: torch for this machine's card, LLaMA-Factory, the kit, and a check that they load.

    python3 scripts/setup.py [--accel auto|cpu|cuda|rocm] [--torch index|keep] [--arch gfx906]
                             [--extra bitsandbytes|deepspeed|gguf|lm_eval|swanlab|tensorboard|wandb]...
    python3 scripts/setup.py --ppo                the second environment, .venv-ppo, which stage ppo alone runs in

Runs on a bare Python 3.11 or later; exits 0, or 3 when the machine is not ready. What it did is recorded in
`.venv/iis-finetune-setup.json`, written last: with the same inputs a second call returns at once, after an interruption
it goes on. IIS_TORCH_INDEX names a mirror of https://download.pytorch.org/whl.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - this file is what an older Python is given
    sys.stderr.write(
        "set-up needs Python 3.11 or later and this is {}.{}; name a newer one: make setup PYTHON=python3.11\n".format(
            *sys.version_info[:2]
        )
    )
    raise SystemExit(3)

import argparse
import contextlib
import fcntl
import json
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from setup_plan import EVERYTHING, PPO, Plan, Purpose, Request, SetUpFailed, find_machine, make_plan, say  # noqa: E402
from setup_steps import STARTED, set_up  # noqa: E402

from iis_finetune.wheels import EXTRAS, RECORD, record_of  # noqa: E402


def read_request(arguments: Sequence[str], recorded: Mapping[str, Any] | None) -> tuple[Request, Path, Purpose]:
    """The command line; what it leaves out stays as the environment was made with, extras are never taken away."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--accel", choices=("auto", "cpu", "cuda", "rocm"), help="auto looks for the cards (default)")
    parser.add_argument("--torch", choices=("index", "keep"), help="keep: the torch of this interpreter, never touched")
    parser.add_argument("--arch", help="gfx name, where AMD cards of different families are plugged in")
    parser.add_argument("--extra", action="append", default=[], choices=EXTRAS)
    parser.add_argument("--ppo", action="store_true", help="the second environment, which stage ppo alone runs in")
    parser.add_argument("--venv", help="where to make it (default: .venv, or .venv-ppo)")
    given = parser.parse_args(arguments)
    if given.ppo and given.extra:
        parser.error("--ppo takes no --extra: pip install what is missing with .venv-ppo/bin/pip")
    venv = Path(given.venv or (".venv-ppo" if given.ppo else ".venv"))
    before = (recorded or {}).get("request", {})
    request = Request(
        given.accel or before.get("accelerator", "auto"),
        given.torch or before.get("torch", "index"),
        given.arch or (None if given.accel else before.get("architecture")),
        tuple(sorted({*given.extra, *before.get("extras", ())})),
    )
    return request, venv, PPO if given.ppo else EVERYTHING


def is_done(venv: Path, record: Mapping[str, Any] | None, plan: Plan) -> bool:
    """Whether this environment is what the plan would make; a moved project folder needs a new one."""
    if not record or not (venv / "bin" / "python").exists():
        return False
    begun = json.loads((venv / STARTED).read_text()) if (venv / STARTED).exists() else None
    wanted = {"request": asdict(replace(plan.request, extras=plan.extras)), "inputs_sha256": plan.inputs_sha256}
    same = all(record.get(key) == value for key, value in json.loads(json.dumps(wanted)).items())
    return same and bool(begun == plan.identity(venv))


@contextlib.contextmanager
def only_one(venv: Path) -> Iterator[None]:
    """Two terminals may start on a fresh checkout at once: the second waits."""
    folder = venv.absolute().parent / ".cache"
    folder.mkdir(exist_ok=True)
    with (folder / "iis-finetune-setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is at work here: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _, venv, purpose = read_request(arguments, None)
    with only_one(venv):
        record = record_of(venv)
        # The second environment is made for the card that the first one was made for.
        request = read_request(arguments, record or record_of(venv.with_name(".venv")))[0]
        began = time.monotonic()
        try:
            plan = make_plan(request, find_machine(request), purpose=purpose)
            if is_done(venv, record, plan):
                (venv / RECORD).touch()
                return 0
            announce(venv, plan)
            record = set_up(venv, plan)
        except SetUpFailed as failure:
            print(f"error: {failure}", file=sys.stderr)
            return 3
        except KeyboardInterrupt:
            print(f"\ninterrupted: {purpose.make} goes on from here", file=sys.stderr)
            return 130
    report(record, plan, time.monotonic() - began)
    return 0


def announce(venv: Path, plan: Plan) -> None:
    machine, chosen = plan.machine, plan.request.accelerator
    cards = f" ({len(machine.devices)}x {machine.device})" if machine.devices else ""
    say(f"set-up in {venv} for {machine.accelerator}{cards}, Python {plan.python}; this happens once")
    if chosen == "auto" and any(one.vendor == "amd" and machine.accelerator == "cuda" for one, _ in machine.left_out):
        say("note: NVIDIA and AMD cards are both here; ACCEL=rocm chooses the AMD ones")
    if plan.wheels and not plan.wheels.confirmed:
        say(f"note: nobody of this project has run these builds on such a card yet ({plan.wheels.source})")
    if plan.wheels and plan.wheels.note:
        say(f"note: {plan.wheels.note}")
    if plan.kept:
        say(f"kept as it is: {', '.join(plan.kept)}")


def report(record: Mapping[str, Any], plan: Plan, seconds: float) -> None:
    versions = ", ".join(f"{name} {record[name] or 'left out'}" for name in plan.trio)
    placeholder = " (an empty stand-in is used: text models need none)" if record["torchaudio_placeholder"] else ""
    say(f"set-up finished in {seconds:.0f} s: {versions}{placeholder}")
    say(f"next: source .venv/bin/activate; iis-finetune train {'ppo' if plan.purpose == PPO else 'quickstart'}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

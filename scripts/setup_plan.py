"""What set-up will install: what was asked for, the devices here, the table of builds, whether its index answers."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from iis_finetune.machine import Device, Machine, detect
from iis_finetune.wheels import TRIO, Accelerator, Wheels, read_table

ROOT = Path(__file__).resolve().parent.parent
INDEX_SECONDS = 15
OLDEST_TORCH = (2, 4)


def say(line: str) -> None:
    print(line, flush=True)


class SetUpFailed(Exception):
    """A step that could not be done: the sentence, then what to do."""


@dataclass(frozen=True)
class Purpose:
    """What an environment is for: the command that makes it, its versions, what goes into it and what of the trio."""

    make: str
    constraints: str
    packages: tuple[str, ...]
    trio: tuple[str, ...] = TRIO
    programs: tuple[str, ...] = ("llamafactory", "mypy", "pytest", "ruff")


EVERYTHING = Purpose("make setup", "constraints.txt", ("-e", ".[train,dev]"))
# LLaMA-Factory 0.9.3 imports no torchaudio, and its text models need no torchvision.
PPO = Purpose("make setup-ppo", "constraints-ppo.txt", ("llamafactory",), ("torch",), ("llamafactory",))


@dataclass(frozen=True)
class Request:
    """What set-up was asked for."""

    accelerator: Accelerator | Literal["auto"] = "auto"
    torch: Literal["index", "keep"] = "index"
    architecture: str | None = None
    extras: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What will be installed: the same plan in a finished environment means that nothing is left to do."""

    request: Request
    machine: Machine
    wheels: Wheels | None  # None: torch is kept as it is
    kept: tuple[str, ...]  # the kept trio as exact requirements
    extras: tuple[str, ...]
    python: str
    inputs_sha256: str
    purpose: Purpose = EVERYTHING

    @property
    def trio(self) -> tuple[str, ...]:
        """What of the trio is tried: what is installed, or what a kept interpreter may have."""
        return self.purpose.trio if self.wheels else TRIO

    def pins(self, *, local: bool = True) -> list[str]:
        """The exact builds that this environment is to hold, installed or kept."""
        pins = self.wheels.requirements(local=local) if self.wheels else list(self.kept)
        return [pin for pin in pins if pin.partition("==")[0] in self.trio]

    def identity(self, venv: Path) -> dict[str, Any]:
        """What an environment cannot change without being made anew; its own path is written into its programs."""
        return {"trio": self.pins(), "python": self.python, "venv": str(venv.resolve())}


def inputs_sha256(root: Path, purpose: Purpose = EVERYTHING) -> str:
    """Of the constraints and of pyproject's dependencies; other settings there are no reason to install again."""
    pinned = (root / purpose.constraints).read_bytes()
    if purpose != EVERYTHING:
        return hashlib.sha256(pinned + json.dumps(purpose.packages).encode()).hexdigest()
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [project["dependencies"], project["optional-dependencies"], project["scripts"]]
    return hashlib.sha256(pinned + json.dumps(wanted).encode()).hexdigest()


def kept_trio() -> tuple[str, ...]:
    """The trio that this interpreter has, exactly; torch at least, and not older than LLaMA-Factory takes."""
    found = {}
    for name in TRIO:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if "torch" not in found:
        raise SetUpFailed(
            f"TORCH=keep, but {sys.executable} has no torch\n"
            "  fix: name the interpreter that has it: make setup TORCH=keep PYTHON=/path/to/python3"
        )
    numbers = tuple(int(part) for part in re.findall(r"\d+", found["torch"])[:2])
    if numbers < OLDEST_TORCH:
        raise SetUpFailed(f"TORCH=keep, but LLaMA-Factory needs torch 2.4 or later and {found['torch']} is here")
    return tuple(f"{name}=={version}" for name, version in found.items())


def find_machine(request: Request, root: Path = Path("/")) -> Machine:
    """The machine with the cards that torch is to serve: all of those wanted, whatever the user's shell hides.

    A card that is asked for need not be here, so that an image can be built on another computer.
    """
    wanted = "rocm" if request.architecture else request.accelerator
    found = detect(root, {}, prefer="amd" if wanted == "rocm" else "nvidia")
    if request.architecture:
        return _with_cards_of(found, request.architecture)
    if wanted == "auto":  # NVIDIA's driver may be loaded where nvidia-smi does not say for which card
        return replace(found, accelerator="cuda") if found.driver and not found.devices else found
    return found if wanted == found.accelerator else replace(found, accelerator=wanted, devices=(), left_out=())


def _with_cards_of(found: Machine, architecture: str) -> Machine:
    cards = [one for one in (*found.devices, *(each for each, _ in found.left_out)) if one.arch == architecture]
    cards = cards or [Device(0, "named by ARCH", "amd", architecture, 0.0)]
    return replace(found, accelerator="rocm", devices=tuple(cards), left_out=())


def make_plan(request: Request, machine: Machine, root: Path = ROOT, purpose: Purpose = EVERYTHING) -> Plan:
    wheels = None if request.torch == "keep" else the_one_row(machine)
    several = len(machine.devices) > 1
    extras = {*request.extras, *(("deepspeed",) if several else ())} if purpose == EVERYTHING else set()
    python = "{}.{}.{}".format(*sys.version_info[:3])
    kept = () if wheels else kept_trio()
    inputs = inputs_sha256(root, purpose)
    return Plan(request, machine, wheels, kept, tuple(sorted(extras)), python, inputs, purpose)


def the_one_row(machine: Machine) -> Wheels:
    """The build that serves every card, also those of another family, which training would leave out."""
    vendor = "amd" if machine.accelerator == "rocm" else "nvidia"
    others = [one for one, _ in machine.left_out if one.vendor == vendor and not one.integrated]
    families = list(dict.fromkeys(one.arch for one in (*machine.devices, *others))) or [machine.arch]
    served = {name: rows for name in families if (rows := _rows_for(machine, name))}
    common = [row for row in read_table() if served and all(row in rows for rows in served.values())]
    if common:
        return replace(common[0], devices=tuple(sorted(families)))
    if served:
        fix = f"say which is to train: make setup ARCH={next(iter(served))}"
        raise SetUpFailed(f"these AMD cards need different builds of torch: {', '.join(served)}\n  fix: {fix}")
    if machine.accelerator == "rocm" and not machine.devices:
        fix = "load the amdgpu driver (ls /sys/class/kfd), or name the card: make setup ACCEL=rocm ARCH=gfx906"
        raise SetUpFailed(f"no AMD card is visible to the kernel driver\n  fix: {fix}")
    driver = f" with driver {machine.driver}" if machine.driver else ""
    fix = "make setup TORCH=keep with a torch of your own, or make setup ACCEL=cpu"
    raise SetUpFailed(f"no published build of torch is known for {', '.join(families)}{driver}\n  fix: {fix}")


def _rows_for(machine: Machine, architecture: str) -> list[Wheels]:
    return [row for row in read_table() if row.serves(machine.accelerator, architecture, machine.driver)]


def index_problem(index: str, seconds: float = INDEX_SECONDS) -> str | None:
    """Why the index cannot be used, or None; asked in a child: a name server may hang longer than any socket limit."""
    code = (
        "import ssl, sys, urllib.request as r\n"
        "context = ssl.create_default_context(cafile=sys.argv[2] or None)\n"
        "r.urlopen(r.Request(sys.argv[1], method='HEAD'), timeout=10, context=context)"
    )
    command = [sys.executable, "-c", code, f"{index}/torch/", os.environ.get("PIP_CERT", "")]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:g} s"
    return (answer.stderr.strip().splitlines() or ["unknown reason"])[-1] if answer.returncode else None


@dataclass(frozen=True)
class TorchSource:
    """What pip is given for the trio; `index` None is pip's own configured index."""

    requirements: tuple[str, ...]
    index: str | None

    def arguments(self) -> list[str]:
        return [*(["--index-url", self.index] if self.index else []), *self.requirements]


def where_torch_comes_from(wheels: Wheels, mirror: str | None) -> TorchSource:
    """The row's index, or pip's own where that one cannot be reached and has the same builds."""
    index = wheels.index_at(mirror)
    problem = index_problem(index)
    if not problem:
        return TorchSource(tuple(wheels.for_pip()), index)
    say(f"the PyTorch index {index} cannot be reached: {problem}")
    if not wheels.plain_index:
        raise SetUpFailed(
            f"{wheels.torch} is published on that index only\n"
            "  fix: name a mirror of https://download.pytorch.org/whl: IIS_TORCH_INDEX=https://... make setup\n"
            "       or install torch yourself and run: make setup TORCH=keep PYTHON=/path/to/its/python3"
        )
    plain = tuple(wheels.requirements(local=False))
    say(f"{plain[0]} comes from pip's own configured index instead")
    # The torchvision and torchaudio there are built for CUDA; LLaMA-Factory pulls them in, the check deals with them.
    return TorchSource(plain[:1] if wheels.accelerator == "cpu" else plain, None)

"""What is supervised, what is known of it, and what the supervisor was asked by signal."""

import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from msgspec import Struct

from ..machine import Device
from ..observe import StallLimits
from ..plan.recovery import micro_batch_of
from ..runs import Decided, Run, read_decided, read_json, typed
from ..tensors import PRECISIONS

NEVER_RESUMED = ("rm", "ppo")  # LLaMA-Factory cannot: value heads are not where the trainer looks for weights


class Task(Struct, frozen=True):
    """A prepared run and its training's whole environment.

    `replan` makes a change (precision, attention, micro_batch) in the run's folder and returns the new environment;
    it raises ProblemsFound when the change cannot be made. `tell` passes a notice on: the event and its reason.
    `edited` names the data files that are not what they were when the run began.
    """

    run: Run
    environment: Mapping[str, str]
    replan: Callable[[Mapping[str, Any]], Mapping[str, str]] | None = None
    tell: Callable[[str, str], object] = lambda _event, _why: None  # for recipes without kit.notify
    edited: Callable[[], Sequence[str]] = tuple
    stall: StallLimits = StallLimits()
    poll_seconds: float = 0.5
    may_recover: bool = True


class Facts(Struct, frozen=True):
    """What the run's own files say of its plan."""

    decided: Decided
    arch: str

    @property
    def nodes(self) -> int:
        return self.decided.nodes.number if self.decided.nodes else 1

    @property
    def ranks(self) -> range:
        """The ranks of this machine's processes."""
        here = self.decided.processes // self.nodes
        rank = self.decided.nodes.rank if self.decided.nodes else 0
        return range(rank * here, (rank + 1) * here)

    @property
    def attention(self) -> str:
        chosen = self.decided.decision("attention")
        return str(chosen.value) if chosen else "sdpa"

    @property
    def micro_batch(self) -> int:
        return micro_batch_of(self.decided.arguments)

    @property
    def begins_anew(self) -> str | None:
        """Why no checkpoint of this training can be resumed; None where one can."""
        arguments = self.decided.arguments
        if arguments.get("stage") in NEVER_RESUMED:
            return f"LLaMA-Factory cannot resume stage {arguments['stage']}"
        # It subtracts what the attempt began with, which in a resume is no longer the start.
        return "pissa_convert is wrong after a resume" if arguments.get("pissa_convert") else None


class Devices(Struct, frozen=True):
    """What machine.json says of the devices."""

    devices: tuple[Device, ...] = ()


class Loaded(Struct, frozen=True):
    """What the hook found in the training's memory: parameters by `trainable` or `frozen`, then by data type."""

    mixed_precision: str | None = None
    parameters: Mapping[str, Mapping[str, int]] = {}
    attention: str | None = None
    device_memory_gib: float | None = None


def loaded_by(run: Run) -> Loaded:
    return typed(run.loaded, Loaded, read_json(run.loaded) or {})


def facts_of(run: Run) -> Facts:
    """Read them anew: a change between two attempts rewrites the plan."""
    devices = typed(run.machine, Devices, read_json(run.machine) or {}).devices
    return Facts(read_decided(run), devices[0].arch if devices else "cpu")


def loaded_precision(run: Run) -> str | None:
    """What the training process found in its memory; with `as-saved` nothing else tells."""
    loaded = loaded_by(run)
    if loaded.mixed_precision in ("fp16", "bf16"):
        return loaded.mixed_precision
    counts: Counter[str] = Counter()
    for part in loaded.parameters.values():
        counts.update(part)
    return PRECISIONS.get(counts.most_common(1)[0][0]) if counts else None


@dataclass
class Stop:
    """SIGTERM or SIGINT ask for a checkpoint and an end, a second SIGINT or SIGQUIT for the end at once."""

    asked: str | None = None
    now: bool = False

    def install(self) -> None:
        """Take the signals over; a hang-up is ignored."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._ask)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        # A second SIGTERM is no hurry: systemd and Slurm send several on the way to one end.
        self.now = self.now or number == signal.SIGQUIT or (number == signal.SIGINT and self.asked == "SIGINT")
        self.asked = signal.Signals(number).name

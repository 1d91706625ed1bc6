"""What is supervised, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..observe import Patience
from ..plan.recovery import micro_batch_of
from ..runs import Run, read_json
from ..tensors import PRECISIONS

NEVER_RESUMED = ("rm", "ppo")  # LLaMA-Factory 0.9.5 cannot: value heads are not where the trainer looks for weights


def _untold(_event: str, _why: str) -> None:
    """For runs whose recipe names nobody to be told."""


@dataclass(frozen=True)
class Job:
    """A prepared run and its training's whole environment.

    `replan` makes a change (precision, attention, micro_batch) in the run's folder and returns the new environment;
    it raises ProblemsFound when the change cannot be made. `tell` passes a notice on: the event and its reason.
    """

    run: Run
    environment: Mapping[str, str]
    replan: Callable[[Mapping[str, Any]], Mapping[str, str]] | None = None
    tell: Callable[[str, str], None] = _untold
    patience: Patience = field(default_factory=Patience)
    poll_seconds: float = 0.5
    may_recover: bool = True


@dataclass(frozen=True)
class Facts:
    """What the run's own files say of its plan."""

    arguments: Mapping[str, Any]
    precision: str
    attention: str
    arch: str
    processes: int
    nodes: int = 1
    node_rank: int = 0

    @property
    def ranks(self) -> range:
        """The ranks of this machine's processes."""
        here = self.processes // self.nodes
        return range(self.node_rank * here, (self.node_rank + 1) * here)

    @property
    def micro_batch(self) -> int:
        return micro_batch_of(self.arguments)

    @property
    def begins_anew(self) -> str | None:
        """Why no checkpoint of this training can be gone on with; None where one can."""
        if self.arguments.get("stage") in NEVER_RESUMED:
            return f"LLaMA-Factory cannot resume stage {self.arguments['stage']}"
        # It subtracts what the attempt began with, which in a resume is no longer the start.
        return "pissa_convert is wrong after a resume" if self.arguments.get("pissa_convert") else None


def facts_of(run: Run) -> Facts:
    """Read them anew: a change between two attempts rewrites the plan."""
    decided, machine = read_json(run.decisions) or {}, read_json(run.machine) or {}
    chosen = {each["name"]: each["value"] for each in decided.get("decisions", ())}
    devices = machine.get("devices") or [{}]
    nodes = decided.get("nodes") or {}
    return Facts(
        arguments=decided.get("arguments", {}),
        precision=decided.get("precision", "fp32"),
        attention=str(chosen.get("attention", "sdpa")),
        arch=devices[0].get("arch", "cpu"),
        processes=int(decided.get("processes", 1)),
        nodes=nodes.get("number", 1),
        node_rank=nodes.get("rank", 0),
    )


def loaded_precision(run: Run) -> str | None:
    """What the training process found in its memory; with `as-saved` nothing else tells."""
    loaded = read_json(run.loaded) or {}
    if loaded.get("mixed_precision") in ("fp16", "bf16"):
        return str(loaded["mixed_precision"])
    counts: dict[str, int] = {}
    for part in loaded.get("parameters", {}).values():
        for name, count in part.items():
            counts[name] = counts.get(name, 0) + count
    return PRECISIONS.get(max(counts, key=lambda name: counts[name])) if counts else None

"""What would make a training fit: each change alone, estimated like the training itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ..errors import errors_of
from ..machine import Machine, decide_precision, quantization_problems
from .memory import Workload

Estimate = Callable[[Workload], float | None]
LEAST_TOKENS = 256


def remedies(workload: Workload, machine: Machine, limit_gib: float, estimate: Estimate) -> str:
    """The single changes after which a device's need is within its limit; else the one that comes nearest."""
    tried = [(gib, text) for text, changed in _changes(workload, machine) if (gib := estimate(changed)) is not None]
    fitting = [f"{text} ({gib:.1f} GiB)" for gib, text in tried if gib <= limit_gib]
    if fitting:
        return " or ".join(fitting)
    other = "a smaller model" if machine.accelerator == "cpu" else "a smaller model, or more devices"
    if not tried:
        return other
    gib, text = min(tried)
    return f"{other}; no single change is enough, {text} comes nearest with {gib:.1f} GiB"


def _changes(now: Workload, machine: Machine) -> Iterator[tuple[str, Workload]]:
    """What a recipe can say otherwise, those first that change the least of the result."""
    rows = now.rows_of_a_sample
    half, precision = now.cutoff_len // 2, _lower_precision(now, machine)
    impossible = any(each.kind == "machine" for each in errors_of(quantization_problems(machine)))
    quantizable = now.method == "lora" and not now.quantization_bit and not impossible
    whole = "ddp" if now.processes > 1 else "single"
    possible: tuple[tuple[Any, str, dict[str, Any]], ...] = (
        (not now.gradient_checkpointing, "disable_gradient_checkpointing: false", {"gradient_checkpointing": True}),
        (now.micro_batch_size > rows, "per_device_train_batch_size: 1", {"micro_batch_size": rows}),
        (now.processes > 1, "kit.launcher: zero3", {"launcher": "zero3"}),
        (now.processes > 1, "kit.launcher: zero3_offload", {"launcher": "zero3_offload"}),
        (half >= LEAST_TOKENS, f"cutoff_len: {half}", {"cutoff_len": half}),
        (precision, f"kit.precision: {precision}", {"precision": precision}),
        (now.method == "full", "finetuning_type: lora", {"method": "lora", "launcher": whole}),
        (quantizable, "quantization_bit: 4", {"quantization_bit": 4}),
    )
    return ((text, replace(now, **change)) for condition, text, change in possible if condition)


def _lower_precision(now: Workload, machine: Machine) -> str | None:
    """The 16-bit precision that the machine has least against; None when it has none, or one is in use."""
    against = {name: decide_precision(machine, name)[1] for name in ("bf16", "fp16") if now.precision == "fp32"}
    allowed = [name for name, problems in against.items() if not errors_of(problems)]
    return min(allowed, key=lambda name: len(against[name]), default=None)

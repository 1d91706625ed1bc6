"""Does a training fit into a device's memory, and which single changes would make it fit."""

from dataclasses import replace
from typing import Any

from ..errors import Problem, errors_of
from ..machine import Machine, decide_precision, fused_attention, quantization_problems
from .draft import Draft, Launcher
from .memory import Workload, estimate

Change = tuple[str, Workload]  # the line to write, and the training with it
LEAST_TOKENS = 256


def workload(draft: Draft, launcher: Launcher) -> Workload:
    """What the memory estimate needs to know of a training that is launched so."""
    return Workload(
        settings=draft.settings,
        precision=draft.precision,
        attention=draft.attention,
        launcher=launcher.name,
        processes=launcher.processes,
        accelerator=draft.machine.accelerator,
        fused_attention=fused_attention(draft.machine, draft.recipe.kit.env),
        accumulates=True,  # the larger need: with a single micro-batch a step less is held
    )


def limit_gib(machine: Machine) -> float | None:
    return min((device.memory_gib for device in machine.devices), default=machine.memory_gib)


def needed_gib(draft: Draft, launcher: Launcher) -> float | None:
    """GiB that a device needs; None when the model's shapes are not known."""
    return estimate(draft.inputs.model, workload(draft, launcher), None).per_device_gib


def fit(draft: Draft) -> Draft:
    """Estimate the memory; what does not fit is an error with the changes that were computed to fit."""
    work = workload(draft, draft.launcher)
    memory = estimate(draft.inputs.model, work, limit_gib(draft.machine))
    need, limit = memory.per_device_gib, memory.limit_gib
    draft = replace(draft, memory=memory)
    if need is None or limit is None or need <= limit:
        return draft
    what = f"{need:.1f} GiB a device are needed, {limit:.1f} are there; the largest part is {memory.largest}"
    place = draft.recipe.place("model_name_or_path")
    return draft.complain(Problem(what, _remedies(draft, work, limit), place, kind="machine"))


def _remedies(draft: Draft, work: Workload, limit: float) -> str:
    """The single changes after which a device's need is within its limit; else the one that comes nearest."""
    estimated = (
        (estimate(draft.inputs.model, changed, None).per_device_gib, text)
        for text, changed in _changes(work, draft.machine)
    )
    tried = [(gib, text) for gib, text in estimated if gib is not None]
    fitting = [f"{text} ({gib:.1f} GiB)" for gib, text in tried if gib <= limit]
    if fitting:
        return " or ".join(fitting)
    other = "a smaller model" if draft.machine.accelerator == "cpu" else "a smaller model, or more devices"
    if not tried:
        return other
    gib, text = min(tried)
    return f"{other}; no single change is enough, {text} comes nearest with {gib:.1f} GiB"


def _changes(now: Workload, machine: Machine) -> list[Change]:
    """The changes to try, those first that change the result least."""
    settings, several, precision = now.settings, now.processes > 1, _lower_precision(now, machine)
    method, half = settings["finetuning_type"], settings["cutoff_len"] // 2
    impossible = any(each.kind == "machine" for each in errors_of(quantization_problems(machine)))
    quantizable = method == "lora" and not settings["quantization_bit"] and not impossible
    whole = replace(now, launcher="ddp" if several else "single")
    possible: tuple[tuple[Any, Change], ...] = (
        (settings["disable_gradient_checkpointing"], _stating(now, "disable_gradient_checkpointing", False)),
        (settings["per_device_train_batch_size"] > 1, _stating(now, "per_device_train_batch_size", 1)),
        (several, ("kit.launcher: zero3", replace(now, launcher="zero3"))),
        (several, ("kit.launcher: zero3_offload", replace(now, launcher="zero3_offload"))),
        (half >= LEAST_TOKENS, _stating(now, "cutoff_len", half)),
        (precision, (f"kit.precision: {precision}", replace(now, precision=precision or now.precision))),
        (method == "full", _stating(whole, "finetuning_type", "lora")),
        (quantizable, _stating(now, "quantization_bit", 4)),
    )
    return [change for wanted, change in possible if wanted]


def _stating(now: Workload, name: str, value: Any) -> Change:
    text = f"{name}: {str(value).lower()}"
    return text, replace(now, settings=replace(now.settings, stated={**now.settings.stated, name: value}))


def _lower_precision(now: Workload, machine: Machine) -> str | None:
    """The 16-bit precision that the machine has least against; None when it has none, or one is in use."""
    against = {name: decide_precision(machine, name)[1] for name in ("bf16", "fp16") if now.precision == "fp32"}
    allowed = [name for name, problems in against.items() if not errors_of(problems)]
    return min(allowed, key=lambda name: len(against[name]), default=None)

"""Does a training fit into a device's memory, and which single changes would make it fit."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import reduce

from msgspec import Struct
from msgspec.structs import replace

from ..errors import Problem, errors_of
from ..machine import (
    Machine,
    compile_problems,
    emulates,
    fused_attention,
    offload_problems,
    quantization_problems,
)
from ..recipe import Recipe
from ..rules import Case, check
from .measured import corrected
from .memory import MemoryEstimate, Workload, estimate, offloaded_gib
from .record import Inputs, Launcher, Plan

LEAST_TOKENS = 256
NO_TRAINING = "nothing is trained or evaluated: this estimate is for a training"
COMMON_GIB = 32.0  # what the computer around a named card has as a rule
COMPILING = ("torch_compile", "torch_compile_backend", "torch_compile_mode")  # each of them switches it on
Lines = tuple[str, ...]
Planner = Callable[[Inputs], Plan]  # every step but the fit


class Remedy(Struct, frozen=True):
    """Lines to write, the memory of the plan that has them, and what that plan is warned of beside this one's."""

    lines: Lines
    memory: MemoryEstimate
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        against = f", but {'; '.join(self.warnings)}" if self.warnings else ""
        return f"{' and '.join(self.lines)} ({self.memory.per_device_gib:.1f} GiB{against})"


def workload(plan: Plan, launcher: Launcher) -> Workload:
    """What the memory estimate needs to know of a training that is launched so."""
    return Workload(
        settings=plan.settings,
        precision=plan.precision,
        attention=plan.attention,
        launcher=launcher.name,
        processes=launcher.processes,
        accelerator=plan.machine.accelerator,
        fused_attention=fused_attention(plan.machine, plan.recipe.kit.env),
        accumulates=True,  # the larger need: with a single micro-batch a step less is held
    )


def limit_gib(machine: Machine) -> float | None:
    return min((device.memory_gib for device in machine.devices), default=machine.memory_gib)


def needed(plan: Plan, launcher: Launcher) -> MemoryEstimate:
    """What a device needs when the training is launched so; nothing is known where the model's shapes are not."""
    work = workload(plan, launcher)
    host_gib = offloaded_gib(plan.inputs.model, work) * launcher.here or None
    return replace(estimate(plan.inputs.model, work, limit_gib(plan.machine)), host_gib=host_gib)


def problems_of_offload(plan: Plan, launcher: Launcher) -> list[Problem]:
    """What speaks against keeping a part in the computer's own memory: a slow processor, and too little memory."""
    work, there = workload(plan, launcher), plan.machine.memory_gib
    slow = offload_problems(plan.machine) if work.sharing.offloads and work.sharing.zero_stage else []
    place = plan.recipe.place(next(iter(plan.stated("deepspeed", "fsdp")), "kit.launcher"))
    found = [dataclasses.replace(each, where=place) for each in slow]
    need = needed(plan, launcher).host_gib or 0.0
    if need <= (COMMON_GIB if there is None else there):
        return found
    what = f"{launcher.name} keeps at least {need:.1f} GiB in the computer's own memory"
    if there is None:
        return [*found, Problem(what, "make sure that it has more than that", place, "warning", "machine")]
    what = f"{what}, {there:.1f} are there"
    fix = "a smaller model, a method that trains fewer parameters, or zero3 without offload on more devices"
    return [*found, Problem(what, fix, place, kind="machine")]


def fit(plan: Plan, planned: Planner) -> Plan:
    """Estimate the memory; what does not fit is an error, what may not a warning, with the changes that would help."""
    if not (plan.settings["do_train"] or plan.settings["dataset"] or plan.settings["eval_dataset"]):
        return replace(plan, memory=MemoryEstimate(limit_gib=limit_gib(plan.machine), not_counted=(NO_TRAINING,)))
    memory = corrected(needed(plan, plan.launch), plan)
    plan = replace(plan, memory=memory).complain(*problems_of_offload(plan, plan.launch))
    if memory.ready:
        return plan
    need, limit, place = memory.per_device_gib, memory.limit_gib, plan.recipe.place("model_name_or_path")
    least = "at least " if memory.not_counted else ""
    what = f"{least}{need:.1f} GiB a device are needed, {limit:.1f} are there"
    if not memory.fits:
        what = f"{what}; the largest part is {memory.largest}"
        return plan.complain(Problem(what, _remedies(plan, planned), place, kind="machine"))
    what = f"{what}: the estimate is not exact enough to say that it fits"
    return plan.complain(Problem(what, f"try it, or {_remedies(plan, planned)}", place, "warning", "machine"))


def _remedies(plan: Plan, planned: Planner) -> str:
    """The single changes after which it fits, those first that nothing is said against; else what comes nearest."""
    tried = [remedy for lines in _changes(plan) if (remedy := _try(plan, planned, lines))]
    fitting = sorted((each for each in tried if each.memory.ready), key=lambda each: bool(each.warnings))
    other = "a smaller model" if plan.machine.accelerator == "cpu" else "a smaller model or more devices"
    if fitting:
        first = [other] if fitting[0].warnings else []
        return " or ".join([*first, *map(str, fitting)])
    nearest = min(tried, key=lambda each: each.memory.per_device_gib or 0, default=None)
    return f"{other}; no single change is enough, {nearest} comes nearest" if nearest else other


def _try(plan: Plan, planned: Planner, lines: Lines) -> Remedy | None:
    """The plan with changed lines; None where it cannot be had, or where nothing is known of its memory."""
    again = planned(replace(plan.inputs, recipe=reduce(Recipe.with_line, lines, plan.recipe)))
    before, found = _problems(plan), _problems(again)
    new = [each for each in found if each.what not in {known.what for known in before}]
    memory = needed(again, again.launch)
    if errors_of(new) or memory.per_device_gib is None:
        return None
    return Remedy(lines, memory, tuple(each.what for each in new))


def _problems(plan: Plan) -> list[Problem]:
    chosen = (plan.processes, plan.launcher, plan.precision)
    case = Case(plan.recipe, plan.settings, plan.machine, plan.inputs.model, *chosen)
    return [*plan.problems, *check(case), *machine_problems(case), *problems_of_offload(plan, plan.launch)]


def machine_problems(case: Case) -> list[Problem]:
    """What the machine, a named one too, cannot do or does badly: bitsandbytes' quantisation, compiling."""
    ours = case["quantization_bit"] and case["quantization_method"] == "bnb" and not case.model.quantization
    saved = case.model.quantization == "bitsandbytes" or "-bnb-" in case.model.name
    key = "quantization_bit" if ours else "model_name_or_path"
    found = [(key, each) for each in quantization_problems(case.machine, key) if ours or saved]
    compiling = next((key for key in COMPILING if case[key]), None)
    found += [(compiling, each) for each in compile_problems(case.machine) if compiling]
    return [dataclasses.replace(each, where=case.recipe.place(key)) for key, each in found]


def _changes(plan: Plan) -> list[Lines]:
    """The lines to try, those first that change the result least."""
    settings, several = plan.settings, plan.processes > 1
    method, half = settings["finetuning_type"], settings["cutoff_len"] // 2
    evaluates = settings["do_eval"] or settings["eval_strategy"] != "no"
    launchers = ("zero3", "zero3_offload") if several else ()
    mild = (
        (evaluates and settings["per_device_eval_batch_size"] > 1, "per_device_eval_batch_size: 1"),
        (settings["disable_gradient_checkpointing"], "disable_gradient_checkpointing: false"),
        (settings["per_device_train_batch_size"] > 1, "per_device_train_batch_size: 1"),
        *((True, f"kit.launcher: {name}") for name in launchers if name != plan.launcher),
        (half >= LEAST_TOKENS, f"cutoff_len: {half}"),
    )
    strong = (
        (method == "full", "finetuning_type: lora"),
        (method == "lora" and not settings["quantization_bit"], "quantization_bit: 4"),
    )
    first, last = ([(line,) for wanted, line in lines if wanted] for lines in (mild, strong))
    return [*first, *(_narrower(plan) if plan.precision == "fp32" else ()), *last]


def _narrower(plan: Plan) -> Iterator[Lines]:
    """The half precisions that this machine does not emulate, with an attention that does not overflow in them."""
    switches = plan.stated("bf16", "fp16")
    attention = "flash_attn: sdpa" if plan.stated("flash_attn") else "kit.attention: sdpa"
    for name in ("bf16", "fp16"):
        if not emulates(plan.machine, name):
            line = f"{name}: true" if switches else f"kit.precision: {name}"
            yield (line, attention) if plan.attention == "disabled" else (line,)

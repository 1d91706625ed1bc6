"""Does a training fit into a device's memory, and which single changes would make it fit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce

from ..errors import Problem, errors_of
from ..machine import Machine, emulates, fused_attention, quantization_problems
from ..recipe import Recipe
from ..rules import Case, check
from .draft import Draft, Inputs, Launcher
from .memory import MemoryEstimate, Workload, estimate, offloaded_gib

LEAST_TOKENS = 256
Lines = tuple[str, ...]
Planner = Callable[[Inputs], Draft]  # every step but the fit


@dataclass(frozen=True)
class Remedy:
    """Lines to write, the memory of the plan that has them, and what that plan is warned of beside this one's."""

    lines: Lines
    memory: MemoryEstimate
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        against = f", but {'; '.join(self.warnings)}" if self.warnings else ""
        return f"{' and '.join(self.lines)} ({self.memory.per_device_gib:.1f} GiB{against})"


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


def needed(draft: Draft, launcher: Launcher) -> MemoryEstimate:
    """What a device needs when the training is launched so; nothing is known where the model's shapes are not."""
    return estimate(draft.inputs.model, workload(draft, launcher), limit_gib(draft.machine))


def offload_problems(draft: Draft, launcher: Launcher) -> list[Problem]:
    """Whether the computer's own memory holds what is kept in it instead of the devices'; a lower bound is checked."""
    need, there = offloaded_gib(draft.inputs.model, workload(draft, launcher)) * launcher.here, draft.machine.memory_gib
    if there is None or need <= there:
        return []
    what = f"{launcher.name} keeps at least {need:.1f} GiB in the computer's own memory, {there:.1f} are there"
    key = next(iter(draft.stated("deepspeed", "fsdp")), "kit.launcher")
    fix = "a smaller model, a method that trains fewer parameters, or zero3 without offload on more devices"
    return [Problem(what, fix, draft.recipe.place(key), kind="machine")]


def fit(draft: Draft, planned: Planner) -> Draft:
    """Estimate the memory; what does not fit is an error, what may not a warning, with the changes that would help."""
    memory = needed(draft, draft.launcher)
    draft = replace(draft, memory=memory).complain(*offload_problems(draft, draft.launcher))
    if memory.ready:
        return draft
    need, limit, place = memory.per_device_gib, memory.limit_gib, draft.recipe.place("model_name_or_path")
    least = "at least " if memory.not_counted else ""
    what = f"{least}{need:.1f} GiB a device are needed, {limit:.1f} are there"
    if not memory.fits:
        what = f"{what}; the largest part is {memory.largest}"
        return draft.complain(Problem(what, _remedies(draft, planned), place, kind="machine"))
    what = f"{what}: the estimate is not exact enough to say that it fits"
    return draft.complain(Problem(what, f"try it, or {_remedies(draft, planned)}", place, "warning", "machine"))


def _remedies(draft: Draft, planned: Planner) -> str:
    """The single changes after which it fits, those first that nothing is said against; else what comes nearest."""
    tried = [remedy for lines in _changes(draft) if (remedy := _try(draft, planned, lines))]
    fitting = sorted((each for each in tried if each.memory.ready), key=lambda each: bool(each.warnings))
    other = "a smaller model" if draft.machine.accelerator == "cpu" else "a smaller model or more devices"
    if fitting:
        first = [other] if fitting[0].warnings else []
        return " or ".join([*first, *map(str, fitting)])
    nearest = min(tried, key=lambda each: each.memory.per_device_gib or 0, default=None)
    return f"{other}; no single change is enough, {nearest} comes nearest" if nearest else other


def _try(draft: Draft, planned: Planner, lines: Lines) -> Remedy | None:
    """The plan with changed lines; None where it cannot be had, or where nothing is known of its memory."""
    again = planned(replace(draft.inputs, recipe=reduce(Recipe.with_line, lines, draft.recipe)))
    before, found = _problems(draft), _problems(again)
    new = [each for each in found if each.what not in {known.what for known in before}]
    memory = needed(again, again.launcher)
    if errors_of(new) or memory.per_device_gib is None:
        return None
    return Remedy(lines, memory, tuple(each.what for each in new))


def _problems(draft: Draft) -> list[Problem]:
    chosen = (draft.launcher.processes, draft.launcher.name, draft.precision)
    case = Case(draft.recipe, draft.settings, draft.machine, draft.inputs.model, *chosen)
    bits = quantization_problems(draft.machine) if draft.settings["quantization_bit"] else []
    return [*draft.problems, *check(case), *bits, *offload_problems(draft, draft.launcher)]


def _changes(draft: Draft) -> list[Lines]:
    """The lines to try, those first that change the result least."""
    settings, several = draft.settings, draft.launcher.processes > 1
    method, half = settings["finetuning_type"], settings["cutoff_len"] // 2
    evaluates = settings["do_eval"] or settings["eval_strategy"] != "no"
    launchers = ("zero3", "zero3_offload") if several else ()
    mild = (
        (evaluates and settings["per_device_eval_batch_size"] > 1, "per_device_eval_batch_size: 1"),
        (settings["disable_gradient_checkpointing"], "disable_gradient_checkpointing: false"),
        (settings["per_device_train_batch_size"] > 1, "per_device_train_batch_size: 1"),
        *((True, f"kit.launcher: {name}") for name in launchers if name != draft.launcher.name),
        (half >= LEAST_TOKENS, f"cutoff_len: {half}"),
    )
    strong = (
        (method == "full", "finetuning_type: lora"),
        (method == "lora" and not settings["quantization_bit"], "quantization_bit: 4"),
    )
    first, last = ([(line,) for wanted, line in lines if wanted] for lines in (mild, strong))
    return [*first, *(_narrower(draft) if draft.precision == "fp32" else ()), *last]


def _narrower(draft: Draft) -> Iterator[Lines]:
    """The half precisions that this machine does not emulate, with an attention that does not overflow in them."""
    switches = draft.stated("bf16", "fp16")
    attention = "flash_attn: sdpa" if draft.stated("flash_attn") else "kit.attention: sdpa"
    for name in ("bf16", "fp16"):
        if not emulates(draft.machine, name):
            line = f"{name}: true" if switches else f"kit.precision: {name}"
            yield (line, attention) if draft.attention == "disabled" else (line,)

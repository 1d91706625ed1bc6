"""The steps that turn a recipe and a machine into LLaMA-Factory's training arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..decision import Decision
from ..errors import Problem
from ..machine import Machine, decide_attention, decide_precision
from ..models import Base
from ..rules import needs_reference
from .draft import Draft

FLASH_ATTN = {"disabled": "disabled", "sdpa": "sdpa", "fa2": "fa2"}
PRECISION_KEYS = ("pure_bf16", "bf16", "fp16")


def precision(draft: Draft, machine: Machine) -> str:
    """Decide the precision and write it as LLaMA-Factory's switches; returns fp32, fp16, bf16 or as-saved."""
    stated = draft.stated(*PRECISION_KEYS)
    wanted, key = str(draft.recipe.kit.precision), "kit.precision"
    if stated and not draft.conflict(stated, "precision"):
        wanted, key = _stated_precision(draft, stated)
    decision, problems = decide_precision(machine, wanted)
    draft.take(decision, problems, key)
    chosen = str(decision.value)
    for switch in ("bf16", "fp16"):
        if not draft.stated("pure_bf16"):
            draft.arguments[switch] = chosen == switch
    if chosen == "bf16" and machine.accelerator == "cpu":
        draft.choose("use_cpu", True, "transformers accepts bf16 without a GPU only when told to use the CPU")
    return chosen


def _stated_precision(draft: Draft, stated: list[str]) -> tuple[str, str]:
    for key in stated:
        if draft.arguments.get(key):
            return key.removeprefix("pure_"), key
    if {"bf16", "fp16"} <= set(stated):
        return "fp32", "fp16"  # both switched off: the user means FP32, which LLaMA-Factory alone does not give
    return "auto", stated[0]


def attention(draft: Draft, machine: Machine, chosen_precision: str) -> str:
    """Decide the attention implementation and write it as flash_attn."""
    stated = draft.stated("flash_attn")
    wanted, key = draft.recipe.kit.attention, "kit.attention"
    if stated and not draft.conflict(stated, "attention"):
        wanted, key = draft.arguments["flash_attn"], "flash_attn"
    if wanted not in ("auto", *FLASH_ATTN):
        return str(wanted)  # not a choice: the check of values has said so
    decision, problems = decide_attention(machine, chosen_precision, wanted)
    draft.take(decision, problems, key)
    draft.arguments["flash_attn"] = FLASH_ATTN[str(decision.value)]
    return str(decision.value)


def reference_model(arguments: Mapping[str, Any]) -> bool:
    """Whether a second copy of the model is loaded to compare with; LoRA switches its adapter off instead."""
    alone = arguments.get("finetuning_type", "lora") == "lora" and not arguments.get("ref_model")
    return needs_reference(arguments.get("stage"), arguments.get("pref_loss")) and not alone


def rows_of_a_sample(arguments: Mapping[str, Any]) -> int:
    """A pair of answers is two rows of one forward pass."""
    return 2 if arguments.get("stage") in ("rm", "dpo") else 1


def adapters(draft: Draft, base: Base) -> None:
    """Go on with the adapter of `kit.base`, or put a new one on top where the base's result is the reference."""
    if base.whole:
        return
    if base.adapters:
        draft.arguments["adapter_name_or_path"] = ",".join(map(str, base.adapters))
    shown = draft.arguments.get("adapter_name_or_path", f"the result of {base.recipe.name}")
    if needs_reference(draft.arguments.get("stage"), draft.arguments.get("pref_loss")):
        _reference(draft, str(shown))
    stacked = draft.arguments.get("create_new_adapter")
    what = "merged into the model as it is loaded; a new one is trained on top" if stacked else "trained on"
    draft.decisions.append(Decision("adapter_name_or_path", shown, "recipe", f"the adapter of kit.base, {what}"))


def _reference(draft: Draft, adapter: str) -> None:
    """Have the loss compare with the result of `kit.base`: without its adapter a model is what came before that."""
    bits = draft.arguments.get("quantization_bit")
    if not bits and not draft.stated("ref_model"):
        reason = "the reference is the model without the adapter in training, and is to be the result of kit.base"
        draft.choose("create_new_adapter", True, reason)
    elif not draft.stated("ref_model"):
        reason = "a quantised model takes one adapter, so a second copy of both is the reference"
        draft.choose("ref_model", draft.arguments["model_name_or_path"], reason)
        draft.choose("ref_model_adapters", adapter, reason)
        draft.choose("ref_model_quantization_bit", bits, reason)


def batch(draft: Draft, processes: int) -> None:
    """Compute the accumulation from the global batch: micro-batch x accumulation x processes."""
    wanted = draft.recipe.kit.global_batch_size
    if wanted is None:
        return
    draft.choose("per_device_train_batch_size", 1, "the smallest: accumulation makes up the global batch")
    micro = draft.arguments.get("per_device_train_batch_size")
    if not isinstance(micro, int) or micro < 1:
        return  # the check of values has said so
    step = micro * processes
    if draft.stated("gradient_accumulation_steps"):
        _compare_batch(draft, wanted, step)
    elif wanted % step:
        nearest = [size for size in (wanted // step * step, (wanted // step + 1) * step) if size]
        what = f"a global batch of {wanted} is not a multiple of micro-batch {micro} x {count(processes)}"
        fix = f"kit.global_batch_size: {' or '.join(map(str, nearest))}"
        draft.complain(Problem(what, fix, draft.recipe.place("kit.global_batch_size")))
    else:
        steps = wanted // step
        reason = f"{micro} a device x {count(processes)} x {steps} = global batch {wanted}"
        draft.choose("gradient_accumulation_steps", steps, reason)


def count(processes: int) -> str:
    return f"{processes} process{'es' * (processes != 1)}"


def _compare_batch(draft: Draft, wanted: int, step: int) -> None:
    accumulation = draft.arguments["gradient_accumulation_steps"]
    if not isinstance(accumulation, int) or accumulation * step == wanted:
        return
    there = draft.recipe.place("kit.global_batch_size")
    here = draft.recipe.place("gradient_accumulation_steps")
    what = f"accumulation {accumulation} x {step} makes a batch of {accumulation * step}, not {wanted} ({there})"
    draft.complain(Problem(what, "keep one of the two lines", here))


def output(draft: Draft) -> None:
    """The run's own output folder, and what makes its result readable and repeatable."""
    draft.force("output_dir", "{run}/output", "every run has a folder of its own")
    draft.force("overwrite_output_dir", False, "the folder is new, nothing is overwritten")
    draft.force("resume_from_checkpoint", None, "a run starts fresh; `resume RUN` continues one")
    draft.choose("dataset_dir", "{data}", "data/ below the current folder")
    draft.choose("plot_loss", True, "a picture of the loss beside the result")
    draft.choose("include_num_input_tokens_seen", True, "tokens per second in the progress and the report")
    draft.choose("disable_gradient_checkpointing", False, "about 30 % slower for about half the activation memory")
    draft.choose("logging_nan_inf_filter", False, "a loss that is not a number is shown as such, not as 0")
    if draft.arguments.get("pissa_init") and not draft.arguments.get("pissa_convert"):
        # LLaMA-Factory's default, the fast decomposition, draws at random and cannot be made again.
        draft.choose("pissa_iter", -1, "the exact decomposition: a resume, a chat and the export start from the same")
    if draft.recipe.value("report_to") is None:
        draft.choose("report_to", "none", "nothing leaves this machine unless the recipe names a tracker")


def several_processes(draft: Draft, launcher: str) -> None:
    """What every run of more than one process needs."""
    reason = "the other ranks wait while the first tokenises; 30 minutes, the default, is too short for large data"
    draft.choose("ddp_timeout", 180_000_000, reason)
    method, reward = draft.arguments.get("finetuning_type"), draft.arguments.get("stage") == "rm"
    if launcher == "ddp" and (method == "oft" or (reward and method == "full")):
        reason = "with torch's older checkpointing DDP ends in 'Expected to mark a variable ready only once' here"
        draft.choose("use_reentrant_gc", False, reason)


def dataset_names(arguments: dict[str, Any], key: str = "dataset") -> list[str]:
    """The data set names of an argument, which may be a list or a comma-separated string."""
    value = arguments.get(key)
    names = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return [str(name).strip() for name in names]

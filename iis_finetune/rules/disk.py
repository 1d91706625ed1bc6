"""How much disk the checkpoints of a training take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..models import ModelFacts
from .case import Case

# Bytes a trained parameter takes in a checkpoint. LLaMA-Factory writes fp32 weights even of a bf16 run (only pure_bf16
# does not); Adam keeps two more numbers. Seen in the files of real runs, LLaMA-Factory, 2026-11-20.
WEIGHT, ADAM, EIGHT_BIT, SMALL = 4, 8, 2, 0.1


def trained_parameters(model: ModelFacts, arguments: Mapping[str, Any]) -> int | None:
    """How many parameters are trained; None when the model's sizes are not known."""
    if arguments.get("finetuning_type", "lora") == "full":
        return model.parameters
    if model.shapes is None or not model.linear_layers:
        return None
    layers = model.linear_layers
    if arguments.get("finetuning_type") == "freeze":
        blocks = min(abs(arguments.get("freeze_trainable_layers") or 2), model.shapes.layers)
        return int(blocks) * sum(inputs * outputs for inputs, outputs in layers.values())
    named = str(arguments.get("lora_target") or "all").split(",")
    sizes = [size for name, size in layers.items() if named == ["all"] or name in named]
    rank = int(arguments.get("lora_rank") or 8)
    return model.shapes.layers * rank * sum(map(sum, sizes))


def checkpoint_bytes(model: ModelFacts, arguments: Mapping[str, Any]) -> int | None:
    """Bytes of one checkpoint, weights and optimizer; None when the model's sizes are not known."""
    trained = trained_parameters(model, arguments)
    if trained is None:
        return None
    whole = arguments.get("finetuning_type") in ("full", "freeze")
    saved = (model.parameters or trained) if whole else trained
    weights = saved * (WEIGHT // 2 if arguments.get("pure_bf16") else WEIGHT)
    return int(weights + (0 if arguments.get("save_only_model") else trained * _state(arguments)))


def _state(arguments: Mapping[str, Any]) -> float:
    name = str(arguments.get("optim") or "adamw_torch_fused")
    if "8bit" in name:
        return EIGHT_BIT
    if name.startswith(("adafactor", "sgd")):
        return SMALL
    return ADAM


def disk_bytes(case: Case) -> int | None:
    """Bytes that all kept checkpoints and the result take together; None when that cannot be known."""
    one = checkpoint_bytes(case.model, case.arguments)
    result = checkpoint_bytes(case.model, {**case.arguments, "save_only_model": True})
    if one is None or result is None or not case.trains:
        return None
    return one * _checkpoints(case) + result


def _checkpoints(case: Case) -> int:
    """How many checkpoints lie there at once; one more than are kept, as the new one is written before the old goes."""
    if case["save_strategy"] == "no":
        return 0
    each, steps = case["save_steps"], case.steps
    made = 2  # what an unknown number of steps is taken for: too few rather than a false alarm
    if case["save_strategy"] == "steps" and steps and each > 0:
        made = max(1, int(steps // (each if each >= 1 else max(1, each * steps))))
    elif case["save_strategy"] == "epoch" and case["max_steps"] < 1:
        made = max(1, int(case["num_train_epochs"]))
    return min(made, case["save_total_limit"] + 1) if (case["save_total_limit"] or 0) > 0 else made

"""A run's next attempt made safer, in the words of the recipe; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..recipe import Recipe
from .training import PRECISION_KEYS

DEFAULT_MICRO_BATCH = 8  # transformers 5.6, per_device_train_batch_size


def micro_batch_of(arguments: Mapping[str, Any]) -> int:
    """Rows that one process computes at a time."""
    return int(arguments.get("per_device_train_batch_size") or DEFAULT_MICRO_BATCH)


def safer_overrides(recipe: Recipe, arguments: Mapping[str, Any], change: Mapping[str, Any]) -> tuple[str, ...]:
    """`key=value` texts that make a change: `precision`, `attention` or `micro_batch` (same global batch)."""
    found = []
    if "precision" in change:
        found += [f"{key}=null" for key in PRECISION_KEYS if recipe.value(key) is not None]
        found.append(f"kit.precision={change['precision']}")
    if "attention" in change:
        found += ["flash_attn=null"] if recipe.value("flash_attn") is not None else []
        found.append(f"kit.attention={change['attention']}")
    if "micro_batch" in change:
        rows = micro_batch_of(arguments) * int(arguments.get("gradient_accumulation_steps") or 1)
        found.append(f"per_device_train_batch_size={change['micro_batch']}")
        if recipe.kit.global_batch_size is None or recipe.value("gradient_accumulation_steps") is not None:
            found.append(f"gradient_accumulation_steps={rows // change['micro_batch']}")
    return tuple(found)

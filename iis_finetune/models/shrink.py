"""The same architecture, tiny: what `train --smoke` runs instead of the real model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD_DIM = 16  # even, as rotary embeddings need
LAYERS = 2
LIMITS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "max_window_layers": LAYERS,
}
NOT_KEPT = ("quantization_config", "_name_or_path")


def shrink(config: Mapping[str, Any], vocabulary_size: int | None = None) -> dict[str, Any]:
    """A config of at most 2 layers and 4 heads of 16; the ratio of heads to key-value heads is kept where 4 allow it.

    The vocabulary is the tokenizer's and stays, unless `vocabulary_size` is given.
    """
    small = {key: value for key, value in config.items() if key not in NOT_KEPT}
    if isinstance(config.get("text_config"), Mapping):
        small["text_config"] = shrink(config["text_config"], vocabulary_size)
    small |= {key: min(limit, small[key]) for key, limit in LIMITS.items() if isinstance(small.get(key), int)}
    if vocabulary_size is not None and "vocab_size" in small:
        small["vocab_size"] = vocabulary_size
    if "num_attention_heads" in small:
        small |= _heads(config)
    if "num_hidden_layers" in small:
        small["num_hidden_layers"] = min(LAYERS, config["num_hidden_layers"])
    if isinstance(small.get("layer_types"), list):
        # one of each kind, so that the smoke run passes through every kind of layer
        kinds = list(dict.fromkeys(small["layer_types"]))
        small["layer_types"] = (kinds + small["layer_types"])[:LAYERS] if len(kinds) > 1 else kinds * LAYERS
    return small


def _heads(config: Mapping[str, Any]) -> dict[str, Any]:
    groups = max(
        1, config["num_attention_heads"] // (config.get("num_key_value_heads") or config["num_attention_heads"])
    )
    heads = min(4, config["num_attention_heads"])
    sizes = {"num_attention_heads": heads, "hidden_size": heads * HEAD_DIM, "intermediate_size": 2 * heads * HEAD_DIM}
    if config.get("num_key_value_heads"):
        sizes["num_key_value_heads"] = max(1, heads // min(groups, heads))
    if config.get("head_dim"):
        sizes["head_dim"] = HEAD_DIM
    return {key: value for key, value in sizes.items() if key in config}

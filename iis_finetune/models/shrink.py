"""The same architecture, tiny: what `train --smoke` runs instead of the real model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .facts import ModelFacts

HEAD_DIM = 32  # even, as rotary embeddings need; bitsandbytes' 4 bit on a CPU takes rows by 32
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
VOCABULARY = 1600  # of the tokenizer that stands in for one that is not on disk
READABLE = (".json", ".jsonl", ".txt", ".csv")


def shrink(config: Mapping[str, Any], vocabulary_size: int | None = None) -> dict[str, Any]:
    """A config of at most 2 layers and 4 heads of 32; the ratio of heads to key-value heads is kept where 4 allow it.

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


def smoke_spec(facts: ModelFacts, special_words: Sequence[str], texts: Sequence[Path], folder: Path) -> dict[str, Any]:
    """The order for `probe.scratch`: the model shrunken into `folder`, with its own tokenizer when that is on disk.

    Otherwise a small one is made from `texts`, with the template's `special_words` as tokens.
    """
    stand_in = facts.folder is None
    tokenizer: dict[str, Any] = {"copy_from": str(facts.folder)}
    if stand_in:
        train_on = [str(path) for path in texts if path.suffix in READABLE]
        tokenizer = {"train_on": train_on, "vocab_size": VOCABULARY, "special_words": list(special_words)}
    config = shrink(facts.config, VOCABULARY if stand_in else None)
    return {"config": config, "tokenizer": tokenizer, "dtype": facts.dtype or "float32", "to": str(folder)}

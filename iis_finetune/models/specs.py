"""What `probe.scratch` is told to make: the model that a recipe describes, and the tiny one of a smoke run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import dataset
from ..errors import ProblemsFound, errors_of
from ..recipe import FromScratch, Recipe
from ..runs import Workspace
from .facts import ModelFacts, from_config

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
TEXTS = 5000  # that it is made of
READABLE = (".json", ".jsonl", ".txt", ".csv")


def facts_of(recipe: Recipe) -> ModelFacts | None:
    """What is known of a model that is not made yet; None when the recipe describes none."""
    wanted = recipe.kit.from_scratch
    if wanted is None:
        return None
    config = {**_config_of(wanted), "vocab_size": wanted.vocabulary_size}
    return from_config(ModelFacts(str(recipe.value("model_name_or_path"))), config)


def scratch_spec(recipe: Recipe, workspace: Workspace) -> dict[str, Any]:
    """The spec of the model of random weights that a recipe describes. Raises ProblemsFound without its text."""
    wanted = recipe.kit.from_scratch
    if wanted is None:
        return {}
    place = recipe.place("kit.from_scratch")
    sources, problems = dataset.check_registered(wanted.text, workspace.data, "pt", place)
    if errors_of(problems):
        raise ProblemsFound(problems)
    keys = ("prompt", "query", "response")
    files = [{"file": str(file), "columns": each.layout.named(*keys)} for each in sources for file in each.files]
    return {
        "config": _config_of(wanted),
        "tokenizer": {"train_on": files, "vocab_size": wanted.vocabulary_size},
        "seed": wanted.seed,
        "dtype": "float32",
        "to": str(workspace.root / str(recipe.value("model_name_or_path"))),
    }


def _config_of(wanted: FromScratch) -> dict[str, Any]:
    """The config.json of a small Qwen2."""
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": wanted.hidden_size,
        "intermediate_size": wanted.intermediate_size,
        "num_hidden_layers": wanted.layers,
        "num_attention_heads": wanted.attention_heads,
        "num_key_value_heads": wanted.key_value_heads,
        "tie_word_embeddings": wanted.tie_word_embeddings,
        "max_position_embeddings": 2048,
        "dtype": "float32",
    }


def smoke_spec(facts: ModelFacts, special_words: Sequence[str], texts: Sequence[Path], folder: Path) -> dict[str, Any]:
    """The spec of a shrunken model with its own tokenizer, else one made from `texts` and the `special_words`."""
    stand_in = facts.folder is None
    tokenizer: dict[str, Any] = {"copy_from": str(facts.folder)}
    if stand_in:
        train_on = [str(path) for path in texts if path.suffix in READABLE]
        tokenizer = {"train_on": train_on, "vocab_size": VOCABULARY, "special_words": list(special_words)}
        tokenizer["most_texts"] = TEXTS
    config = shrink(facts.config, VOCABULARY if stand_in else None)
    return {"config": config, "tokenizer": tokenizer, "dtype": facts.dtype or "float32", "to": str(folder)}


def shrink(config: Mapping[str, Any], vocabulary_size: int | None = None) -> dict[str, Any]:
    """A config of at most 2 layers and 4 heads of 32, in the ratio of heads to key-value heads as far as 4 allow."""
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


def with_layers(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The config with its exact widths and fewer layers, the kinds of layers in their own order."""
    cut = {key: value for key, value in config.items() if key not in NOT_KEPT}
    if isinstance(config.get("text_config"), Mapping):
        cut["text_config"] = with_layers(config["text_config"], layers)
    cut |= {key: layers for key in ("num_hidden_layers",) if key in cut}
    cut |= {key: min(layers, cut[key]) for key in ("max_window_layers",) if isinstance(cut.get(key), int)}
    return cut | {key: cut[key][:layers] for key in ("layer_types",) if isinstance(cut.get(key), list)}


def _heads(config: Mapping[str, Any]) -> dict[str, Any]:
    whole = config["num_attention_heads"]
    groups = max(1, whole // (config.get("num_key_value_heads") or whole))
    heads = min(4, whole)
    sizes = {"num_attention_heads": heads, "hidden_size": heads * HEAD_DIM, "intermediate_size": 2 * heads * HEAD_DIM}
    if config.get("num_key_value_heads"):
        sizes["num_key_value_heads"] = max(1, heads // min(groups, heads))
    if config.get("head_dim"):
        sizes["head_dim"] = HEAD_DIM
    return {key: value for key, value in sizes.items() if key in config}

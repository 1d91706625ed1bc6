"""A model of random weights that a recipe describes: what it will be, and the order to make it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import dataset
from ..errors import ProblemsFound, errors_of
from ..recipe import FromScratch, Recipe
from ..runs import Workspace
from .facts import ModelFacts, from_config


def config_of(wanted: FromScratch) -> dict[str, Any]:
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


def facts_of(recipe: Recipe) -> ModelFacts | None:
    """What is known of a model that is not made yet; None when the recipe describes none."""
    wanted = recipe.kit.from_scratch
    if wanted is None:
        return None
    config = {**config_of(wanted), "vocab_size": wanted.vocabulary_size}
    return from_config(ModelFacts(str(recipe.value("model_name_or_path"))), config)


def scratch_spec(recipe: Recipe, workspace: Workspace) -> dict[str, Any]:
    """The order for `probe.scratch`: config, tokenizer text, seed, folder. Raises ProblemsFound without the text."""
    wanted = recipe.kit.from_scratch
    if wanted is None:
        return {}
    place = recipe.place("kit.from_scratch")
    sources, problems = dataset.check_registered(wanted.text, workspace.data, "pt", place)
    if errors_of(problems):
        raise ProblemsFound(problems)
    files = [{"file": str(file), "columns": _columns(source)} for source in sources for file in source.files]
    return {
        "config": config_of(wanted),
        "tokenizer": {"train_on": files, "vocab_size": wanted.vocabulary_size},
        "seed": wanted.seed,
        "dtype": "float32",
        "to": str(workspace.root / Path(str(recipe.value("model_name_or_path")))),
    }


def _columns(source: dataset.Source) -> list[str]:
    columns = source.layout.columns
    return [columns[key] for key in ("prompt", "query", "response") if key in columns]

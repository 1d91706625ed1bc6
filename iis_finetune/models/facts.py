"""What a model is: shapes, dtype, parameters; from its folder's JSON and headers, or from the built-in table."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import replace

from ..runs import read_json
from ..tables import read
from ..tensors import Header, read_headers

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
INCOMPLETE = ".incomplete"  # a download under way
IN_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.\d+\.(?:.+\.)?([^.]+)\.weight$")
NOT_TEXT = re.compile(r"visual|vision|audio|experts")
Layers = Mapping[str, tuple[int, int]]


class Shapes(Struct, frozen=True):
    """The sizes that parameters and activations follow from; `layers` counts decoder blocks."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    layers: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    vocabulary_size: int
    tie_word_embeddings: bool = False
    max_position_embeddings: int | None = None
    norms_per_layer: int = 2
    query_key_norm: bool = False
    softcap: bool = False
    biased: tuple[str, ...] = ()

    @property
    def query_size(self) -> int:
        return self.attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        return self.key_value_heads * self.head_dim

    @property
    def words(self) -> str:
        """Architecture and widths: `qwen2 24x896x4864 h14/2x64 v151936`."""
        heads = f"h{self.attention_heads}/{self.key_value_heads}x{self.head_dim} v{self.vocabulary_size}"
        return f"{self.model_type} {self.layers}x{self.hidden_size}x{self.intermediate_size} {heads}"


class ModelFacts(Struct, frozen=True):
    """What is known of a model; what is unknown is None.

    `linear_layers` maps each name that `lora_target: all` stands for to (inputs, outputs) in one block; `modules` are
    the names that `additional_target` may hold; `weight_bytes` is their size on disk; `dtype` what they load as.
    """

    name: str
    folder: Path | None = None
    known: Literal["disk", "table"] | None = None
    shapes: Shapes | None = None
    architecture: str | None = None
    dtype: str | None = None
    parameters: int | None = None
    weight_bytes: int | None = None
    linear_layers: Layers = field(default_factory=dict)
    modules: frozenset[str] = frozenset()
    quantization: str | None = None
    chat_template: bool | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


def find_folder(name_or_path: str, models_root: Path) -> Path | None:
    """The folder a model is read from: `models/<name>`, `models/<org>--<name>` or a path; None when there is none."""
    try:
        for folder in (models_root / name_or_path, models_root / name_or_path.replace("/", "--")):
            if (folder / CONFIG).is_file() and not folder.name.endswith(INCOMPLETE):
                return folder
        given = Path(name_or_path).expanduser()
        return given if given.is_dir() else None
    except (OSError, RuntimeError):  # too long for a name, or the home of a user that there is not
        return None


def look(name_or_path: str, models_root: Path) -> ModelFacts:
    """All that is known of a model: from its folder, else from the built-in table, else its name alone."""
    folder = find_folder(name_or_path, models_root)
    if folder is None:
        rows = {name.lower(): row["config"] for row in read("models.toml")["model"] for name in row["names"]}
        row = rows.get(name_or_path.lower())
        return from_config(ModelFacts(name_or_path, known="table"), row) if row else ModelFacts(name_or_path)
    of_tokenizer = read_json(folder / "tokenizer_config.json") or {}
    templated = bool(of_tokenizer.get("chat_template")) or any(folder.glob("chat_template.*"))
    facts = ModelFacts(name_or_path, folder, "disk", chat_template=templated)
    config = read_json(folder / CONFIG)
    return from_config(facts, config, read_headers(folder)) if config else facts


def from_config(facts: ModelFacts, config: dict[str, Any], headers: Header | None = None) -> ModelFacts:
    """Fill in what config.json and the headers say; the headers win, they are what is loaded."""
    headers = headers or Header({})
    shapes = shapes_of(config)
    quantization = (config.get("quantization_config") or {}).get("quant_method")
    by_shapes = layers_of(shapes) if shapes else {}
    linear = by_shapes if quantization else layers_in(headers) or by_shapes
    exact = None if quantization else headers.parameters(tied=bool(shapes and shapes.tie_word_embeddings))
    known = {*linear, "embed_tokens", "lm_head", "norm"} if linear else set()
    return replace(
        facts,
        shapes=shapes,
        architecture=next(iter(config.get("architectures") or []), None),
        dtype=config_dtype(config) or headers.dtype,
        parameters=exact or (count_parameters(shapes) if shapes else None),
        weight_bytes=headers.data_bytes or None,
        linear_layers=linear,
        modules=headers.modules | known,
        quantization=quantization,
        config=config,
    )


def config_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype that config.json names, under transformers 5's key or the older one, its own or its text part's."""
    for part in (config, config.get("text_config") or {}):
        value = part.get("dtype") or part.get("torch_dtype")
        if isinstance(value, str):
            return value.removeprefix("torch.")
    return None


def shapes_of(config: Mapping[str, Any]) -> Shapes | None:
    """The shapes that a config.json states; None when it uses other names for them (GPT-2, ChatGLM)."""
    config = {**config, **(config.get("text_config") or {})}
    row = read("models.toml")["types"].get(config.get("model_type"), {})
    config = {**row.get("defaults", {}), **{key: value for key, value in config.items() if value is not None}}
    try:
        heads = int(config["num_attention_heads"])
        return Shapes(
            model_type=str(config["model_type"]),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            attention_heads=heads,
            key_value_heads=int(config.get("num_key_value_heads", heads)),
            head_dim=int(config.get("head_dim", int(config["hidden_size"]) // heads)),
            vocabulary_size=int(config["vocab_size"]),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            max_position_embeddings=config.get("max_position_embeddings"),
            norms_per_layer=row.get("norms", 2),
            query_key_norm=row.get("query_key_norm", False),
            softcap=row.get("softcap", False),
            biased=tuple(row.get("biased", ())),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def layers_in(headers: Header) -> Layers:
    """The linear layers of a block, as the headers show them: matrices in numbered blocks of the text model."""
    found: dict[str, tuple[int, int]] = {}
    for name, tensor in headers.tensors.items():
        match = IN_BLOCK.search(name)
        # `gate` is a mixture-of-experts router, which transformers 5 does not build as a linear layer
        if match and len(tensor.shape) == 2 and not NOT_TEXT.search(name) and match[1] != "gate":
            found.setdefault(match[1], (tensor.shape[1], tensor.shape[0]))
    return found


def layers_of(shapes: Shapes) -> Layers:
    """The linear layers of a block, computed; empty for an architecture that the table does not have."""
    row = read("models.toml")["types"].get(shapes.model_type)
    if row is None:
        return {}
    sizes = {
        "hidden": shapes.hidden_size,
        "intermediate": shapes.intermediate_size,
        "query": shapes.query_size,
        "key_value": shapes.key_value_size,
    }
    layout = read("models.toml")["layouts"][row["layout"]]
    return {
        name: (sizes[inputs], sum(sizes[part] for part in outputs.split("+")))
        for name, (inputs, outputs) in layout.items()
    }


def count_parameters(shapes: Shapes) -> int | None:
    """Number of parameters, exact; None for an architecture that the table does not have."""
    linear = layers_of(shapes)
    if not linear:
        return None
    block = sum(inputs * outputs for inputs, outputs in linear.values())
    block += sum(linear[name][1] for name in shapes.biased)
    block += shapes.norms_per_layer * shapes.hidden_size + (2 * shapes.head_dim if shapes.query_key_norm else 0)
    embeddings = shapes.vocabulary_size * shapes.hidden_size * (1 if shapes.tie_word_embeddings else 2)
    return shapes.layers * block + embeddings + shapes.hidden_size

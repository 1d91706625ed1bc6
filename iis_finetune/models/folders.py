"""The folders that are made of a model: a precision view, and what `probe.scratch` is told to make."""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import dataset, process
from ..errors import Place, Problem, ProblemsFound, errors_of
from ..hub import read_manifest
from ..recipe import FromScratch, Recipe
from ..runs import Workspace, read_json
from ..tables import read
from ..tensors import TORCH_NAMES
from .facts import CONFIG, ModelFacts, from_config

RECORD = ".view.json"
ABSOLUTE = re.compile(r"""(?<![\w.:/~-])~?/(?:[^\s/"',\]}]+/)+([^\s/"',\]}]+)""")
QUOTED = re.compile(r"""(["'])~?/(?:[^"'\n/]+/)+([^"'\n/]+)(?=\1)""")  # there it may hold spaces
HEAD_DIM = 32  # even, as rotary embeddings need; bitsandbytes' 4 bit on a CPU takes rows by 32
LAYERS = 2
NOT_KEPT = ("quantization_config", "_name_or_path")
VOCABULARY = 1600  # of the tokenizer that stands in for one that is not on disk
TEXTS = 5000  # that it is made of
READABLE = (".json", ".jsonl", ".txt", ".csv")


def needs_view(facts: ModelFacts, precision: str) -> bool:
    """Whether the model would load in another dtype than the plan's; quantised weights keep their own."""
    return precision in TORCH_NAMES and facts.quantization is None and facts.dtype != TORCH_NAMES[precision]


def view_path(folder: Path, precision: str, models_root: Path) -> Path:
    """Where the view of a folder lies: `models/<name>@fp32`; a folder elsewhere adds a hash of its real path."""
    name = folder.name
    if folder.parent.resolve() != models_root.resolve():
        name += "-" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return models_root / f"{name}@{precision}"


def precision_view(folder: Path, precision: str, models_root: Path) -> Path:
    """Make the view, or leave one that is up to date; returns its path. Raises ProblemsFound without a config.json."""
    config = read_json(folder / CONFIG)
    if config is None:
        what = f"{folder / CONFIG} is missing or cannot be read"
        raise ProblemsFound([Problem(what, "fetch the model again, whole", Place(str(folder)), kind="missing")])
    path = view_path(folder, precision, models_root)
    record = _record(folder, precision)
    models_root.mkdir(parents=True, exist_ok=True)
    with process.locked(models_root / f".{path.name}.lock"):  # a second process waits, then finds the view made
        if not _up_to_date(path, record):
            _make(path, with_dtype(config, TORCH_NAMES[precision]), record)
    return path


def with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config with every dtype in it replaced, those of the text and vision parts as well."""
    edited = {
        key: with_dtype(value, dtype) if key.endswith("_config") and isinstance(value, dict) else value
        for key, value in config.items()
        if key not in ("dtype", "torch_dtype")
    }
    return {**edited, "dtype": dtype}


def called(model: str) -> str:
    """What to call a model elsewhere: its hub's id where that is known, else its folder's name; never a path."""
    if not Path(model).is_absolute():
        return model
    folder = Path((read_json(Path(model) / RECORD) or {}).get("source", model))
    manifest = read_manifest(folder.resolve())
    name = folder.parent.name if folder.name in ("output", "export") else folder.name
    return manifest.model if manifest else name.partition("@")[0]


def without_folders(text: str) -> str:
    """A text for others: of each absolute path in it the last name alone."""
    return ABSOLUTE.sub(r"\1", QUOTED.sub(r"\1\2", text))


def _record(folder: Path, precision: str) -> dict[str, Any]:
    """What the view is made from: each file's real path, size and time; another record makes another view."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    return {
        "source": str(folder.resolve()),
        "precision": precision,
        "files": {each.name: [str(each.resolve()), each.stat().st_size, each.stat().st_mtime_ns] for each in files},
    }


def _up_to_date(path: Path, record: dict[str, Any]) -> bool:
    links = {name: target for name, (target, _, _) in record["files"].items() if name != CONFIG}
    there = all((path / name).is_symlink() and str((path / name).readlink()) == links[name] for name in links)
    return there and (path / CONFIG).is_file() and read_json(path / RECORD) == record


def _make(path: Path, config: dict[str, Any], record: dict[str, Any]) -> None:
    """Build beside, then rename: nobody sees half a view, and a training that reads the old one keeps its files."""
    for left_over in path.parent.glob(f".{path.name}-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    made.chmod(0o755)
    for name, (target, _, _) in record["files"].items():
        if name != CONFIG:
            (made / name).symlink_to(target)
    (made / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (made / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    if path.exists():
        path.rename(made / ".old")
    made.rename(path)
    shutil.rmtree(path / ".old", ignore_errors=True)


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
    limits = read("models.toml")["smoke"]
    small |= {key: min(limit, small[key]) for key, limit in limits.items() if isinstance(small.get(key), int)}
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

"""What LLaMA-Factory is given after training: arguments and environment of predict, export, chat and serve."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..arguments import WHOLE, Settings, Verb, for_verb, table, trained_with
from ..models import stacked
from ..runs import Run, read_decided
from ..tensors import TORCH_NAMES

PREDICTIONS = "generated_predictions.jsonl"  # what a prediction leaves in its output folder
LOSSES = "eval_results.json"
VISIBLE = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
SEVERAL_PROCESSES = ("FORCE_TORCHRUN", "NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
ATTENTION_OF_TRANSFORMERS = {"disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"}
# Sampling and training-only arguments, dropped when evaluating.
NOT_WHEN_MEASURING = (
    *("do_eval", "do_predict", "predict_with_generate", "compute_accuracy", "eval_on_each_dataset", "max_samples"),
    *("eval_num_beams", "num_beams", "generation_num_beams", "generation_max_length", "max_length"),
    *("temperature", "top_p", "top_k", "run_name", "overwrite_cache", "ddp_backend", "ddp_timeout"),
    *("ref_model", "ref_model_adapters", "ref_model_quantization_bit"),
)


class Weights(Struct, frozen=True):
    """What is loaded: a model folder and the adapters on top of it, in order."""

    model: str
    adapters: tuple[str, ...] = ()


class Trained(Struct, frozen=True):
    """What the verbs after training take: a name, the arguments, what is loaded, the precision it was trained in."""

    name: str
    arguments: Mapping[str, Any]
    weights: Weights
    precision: str = "as-saved"

    @property
    def dtype(self) -> str:
        """Torch's name of the precision; `auto` is what the model's own config says."""
        return TORCH_NAMES.get(self.precision, "auto")


class Rows(Struct, frozen=True):
    """Rows to answer: registered names in a data folder, where the result goes, the longest answer in tokens."""

    dataset_dir: str
    names: tuple[str, ...]
    output: str
    max_new_tokens: int | None = None


def read_arguments(run: Run) -> dict[str, Any]:
    """The arguments that a run was trained with; OSError when the folder does not hold them."""
    from ruamel.yaml import YAML

    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 1)
    return dict(reader.load(run.arguments.read_text(encoding="utf-8")))


def base_weights(arguments: Mapping[str, Any]) -> Weights:
    """What the training of these arguments started from."""
    return Weights(str(arguments["model_name_or_path"]), tuple(trained_with(arguments).names("adapter_name_or_path")))


def tuned_weights(arguments: Mapping[str, Any], result: Path) -> Weights:
    """What the training made: a whole model, or an adapter that follows or replaces the last one it started from."""
    if trained_with(arguments)["finetuning_type"] in WHOLE:
        return Weights(str(result))
    return Weights(str(arguments["model_name_or_path"]), stacked(arguments, result))


def trained_by(run: Run, result: Path) -> Trained:
    """What a run left in `result`, its output folder or one checkpoint of it."""
    arguments = read_arguments(run)
    return Trained(run.name, arguments, tuned_weights(arguments, result.resolve()), read_decided(run).precision)


def _loaded(weights: Weights) -> dict[str, Any]:
    """How the weights are named; an OFT adapter is loaded like a LoRA one, a base without adapter too."""
    adapters = {"adapter_name_or_path": ",".join(weights.adapters)} if weights.adapters else {}
    return {"model_name_or_path": weights.model, **adapters, "finetuning_type": "lora"}


def _kept(arguments: Mapping[str, Any], verb: Verb) -> dict[str, Any]:
    kept = for_verb(arguments, verb, table())
    return {key: value for key, value in kept.items() if value is not None and key != "adapter_name_or_path"}


def _measured(settings: Settings, weights: Weights, rows: Rows) -> dict[str, Any]:
    """What predicting and measuring losses share: everything that decides what the model sees and computes in."""
    kept = {key: value for key, value in _kept(settings.stated, "predict").items() if key not in NOT_WHEN_MEASURING}
    if settings["pure_bf16"]:
        kept["bf16"] = True
    own = settings.states("per_device_eval_batch_size")
    return {
        **kept,
        **_loaded(weights),
        "dataset_dir": rows.dataset_dir,
        "eval_dataset": ",".join(rows.names),
        "output_dir": rows.output,
        # What fitted in training fits here.
        "per_device_eval_batch_size": settings[f"per_device_{'eval' if own else 'train'}_batch_size"],
        "report_to": "none",
    }


def predict(arguments: Mapping[str, Any], weights: Weights, rows: Rows) -> dict[str, Any]:
    """Greedy answers to the rows: template, length, precision and attention as in training; one process."""
    settings = trained_with(arguments)
    longest = settings["max_new_tokens"]
    own = settings.states("max_new_tokens") and settings["stage"] != "ppo"  # there: of the answers it learns from
    if rows.max_new_tokens and not own:
        longest = rows.max_new_tokens
    greedy = {"do_predict": True, "predict_with_generate": True, "do_sample": False, "max_new_tokens": longest}
    return {**_measured(settings, weights, rows), "stage": "sft", **greedy}


def losses(arguments: Mapping[str, Any], weights: Weights, rows: Rows) -> dict[str, Any]:
    """The loss of each of the named data sets, as in training."""
    settings = trained_with(arguments)
    plain = settings["stage"] == "pt"
    each = {"eval_on_each_dataset": True} if len(rows.names) > 1 else {}
    # Packed, plain text that does not fill a block would be dropped, and with it a slice that is shorter than one.
    own = {"stage": "pt", "packing": False} if plain else {"stage": "sft"}
    return {**_measured(settings, weights, rows), **each, **own, "do_eval": True}


def loss_of(results: Mapping[str, Any], name: str) -> float | None:
    """The loss of one data set in what `losses` leaves; None when it is not there."""
    value = results.get(f"eval_{name}_loss", results.get("eval_loss"))
    return float(value) if isinstance(value, int | float) else None


def export(trained: Trained, target: str, dtype: str) -> dict[str, Any]:
    """Merge on the CPU, where memory is, into a folder; a base that training quantised is merged as it was saved."""
    return {
        **_kept(trained.arguments, "export"),
        **_loaded(trained.weights),
        "export_dir": target,
        "export_device": "cpu",
        "infer_dtype": dtype,  # LLaMA-Factory's own `auto` turns FP32 into BF16 on some machines
    }


def converse(trained: Trained) -> dict[str, Any]:
    """Chat and the server: the run's model, template and quantisation, in the precision it was trained in."""
    return {**_kept(trained.arguments, "chat"), **_loaded(trained.weights), "infer_dtype": trained.dtype}


def benchmarked(trained: Trained) -> dict[str, Any]:
    """How lm_eval loads the model: nothing merged, in the precision, attention and batches of the training."""
    own = predict(trained.arguments, trained.weights, Rows("", (), ""))
    attention = ATTENTION_OF_TRANSFORMERS.get(trained_with(trained.arguments)["flash_attn"])
    return {
        "pretrained": trained.weights.model,
        **({"peft": trained.weights.adapters[-1]} if trained.weights.adapters else {}),
        "dtype": trained.dtype,
        **({"attn_implementation": attention} if attention else {}),
        "batch_size": own["per_device_eval_batch_size"],
        "trust_remote_code": bool(own.get("trust_remote_code")),
    }


def server_environment(host: str, port: int, name: str) -> dict[str, str]:
    """Where LLaMA-Factory's server listens; its own defaults are every interface and readable local files."""
    return {
        "API_HOST": host,
        "API_PORT": str(port),
        "API_MODEL_NAME": name,
        "API_VERBOSE": "0",
        "ALLOW_LOCAL_FILES": "0",
    }


def one_process(environment: Mapping[str, str]) -> dict[str, str]:
    """A training's environment for what comes after it: one process, its first device, none of the training's hooks."""
    kept = {name: value for name, value in environment.items() if name not in SEVERAL_PROCESSES}
    if kept.pop("IIS_STAGE", None):  # stage ppo alone runs in an environment of its own
        kept["PATH"] = kept["PATH"].removeprefix(f"{kept.pop('VIRTUAL_ENV')}/bin:")
    for name in VISIBLE:
        if kept.get(name):
            kept[name] = kept[name].split(",")[0]
    paths = [path for path in kept.get("PYTHONPATH", "").split(":") if path and Path(path).name != "hook"]
    return {**kept, "PYTHONPATH": ":".join(paths)}

"""How many parameters a training trains, and how much disk its checkpoints take."""

from ..arguments import WHOLE, Settings
from ..models import ModelFacts
from .case import Case

EMBEDDINGS = ("lm_head", "embed_tokens")
# Bytes a trained parameter takes in a checkpoint. LLaMA-Factory writes fp32 weights even of a bf16 run (only pure_bf16
# does not); Adam keeps two more numbers. Seen in the files of real runs, 2026-11-20.
WEIGHT, ADAM, EIGHT_BIT, SMALL = 4, 8, 2, 0.1


def trained_layers(model: ModelFacts, settings: Settings) -> dict[str, tuple[int, int]]:
    """The linear layers of a block that train or carry an adapter: inputs and outputs by name."""
    names = _targets(settings)
    everything = settings["finetuning_type"] in WHOLE or "all" in names
    return {name: size for name, size in model.linear_layers.items() if everything or name in names}


def trained_blocks(model: ModelFacts, settings: Settings) -> int:
    """How many blocks a freeze training trains; a negative number counts from the input."""
    there = model.shapes.layers if model.shapes else 0
    return min(abs(int(settings["freeze_trainable_layers"])), there)


def trained_parameters(model: ModelFacts, settings: Settings) -> float | None:
    """How many parameters are trained; None when the model's sizes are not known."""
    method, shapes = settings["finetuning_type"], model.shapes
    if method == "full":
        return model.parameters
    if shapes is None or model.parameters is None or not model.linear_layers:
        return None
    if method == "freeze":
        return block_parameters(model) * trained_blocks(model, settings)
    layers = trained_layers(model, settings).values()
    if method == "oft":  # an orthogonal matrix for each block of inputs has n x (n - 1) / 2 free numbers
        return shapes.layers * (int(settings["oft_block_size"]) - 1) / 2 * sum(inputs for inputs, _ in layers)
    outside = (shapes.vocabulary_size + shapes.hidden_size) * len(_targets(settings) & set(EMBEDDINGS))
    return float(settings["lora_rank"] * (outside + shapes.layers * sum(map(sum, layers))))


def needs_reference(settings: Settings) -> bool:
    """Whether what is learned is compared with the model as it was before; ORPO and SimPO do without."""
    stage = settings["stage"]
    return stage in ("ppo", "kto") or (stage == "dpo" and settings["pref_loss"] not in ("orpo", "simpo"))


def trained_at_once(model: ModelFacts, settings: Settings, trainable: float) -> float:
    """How many of the trained parameters have gradients and states at a time: BAdam takes one block, or a share."""
    if not settings["use_badam"]:
        return trainable
    return block_parameters(model) if settings["badam_mode"] == "layer" else trainable * settings["badam_update_ratio"]


def low_rank_states(model: ModelFacts, settings: Settings, trainable: float) -> tuple[float, float]:
    """Parameters that an optimizer keeps states of, and numbers of the projections that GaLore and APOLLO make."""
    name = next((name for name in ("galore", "apollo") if settings[f"use_{name}"]), None)
    if name is None or model.shapes is None:
        return trainable, 0
    rank, wanted = int(settings[f"{name}_rank"]), settings.names(f"{name}_target")
    layers = [size for layer, size in model.linear_layers.items() if "all" in wanted or layer in wanted]
    times = model.shapes.layers
    whole = trainable - times * sum(inputs * outputs for inputs, outputs in layers)
    return whole + times * rank * sum(map(max, layers)), times * rank * sum(map(min, layers))


def block_parameters(model: ModelFacts) -> float:
    """The parameters of one block, on average."""
    if model.shapes is None or model.parameters is None:
        return 0
    outside = model.shapes.vocabulary_size * model.shapes.hidden_size * (1 if model.shapes.tie_word_embeddings else 2)
    return (model.parameters - outside) / model.shapes.layers


def _targets(settings: Settings) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in settings.names("lora_target")}


def disk_bytes(case: Case) -> int | None:
    """Bytes that all kept checkpoints and the result take together; None when that cannot be known."""
    trained, whole = trained_parameters(case.model, case.settings), case["finetuning_type"] in WHOLE
    if trained is None or not case.trains:
        return None
    saved = case.model.parameters or trained if whole else trained
    weights = saved * (WEIGHT // 2 if case["pure_bf16"] else WEIGHT)
    states = 0 if case["save_only_model"] else trained * _state(case["optim"])
    return int((weights + states) * _checkpoints(case) + weights)


def _state(optimizer: str) -> float:
    if "8bit" in optimizer:
        return EIGHT_BIT
    return SMALL if optimizer.startswith(("adafactor", "sgd")) else ADAM


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

"""How much memory a training needs on one device, item by item, from the model's shapes; nothing is measured here."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

from msgspec import Struct, field
from msgspec.structs import asdict

from ..arguments import WHOLE, Settings
from ..models import ModelFacts, Shapes, layers_of
from ..rules import (
    Sharing,
    block_parameters,
    low_rank_states,
    needs_reference,
    trained_at_once,
    trained_blocks,
    trained_layers,
    trained_parameters,
)
from ..tables import read
from ..tensors import BYTES
from .activations import Items, Pass, at_loss, in_attention, in_mlp, without_gradients

GIB = 2**30
HALF = ("bf16", "fp16")
PAIRS = ("rm", "dpo")  # the stages whose sample is two answers
MEASURED = "measured beside the estimate"  # the item that makes the sum of the others what was measured
NO_SHAPES = "the sizes of the model are not known"


class Workload(Struct, frozen=True):
    """What decides the need beside the model: a training's settings and what was decided beside them.

    The `processes` share the model as `launcher` says. `fused_attention` is false where sdpa has only its math form,
    which keeps all scores (gfx906 and others); `accumulates` says that gradients of earlier micro-batches are there
    during the forward pass.
    """

    settings: Settings
    precision: str
    attention: str
    launcher: str
    processes: int
    accelerator: str
    fused_attention: bool
    accumulates: bool

    @property
    def method(self) -> str:
        return str(self.settings["finetuning_type"])

    @property
    def sharing(self) -> Sharing:
        return Sharing(self.launcher, self.settings)

    def rows(self, of: str = "train") -> int:
        """Rows of one forward pass; a pair of answers is two."""
        return int(self.settings[f"per_device_{of}_batch_size"]) * (2 if self.settings["stage"] in PAIRS else 1)

    @property
    def evaluates(self) -> bool:
        return bool(self.settings["do_eval"]) or self.settings["eval_strategy"] != "no"

    @property
    def reference(self) -> bool:
        """Whether a second copy of the model is loaded to compare with; LoRA switches its adapter off instead."""
        alone = self.method == "lora" and not self.settings["ref_model"]
        return needs_reference(self.settings) and not alone

    @property
    def checkpointing(self) -> bool:
        return not self.settings["disable_gradient_checkpointing"]


class MemoryEstimate(Struct, frozen=True):
    """Peak of one device in GiB and what it is made of; None and empty when it cannot be known.

    `not_counted` makes the peak a lower bound, or says why there is none. Up to `ready_gib` it fits; from there to
    `limit_gib` it may not, as the estimate is not that exact, unless it was measured. `host_gib` is what offload keeps
    at least in the memory of the computer, all its processes together; None without offload.
    """

    per_device_gib: float | None = None
    limit_gib: float | None = None
    items: Mapping[str, float] = field(default_factory=dict)
    not_counted: tuple[str, ...] = ()
    host_gib: float | None = None

    @property
    def ready_gib(self) -> float | None:
        return None if self.limit_gib is None else self.limit_gib * (1 - read("memory.toml")["margin"]["value"])

    @property
    def ready(self) -> bool:
        """Whether nothing is known that speaks against it."""
        if MEASURED in self.items:
            return self.fits
        return self.per_device_gib is None or self.ready_gib is None or self.per_device_gib <= self.ready_gib

    @property
    def fits(self) -> bool:
        return self.per_device_gib is None or self.limit_gib is None or self.per_device_gib <= self.limit_gib

    @property
    def largest(self) -> str | None:
        return max(self.items, key=lambda name: self.items[name], default=None)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class _Sizes(Struct, frozen=True):
    """Numbers of parameters, and bytes of one of them as it is stored.

    `trained` are the layers that are trained; of the `trainable` parameters `active` have gradients at a time.
    """

    shapes: Shapes
    facts: ModelFacts
    work: Workload
    stored: int
    trained: Mapping[str, tuple[int, int]]
    trainable: float
    active: float

    @property
    def whole(self) -> bool:
        return self.work.method in WHOLE

    @property
    def autocast(self) -> bool:
        return self.work.precision in HALF and not self.work.settings["pure_bf16"]

    @property
    def uncast(self) -> bool:
        """Whether what trains stays in the dtype of the weights: LLaMA-Factory casts it to fp32 otherwise."""
        settings = self.work.settings
        return bool(settings["pure_bf16"] or settings["use_badam"]) or (_zero(self.work) and self.autocast)

    @property
    def gradients(self) -> float:
        each = 4 if self.work.settings["use_badam"] or not self.uncast else self.stored
        at_once = self.active if self.work.sharing.stage == 1 else self.active / self.shards
        return at_once * each

    @property
    def shards(self) -> int:
        """Into how many parts the optimizer's states are cut."""
        return self.work.processes if self.work.sharing.stage else 1

    @property
    def parameters(self) -> int:
        return self.facts.parameters or 0

    @property
    def embedding(self) -> int:
        return self.shapes.vocabulary_size * self.shapes.hidden_size


def estimate(facts: ModelFacts, work: Workload, device_memory_gib: float | None) -> MemoryEstimate:
    """Estimate the peak of one device: what is always held, and the moment of a step that holds most beside it."""
    sizes = _sizes_of(facts, work)
    if sizes is None:
        nothing = f"{NO_SHAPES}{'' if facts.known else f': {facts.name} is neither on disk nor in the built-in table'}"
        return MemoryEstimate(limit_gib=device_memory_gib, not_counted=_unknown(facts, work) or (nothing,))
    moment = max(_moments(sizes), key=lambda items: sum(items.values()))
    held = {**_weights(sizes), **_optimizer(sizes), **_exchange(sizes)}
    items = {name: size / GIB for name, size in {**held, **moment}.items() if size > 0}
    items["device context"] = read("memory.toml")["context_gib"][work.accelerator]["value"]
    if allocator := read("memory.toml")["allocator"].get(work.accelerator):
        items["allocator"] = allocator["gib"] + allocator["share"] * sum({**items, "device context": 0}.values())
    items = {name: size for name, size in items.items() if size}
    return MemoryEstimate(sum(items.values()), device_memory_gib, items, _left_out(facts, work.settings))


def offloaded_gib(facts: ModelFacts, work: Workload) -> float:
    """What each process at least keeps in the computer's own memory; 0 without offload, or where it is not known.

    The optimizer's states with fp32 gradients, and ZeRO's fp32 masters (DeepSpeed zero/stage_1_and_2.py, stage3.py).
    """
    sizes = _sizes_of(facts, work)
    if sizes is None or not work.sharing.offloads:
        return 0.0
    each = _optimizer_row(work.settings)["bytes"] + (8 if _zero(work) else 4)
    weights = sizes.parameters * sizes.stored if work.sharing.offloads_weights else 0
    return float(sizes.trainable * each + weights) / work.processes / GIB


def _sizes_of(facts: ModelFacts, work: Workload) -> _Sizes | None:
    trainable = trained_parameters(facts, work.settings)
    if _unknown(facts, work) or facts.shapes is None or facts.parameters is None or not facts.linear_layers:
        return None
    if trainable is None:
        return None
    stored = 4 if work.precision == "fp32" else 2 if work.precision in HALF else BYTES.get(facts.dtype or "", 4)
    active = trained_at_once(facts, work.settings, trainable)
    return _Sizes(facts.shapes, facts, work, stored, trained_layers(facts, work.settings), trainable, active)


def _unknown(facts: ModelFacts, work: Workload) -> tuple[str, ...]:
    """Why nothing can be said: programs and models whose memory the formulas do not describe."""
    settings, config = work.settings, facts.config
    rows, known = read("memory.toml")["unknown"], facts.shapes is not None and layers_of(facts.shapes)
    found = [row["what"] for row in rows if row.get("argument") and settings[row["argument"]]]
    found += [row["what"] for row in rows if not known and any(config.get(key) for key in row.get("config", ()))]
    if work.sharing.stage is None:
        found.append(f"the DeepSpeed configuration {settings['deepspeed']} cannot be read")
    return tuple(found)


def _left_out(facts: ModelFacts, settings: Settings) -> tuple[str, ...]:
    """What a training holds beside the items."""
    possible = {
        "the reward model and the answers that are written": settings["stage"] == "ppo",
        "images, sound and the parts that read them": {"vision_config", "audio_config"} & set(facts.config),
        "the modules of additional_target": settings["additional_target"],
        "the sizes of ref_model, taken for those of the model": settings["ref_model"],
    }
    return tuple(what for what, there in possible.items() if there)


def _weights(sizes: _Sizes) -> Items:
    """Base weights; LLaMA-Factory casts whatever trains to fp32, but for ZeRO, which keeps fp32 masters of its own."""
    work, facts, bits = sizes.work, sizes.facts, sizes.work.settings["quantization_bit"]
    frozen = sizes.parameters - (sizes.trainable if sizes.whole else 0)
    base = frozen * sizes.stored
    if facts.quantization and facts.weight_bytes:
        base = facts.weight_bytes
    elif bits:
        linear = sizes.shapes.layers * sum(inputs * outputs for inputs, outputs in facts.linear_layers.values())
        each = read("memory.toml")["quantised_bytes"].get(str(bits), sizes.stored)
        base = linear * each + (sizes.parameters - linear) * sizes.stored
    trained = sizes.trainable * (sizes.stored if sizes.uncast else 4)
    share = 0 if work.sharing.offloads_weights else 1 / work.processes if work.sharing.stage == 3 else 1
    # bitsandbytes unpacks one layer at a time for the multiplication
    unpacked = 2 * max(inputs * outputs for inputs, outputs in facts.linear_layers.values())
    reference = base if bits else sizes.parameters * sizes.stored
    return {
        "base weights": base * share,
        "trained weights": trained * share,
        "reference model": reference * share * work.reference,
        "unpacked weights": unpacked if bits or facts.quantization else 0,
    }


def _optimizer(sizes: _Sizes) -> Items:
    """States follow the dtype of what trains where the optimizer is torch's own; BAdam and ZeRO hold fp32 masters."""
    work, settings = sizes.work, sizes.work.settings
    if work.sharing.offloads:
        return {}
    row = _optimizer_row(settings)
    each = row["bytes"] * (sizes.stored / 4 if settings["pure_bf16"] and row.get("follows_weights") else 1)
    if settings["use_badam"]:
        return {"optimizer states": sizes.active * (row["bytes"] + 4)}
    numbers, projection = low_rank_states(sizes.facts, settings, sizes.trainable)
    masters = 4 * sizes.trainable if _zero(work) and sizes.autocast else 0
    return {"optimizer states": (numbers * each + projection * sizes.stored + masters) / sizes.shards}


def _optimizer_row(settings: Settings) -> Mapping[str, Any]:
    rows: list[Mapping[str, Any]] = read("memory.toml")["optimizer"]
    return next(row for row in rows if any(fnmatch(settings["optim"], name) for name in row["names"]))


def _exchange(sizes: _Sizes) -> Items:
    """What sharing the work needs: buckets for gradients, weights gathered from the other processes."""
    work, stage = sizes.work, sizes.work.sharing.stage
    if work.launcher == "ddp":
        return {"gradient buckets": sizes.trainable * 4}
    if work.launcher == "fsdp":
        return {
            "gathered weights": (2 * block_parameters(sizes.facts) + 2 * sizes.embedding) * sizes.stored * (stage == 3)
        }
    if not _zero(work):
        return {}
    bucket, live = _zero_buffers(sizes)
    gathered = min(sizes.parameters, live) * sizes.stored if stage == 3 else 0
    return {"gradient buckets": bucket * (2 if sizes.autocast else 4), "gathered weights": gathered}


def _zero_buffers(sizes: _Sizes) -> tuple[float, float]:
    """Elements of DeepSpeed's bucket, and how many gathered weights may be alive: its file, or the kit's, says it."""
    defaults, own = read("memory.toml")["deepspeed"], sizes.work.sharing.own_zero
    if sizes.work.launcher != "deepspeed" or own is None:
        return defaults["kit_bucket_elements"], defaults["live_parameters"]
    bucket = own.get("reduce_bucket_size", defaults["reduce_bucket_elements"])
    live = own.get("stage3_max_live_parameters")
    automatic = sizes.shapes.hidden_size**2  # what transformers 5.6 integrations/deepspeed.py writes for "auto"
    return (
        bucket if isinstance(bucket, int | float) else automatic,
        live if isinstance(live, int | float) else defaults["live_parameters"],
    )


def _moments(sizes: _Sizes) -> Iterator[Items]:
    """The moments of a step that may be its peak, each with the gradients that are there by then."""
    one, work = _pass(sizes), sizes.work
    layerwise = work.settings["galore_layerwise"] or work.settings["apollo_layerwise"]
    all_gradients = sizes.gradients / (one.layers if layerwise else 1)
    gradients = all_gradients if work.accumulates else 0
    loss = at_loss(one)
    yield {**loss, "gradients": gradients, "autocast copies": _copies(sizes)}
    if needs_reference(work.settings):
        yield {**loss, **without_gradients(one, loss), "gradients": gradients}
    if work.evaluates:
        yield without_gradients(_pass(sizes, "eval"))
    yield from _of_whole(sizes, one, gradients, all_gradients)
    for part in (in_mlp, in_attention):
        yield {**part(one, one.layers), "gradients": gradients or all_gradients / one.layers}
        yield {**part(one, 1), "gradients": all_gradients}
    yield {"gradients": all_gradients, "optimizer step": _step(sizes)}


def _of_whole(sizes: _Sizes, one: Pass, gradients: float, all_gradients: float) -> Iterator[Items]:
    """The moments around the output layer where the weights themselves train."""
    loss, width = at_loss(one), 4 if not sizes.uncast else sizes.stored
    if sizes.whole and sizes.autocast and not sizes.uncast:  # the forward pass still has a copy of every trained weight
        copied = {**loss, "logits": loss["logits"] * 10 / 12}
        yield {**copied, "gradients": gradients, "autocast copies": 2 * sizes.trainable}
    if sizes.work.method == "full":  # the output layer's gradient is a new tensor beside the one that accumulates
        logits = 4 * one.loss_tokens * one.shapes.vocabulary_size + width * sizes.embedding
        yield {**loss, "logits": logits, "gradients": gradients}
        twice = 2 if one.shapes.tie_word_embeddings else 1
        yield {"gradients": all_gradients + width * sizes.embedding * twice}


def _pass(sizes: _Sizes, of: str = "train") -> Pass:
    work, shapes, settings = sizes.work, sizes.shapes, sizes.work.settings
    layers = trained_blocks(sizes.facts, settings) if work.method == "freeze" else shapes.layers
    eager = work.attention == "disabled"
    compute = 2 if sizes.autocast else sizes.stored
    mask = 4 if work.accelerator == "cpu" else 1  # CUDA and ROCm keep one byte, the CPU a number of the input's dtype
    liger = read("memory.toml")["liger"]
    chunked = of == "train" and settings["enable_liger_kernel"] and settings["stage"] in liger["stages"]
    return Pass(
        shapes=shapes,
        trained=sizes.trained,
        rows=work.rows(of),
        length=settings["cutoff_len"],
        layers=max(layers, 1),
        stream=4 if work.method == "full" and not sizes.uncast else sizes.stored,
        compute=compute,
        score=compute if eager else 4,  # the math form of sdpa works in fp32
        autocast=sizes.autocast,
        rank=None if sizes.whole else settings["lora_rank"],
        dropout=mask if settings["lora_dropout"] and not sizes.whole else None,
        checkpointing=work.checkpointing,
        keeps_scores=eager or not work.fused_attention,
        decomposes=bool(settings["use_dora"]) and not sizes.whole,
        chunked=bool(chunked) and shapes.model_type in liger["model_types"],
    )


def _copies(sizes: _Sizes) -> float:
    """Autocast's half-precision copies of trained fp32 weights that the backward pass still needs."""
    if not sizes.autocast or not sizes.whole or sizes.uncast:
        return 0
    return 2 * (sizes.embedding if sizes.work.checkpointing else sizes.trainable)


def _step(sizes: _Sizes) -> float:
    """Temporaries of the optimizer: none when fused, one list of all states on a GPU, one tensor at a time on CPU."""
    settings, width = sizes.work.settings, sizes.stored if sizes.work.settings["pure_bf16"] else 4
    if "fused" in settings["optim"] or sizes.work.sharing.offloads:
        return 0
    if sizes.work.accelerator == "cpu":
        return 2 * width * sizes.embedding if sizes.work.method == "full" else 0
    if settings["use_galore"] or settings["use_apollo"]:
        return 2 * width * sizes.embedding  # one tensor after another
    return width * sizes.active / sizes.shards


def _zero(work: Workload) -> bool:
    return work.sharing.zero_stage is not None

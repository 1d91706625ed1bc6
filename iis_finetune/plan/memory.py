"""How much memory a training needs on one device, item by item, from the model's shapes; nothing is measured here."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from ..arguments import WHOLE, Settings
from ..models import ModelFacts, Shapes
from ..rules import block_parameters, needs_reference, trained_blocks, trained_layers, trained_parameters
from ..tensors import BYTES
from .activations import Items, Pass, at_loss, in_attention, in_mlp

TABLE = Path(__file__).parent.parent / "tables" / "memory.toml"
GIB = 2**30
HALF = ("bf16", "fp16")
PAIRS = ("rm", "dpo")  # the stages whose sample is two answers


@dataclass(frozen=True)
class Workload:
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
    def rows(self) -> int:
        """Rows of one forward pass; a pair of answers is two."""
        return int(self.settings["per_device_train_batch_size"]) * (2 if self.settings["stage"] in PAIRS else 1)

    @property
    def reference(self) -> bool:
        """Whether a second copy of the model is loaded to compare with; LoRA switches its adapter off instead."""
        alone = self.method == "lora" and not self.settings["ref_model"]
        return needs_reference(self.settings) and not alone

    @property
    def checkpointing(self) -> bool:
        return not self.settings["disable_gradient_checkpointing"]


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak of one device in GiB and what it is made of; None and empty when the model's shapes are unknown."""

    per_device_gib: float | None = None
    limit_gib: float | None = None
    items: Mapping[str, float] = field(default_factory=dict)

    @property
    def largest(self) -> str | None:
        return max(self.items, key=lambda name: self.items[name], default=None)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Sizes:
    """Numbers of parameters, and bytes of one of them as it is stored; `trained` are the layers that are trained."""

    shapes: Shapes
    facts: ModelFacts
    work: Workload
    stored: int
    trained: Mapping[str, tuple[int, int]]
    trainable: float

    @property
    def whole(self) -> bool:
        return self.work.method in WHOLE

    @property
    def autocast(self) -> bool:
        return self.work.precision in HALF

    @property
    def parameters(self) -> int:
        return self.facts.parameters or 0

    @property
    def embedding(self) -> int:
        return self.shapes.vocabulary_size * self.shapes.hidden_size


def estimate(facts: ModelFacts, work: Workload, device_memory_gib: float | None) -> MemoryEstimate:
    """Estimate the peak of one device: what is always held, and the moment of a step that holds most beside it."""
    trainable = trained_parameters(facts, work.settings)
    if facts.shapes is None or facts.parameters is None or not facts.linear_layers or trainable is None:
        return MemoryEstimate(limit_gib=device_memory_gib)
    stored = 4 if work.precision == "fp32" else 2 if work.precision in HALF else BYTES.get(facts.dtype or "", 4)
    sizes = _Sizes(facts.shapes, facts, work, stored, trained_layers(facts, work.settings), trainable)
    moment = max(_moments(sizes), key=lambda items: sum(items.values()))
    held = {**_weights(sizes), **_optimizer(sizes), **_exchange(sizes)}
    items = {name: size / GIB for name, size in {**held, **moment}.items() if size > 0}
    items["device context"] = _table()["context_gib"][work.accelerator]["value"]
    items = {name: size for name, size in items.items() if size}
    return MemoryEstimate(sum(items.values()), device_memory_gib, items)


def _weights(sizes: _Sizes) -> Items:
    """Base weights; LLaMA-Factory casts whatever trains to fp32, but for ZeRO, which keeps fp32 masters of its own."""
    work, facts, bits = sizes.work, sizes.facts, sizes.work.settings["quantization_bit"]
    frozen = sizes.parameters - (sizes.trainable if sizes.whole else 0)
    base = frozen * sizes.stored
    if facts.quantization and facts.weight_bytes:
        base = facts.weight_bytes
    elif bits:
        linear = sizes.shapes.layers * sum(inputs * outputs for inputs, outputs in facts.linear_layers.values())
        each = _table()["quantised_bytes"].get(str(bits), sizes.stored)
        base = linear * each + (sizes.parameters - linear) * sizes.stored
    trained = sizes.trainable * (sizes.stored if _zero(work) and sizes.autocast else 4)
    share = 1 / work.processes if work.launcher in ("zero3", "fsdp") else 0 if work.launcher == "zero3_offload" else 1
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
    work = sizes.work
    if work.launcher.endswith("offload"):
        return {}
    optimizer, table = work.settings["optim"], _table()["optimizer"]
    each = next(row["bytes"] for row in table if any(fnmatch(optimizer, name) for name in row["names"]))
    masters = 4 if _zero(work) and sizes.autocast else 0
    return {"optimizer states": sizes.trainable * (each + masters) / _shards(work)}


def _exchange(sizes: _Sizes) -> Items:
    """What sharing the work needs: buckets for gradients, weights gathered from the other processes."""
    work, defaults = sizes.work, _table()["deepspeed"]
    if work.launcher == "ddp":
        return {"gradient buckets": sizes.trainable * 4}
    if work.launcher == "fsdp":
        return {"gathered weights": (2 * block_parameters(sizes.facts) + 2 * sizes.embedding) * sizes.stored}
    if not _zero(work):
        return {}
    bucket = defaults["reduce_bucket_elements"] * (2 if sizes.autocast else 4)
    gathered = min(sizes.parameters, defaults["live_parameters"]) * sizes.stored if "zero3" in work.launcher else 0
    return {"gradient buckets": bucket, "gathered weights": gathered}


def _moments(sizes: _Sizes) -> Iterator[Items]:
    """The moments of a step that may be its peak, each with the gradients that are there by then."""
    one, work = _pass(sizes), sizes.work
    all_gradients = sizes.trainable * (sizes.stored if _zero(work) else 4) / _shards(work)
    gradients = all_gradients if work.accumulates else 0
    loss = at_loss(one)
    yield {**loss, "gradients": gradients, "autocast copies": _copies(sizes)}
    if sizes.whole and sizes.autocast:  # just before it, the forward pass still has a copy of every trained weight
        loss["logits"] *= 10 / 12
        yield {**loss, "gradients": gradients, "autocast copies": 2 * sizes.trainable}
    if work.method == "full":  # the output layer's gradient is a new tensor beside the one that accumulates
        loss["logits"] = 4 * one.tokens * one.shapes.vocabulary_size + 4 * sizes.embedding
        yield {**loss, "gradients": gradients}
        twice = 2 if one.shapes.tie_word_embeddings else 1
        yield {"gradients": all_gradients + 4 * sizes.embedding * twice}
    for part in (in_mlp, in_attention):
        yield {**part(one, one.layers), "gradients": gradients or all_gradients / one.layers}
        yield {**part(one, 1), "gradients": all_gradients}
    yield {"gradients": all_gradients, "optimizer step": _step(sizes)}


def _pass(sizes: _Sizes) -> Pass:
    work, shapes, settings = sizes.work, sizes.shapes, sizes.work.settings
    layers = trained_blocks(sizes.facts, settings) if work.method == "freeze" else shapes.layers
    eager = work.attention == "disabled"
    compute = 2 if sizes.autocast else sizes.stored
    mask = 4 if work.accelerator == "cpu" else 1  # CUDA and ROCm keep one byte, the CPU a number of the input's dtype
    return Pass(
        shapes=shapes,
        trained=sizes.trained,
        rows=work.rows,
        length=settings["cutoff_len"],
        layers=max(layers, 1),
        stream=4 if work.method == "full" and not _zero(work) else sizes.stored,
        compute=compute,
        score=compute if eager else 4,  # the math form of sdpa works in fp32
        autocast=sizes.autocast,
        rank=None if sizes.whole else settings["lora_rank"],
        dropout=mask if settings["lora_dropout"] and not sizes.whole else None,
        checkpointing=work.checkpointing,
        keeps_scores=eager or not work.fused_attention,
    )


def _copies(sizes: _Sizes) -> float:
    """Autocast's half-precision copies of trained fp32 weights that the backward pass still needs."""
    if not sizes.autocast or not sizes.whole or _zero(sizes.work):
        return 0
    return 2 * (sizes.embedding if sizes.work.checkpointing else sizes.trainable)


def _step(sizes: _Sizes) -> float:
    """Temporaries of the optimizer: none when fused, one list of all states on a GPU, one tensor at a time on CPU."""
    if "fused" in sizes.work.settings["optim"] or sizes.work.launcher.endswith("offload"):
        return 0
    if sizes.work.accelerator == "cpu":
        return 8 * sizes.embedding if sizes.work.method == "full" else 0
    return 4 * sizes.trainable / _shards(sizes.work)


def _zero(work: Workload) -> bool:
    return work.launcher.startswith("zero")


def _shards(work: Workload) -> int:
    """Into how many parts gradients and optimizer states are cut."""
    return work.processes if _zero(work) or work.launcher == "fsdp" else 1


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))

"""The memory estimate against peaks that others have published: what they measured, what the kit says, the ratio.

    python benchmarks/memory_references.py [--json]

A row is comparable where the training is the one that the formulas describe: transformers or plain torch, no
compiling, no chunked loss, one device. The rest is shown, with the reason. All on one NVIDIA card with bf16 and sdpa.
"""

import argparse
import json
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iis_finetune.arguments import trained_with
from iis_finetune.machine import profile
from iis_finetune.models import ModelFacts, from_config
from iis_finetune.plan.memory import estimate
from iis_finetune.recipe import Kit, Recipe
from iis_finetune.rules import Case

PEFT = "huggingface/peft method_comparison, July 2026: most that torch reserved, L40S"
QWEN = "QwenLM/Qwen README: A100, with the device context"
TORCHTUNE = "pytorch/torchtune README: most that torch reserved"
SHAPES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
# model_type, the five sizes above, the vocabulary, tied embeddings, and what else its config.json says
MODELS: dict[str, tuple[str, tuple[int, ...], int, bool, dict[str, Any]]] = {
    "Llama-3.2-3B": ("llama", (3072, 8192, 28, 24, 8), 128256, True, {"head_dim": 128}),
    "Llama-3.1-8B": ("llama", (4096, 14336, 32, 32, 8), 128256, False, {}),
    "Llama-2-7B": ("llama", (4096, 11008, 32, 32, 32), 32000, False, {}),
    "Qwen-7B": ("qwen2", (4096, 11008, 32, 32, 32), 151936, False, {}),  # its own code, of Qwen2's shapes
    "Qwen-1.8B": ("qwen2", (2048, 5504, 24, 16, 16), 151936, False, {}),
    "Qwen3-4B": ("qwen3", (2560, 9728, 36, 32, 8), 151936, True, {"head_dim": 128}),
    "Qwen2.5-32B": ("qwen2", (5120, 27648, 64, 40, 8), 152064, False, {}),
}
ALL, QV = {"lora_target": "all"}, {"lora_target": "q_proj,v_proj"}
KEPT = {"disable_gradient_checkpointing": True}
QLORA = {**ALL, "quantization_bit": 4}
OTHER_LOSS = "compiled, and a chunked loss"


@dataclass(frozen=True)
class Reference:
    """A published peak; `kind` is lora, qlora or full, `why_not` says why it is not comparable."""

    source: str
    kind: str
    model: str
    length: int
    rows: int
    gib: float
    arguments: dict[str, Any] = field(default_factory=dict)
    context: bool = False
    why_not: str | None = None


def references() -> list[Reference]:
    peft = {**KEPT, "lora_rank": 32, **QV}
    rows = [
        Reference(PEFT, "lora", "Llama-3.2-3B", 768, 4, 20.76, peft),
        Reference(PEFT, "lora", "Llama-3.2-3B", 768, 4, 21.00, {**peft, "lora_rank": 64}),
        Reference(
            PEFT,
            "lora",
            "Llama-3.2-3B",
            *(768, 4, 23.00),
            {**peft, "lora_rank": 10, "lora_target": "gate_proj,up_proj,down_proj"},
        ),
        Reference(PEFT, "lora", "Llama-3.2-3B", 768, 4, 22.85, {**peft, "use_dora": True}),
        Reference(PEFT, "full", "Llama-3.2-3B", 768, 4, 36.20, {**KEPT, "pure_bf16": True}),
    ]
    lora = {"lora_rank": 64, **ALL}
    seven = {256: 20.1, 512: 20.4, 1024: 21.5, 2048: 23.8, 4096: 29.7, 8192: 36.6}
    small = {256: 6.7, 1024: 8.4, 4096: 16.2, 8192: 21.8}
    quantised = {256: 11.5, 1024: 12.3, 4096: 16.9, 8192: 23.5}
    rows += [Reference(QWEN, "lora", "Qwen-7B", length, 1, gib, lora, True) for length, gib in seven.items()]
    rows += [Reference(QWEN, "lora", "Qwen-1.8B", length, 1, gib, lora, True) for length, gib in small.items()]
    four = {**lora, "quantization_bit": 4}
    rows += [Reference(QWEN, "qlora", "Qwen-7B", length, 1, gib, four, True) for length, gib in quantised.items()]
    rows += [
        Reference(QWEN, "full", "Qwen-1.8B", 1024, 1, 43.5, {}, True, "DeepSpeed, stage not stated"),
        Reference("ms-swift docs: RTX 3090", "lora", "Qwen3-4B", 2048, 1, 13.0, {"lora_rank": 8, **ALL}, True),
        Reference(TORCHTUNE, "lora", "Llama-2-7B", 2048, 4, 19.84, {"lora_rank": 8, **QV}),
        Reference(TORCHTUNE, "qlora", "Llama-2-7B", 2048, 4, 11.46, {"lora_rank": 8, **QV, "quantization_bit": 4}),
        Reference(TORCHTUNE, "lora", "Llama-3.1-8B", 2048, 2, 16.2, {"lora_rank": 8, **ALL}, why_not=OTHER_LOSS),
        Reference(TORCHTUNE, "qlora", "Llama-3.1-8B", 2048, 2, 7.4, {"lora_rank": 8, **QLORA}, why_not=OTHER_LOSS),
        Reference(TORCHTUNE, "full", "Llama-3.2-3B", 4096, 2, 60.0, {**KEPT, "pure_bf16": True}),
        Reference(
            TORCHTUNE,
            "full",
            "Llama-3.2-3B",
            *(4096, 2, 24.9, {"pure_bf16": True}),
            why_not=OTHER_LOSS,
        ),
        Reference(
            "hiyouga/LLaMA-Factory#10511: R9700, rank not stated, 16 taken",
            "qlora",
            "Qwen2.5-32B",
            *(1024, 4, 28.0, {"lora_rank": 16, **QLORA}, True),
        ),
    ]
    return rows


def compared(row: Reference) -> dict[str, Any]:
    model_type, sizes, vocabulary, tied, more = MODELS[row.model]
    shape = dict(zip(SHAPES, sizes, strict=True))
    words = {"vocab_size": vocabulary, "tie_word_embeddings": tied}
    config = {"model_type": model_type, "dtype": "bfloat16", **shape, **words, **more}
    method = "full" if row.kind == "full" else "lora"
    batch = {"cutoff_len": row.length, "per_device_train_batch_size": row.rows, "optim": "adamw_torch"}
    case = Case(
        recipe=Recipe(row.model, Path("reference.yaml"), {}, Kit()),
        settings=trained_with({"finetuning_type": method, **batch, **row.arguments}),
        machine=profile("h200"),
        model=from_config(ModelFacts(row.model), config),
        precision="bf16",
        attention="sdpa",
    )
    found = estimate(case, None)
    kit = (found.per_device_gib or 0) - (0 if row.context else found.items["device context"])
    what = f"{row.model} {row.length}x{row.rows} {' '.join(f'{key}={value}' for key, value in row.arguments.items())}"
    numbers = {"published_gib": row.gib, "kit_gib": round(kit, 2), "ratio": round(kit / row.gib, 3)}
    return {"kind": row.kind, "what": what, **numbers, "not_comparable": row.why_not, "source": row.source}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON list in place of the table")
    rows = [compared(row) for row in references()]
    if parser.parse_args().json:
        json.dump(rows, sys.stdout)
        return
    for row in rows:
        against = f" [{row['not_comparable']}]" if row["not_comparable"] else ""
        numbers = f"{row['published_gib']:8.2f} {row['kit_gib']:8.2f} {row['ratio']:6.2f}"
        print(f"{row['kind']:6}{numbers}  {row['what']}{against}  ({row['source']})")
    for kind in ("lora", "qlora", "full"):
        ratios = [row["ratio"] for row in rows if row["kind"] == kind and not row["not_comparable"]]
        print(f"{kind}: {len(ratios)} comparable, median {statistics.median(ratios):.2f}, {min(ratios)}-{max(ratios)}")


if __name__ == "__main__":
    main()

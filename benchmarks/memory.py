"""The memory estimate against what training really allocates, on random weights; nothing is downloaded.

    python benchmarks/memory.py [--cpu] [--json]

On a GPU: Qwen2.5 0.5B, 1.5B and 7B as they are. On CPU, or with --cpu: small models of several families. Each is two
optimizer steps in a child. Prints predicted and measured GiB and the error; beside them, on CPU, what the process held.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from iis_finetune.arguments import trained_with
from iis_finetune.models import ModelFacts, from_config
from iis_finetune.plan.memory import Workload, estimate

ROOT = Path(__file__).parent.parent
AUDIO = ROOT / "iis_finetune" / "hook" / "torchaudio_placeholder"  # text only: the real one is not needed
CHILD = Path(__file__).with_name("memory_child.py")
TIME_LIMIT_SECONDS = 1800
DEFAULTS: dict[str, Any] = {
    "saved": "float32",
    "precision": "fp32",
    "method": "lora",
    "lora_rank": 8,
    "lora_target": "all",
    "lora_dropout": 0.0,
    "micro_batch_size": 1,
    "cutoff_len": 256,
    "accumulation": 2,
    "gradient_checkpointing": True,
    "attention": "sdpa",
    "optimizer": "adamw_torch_fused",
    "use_dora": False,
    "pure_bf16": False,
    "eval_batch_size": 0,
    "quantization_bit": None,
}
BF16 = {"saved": "bfloat16", "precision": "bf16"}
ALL_KEPT = {"gradient_checkpointing": False}
KEYS = (
    "config",
    "saved",
    "accumulation",
    "precision",
    "attention",
    "gradient_checkpointing",
    "eval_batch_size",
)  # no arguments' names
NAMES = {"method": "finetuning_type", "micro_batch_size": "per_device_train_batch_size", "optimizer": "optim"}
PURE = {"saved": "bfloat16", "precision": "bf16", "pure_bf16": True, "optimizer": "adamw_torch"}


def config(model_type: str, sizes: str, tied: bool = True, **more: Any) -> dict[str, Any]:
    """A config from 'hidden intermediate layers heads key_value_heads vocabulary'."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    numbers = [int(number) for number in sizes.split()]
    shape = dict(zip((*names, "vocab_size"), numbers, strict=True))
    return {"model_type": model_type, **shape, "tie_word_embeddings": tied, "max_position_embeddings": 2048, **more}


def small_cases() -> list[dict[str, Any]]:
    tiny = config("qwen2", "64 128 2 4 2 1000")
    qwen2 = config("qwen2", "256 704 3 8 2 4000")
    no_words = config("qwen2", "256 704 3 8 2 40")  # so that the blocks, not the logits, make the peak
    qwen3 = config("qwen3", "192 512 4 6 2 2000", head_dim=64)
    gemma2 = config("gemma2", "192 768 4 4 2 2000", head_dim=64)
    llama = config("llama", "384 1024 4 6 6 3000", tied=False)
    mistral = config("mistral", "512 1792 2 8 2 8000", tied=False)
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (tiny, {}),
        (qwen2, {"lora_rank": 64, "lora_dropout": 0.05}),
        (no_words, {"attention": "disabled", "cutoff_len": 400}),
        (no_words, {**BF16, **ALL_KEPT, "attention": "disabled", "cutoff_len": 400}),
        (no_words, {"saved": "bfloat16", "precision": "as-saved", **ALL_KEPT}),
        (qwen3, BF16),
        (qwen3, {**BF16, "method": "full", **ALL_KEPT}),
        (gemma2, BF16),
        (llama, {**ALL_KEPT, "lora_dropout": 0.1}),
        (llama, {"lora_target": "q_proj,v_proj", "micro_batch_size": 3}),
        (llama, {"method": "freeze"}),
        (mistral, {"method": "full", "accumulation": 1}),
        (llama, {"use_dora": True, **ALL_KEPT}),
        (qwen2, {**BF16, "use_dora": True, "lora_target": "q_proj,v_proj", "lora_rank": 32, **ALL_KEPT}),
        (llama, {**PURE, "method": "full"}),
        (mistral, {**PURE, "method": "full", "accumulation": 1, **ALL_KEPT}),
        (mistral, {"eval_batch_size": 8}),
        (qwen3, {**BF16, "eval_batch_size": 8}),
    ]
    return [{**DEFAULTS, "config": shape, **more} for shape, more in cases]


def real_shapes() -> dict[str, dict[str, Any]]:
    table = tomllib.loads((ROOT / "iis_finetune" / "tables" / "models.toml").read_text(encoding="utf-8"))["model"]
    return {name: row["config"] for row in table for name in row["names"]}


def real_cases() -> list[dict[str, Any]]:
    shapes = real_shapes()
    usual = {**BF16, "lora_rank": 64, "lora_dropout": 0.05, "cutoff_len": 1024}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("0.5B", {}),
        ("0.5B", ALL_KEPT),
        ("0.5B", {"method": "full"}),
        ("0.5B", {"saved": "float32", "precision": "fp32", "attention": "disabled"}),
        ("1.5B", {}),
        ("1.5B", {"saved": "float32", "precision": "fp32", "attention": "disabled", **ALL_KEPT}),
        ("7B", {}),
        ("7B", {"micro_batch_size": 4}),
        ("7B", {"saved": "float32", "precision": "fp32"}),
    ]
    return [{**DEFAULTS, **usual, "config": shapes[f"Qwen/Qwen2.5-{size}"], **more} for size, more in cases]


def has_gpu() -> bool:
    code = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def measured(cases: list[dict[str, Any]], gpu: bool, limit_seconds: float = TIME_LIMIT_SECONDS) -> list[dict[str, Any]]:
    """One child for all cases."""
    hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **hidden, "PYTHONPATH": f"{AUDIO}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(cases, file)
        file.flush()
        command = [sys.executable, "-P", str(CHILD), file.name]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=limit_seconds, check=False
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"peak_gib"')]


def predicted(case: dict[str, Any], gpu: bool) -> tuple[float, str | None]:
    """GiB that torch is to allocate, and the largest part of it."""
    facts = from_config(ModelFacts("random"), {**case["config"], "dtype": case["saved"]})
    stated = {NAMES.get(key, key): value for key, value in case.items() if key not in KEYS}
    stated["disable_gradient_checkpointing"] = not case["gradient_checkpointing"]
    if case["eval_batch_size"]:
        stated |= {"do_eval": True, "per_device_eval_batch_size": case["eval_batch_size"]}
    workload = Workload(
        settings=trained_with(stated),
        precision=case["precision"],
        attention=case["attention"],
        launcher="single",
        processes=1,
        accelerator="cuda" if gpu else "cpu",
        fused_attention=True,
        accumulates=case["accumulation"] > 1,
    )
    found = estimate(facts, workload, None)
    beside = sum(
        found.items.get(name, 0) for name in ("device context", "allocator")
    )  # what is reserved, or not torch's
    return (found.per_device_gib or 0) - beside, found.largest


def row_of(case: dict[str, Any], seen: dict[str, Any], gpu: bool) -> dict[str, Any]:
    expected, largest = predicted(case, gpu)
    return {
        "case": name_of(case),
        "predicted_gib": expected,
        "measured_gib": seen["peak_gib"],
        "error": expected / seen["peak_gib"] - 1,
        "process_gib": seen["rss_gib"],
        "context_gib": seen["context_gib"],
        "largest": largest,
    }


def name_of(case: dict[str, Any]) -> str:
    shape = case["config"]
    unusual = [f"{key}={value}" for key, value in case.items() if key != "config" and DEFAULTS[key] != value]
    return f"{shape['model_type']} {shape['hidden_size']}x{shape['num_hidden_layers']} {' '.join(unusual)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="small models on the CPU, also where there is a GPU")
    parser.add_argument("--json", action="store_true", help="one JSON list in place of the table")
    given = parser.parse_args()
    gpu = not given.cpu and has_gpu()
    cases = real_cases() if gpu else small_cases()
    rows = [row_of(case, seen, gpu) for case, seen in zip(cases, measured(cases, gpu), strict=True)]
    if given.json:
        print(json.dumps(rows))
        return
    print(f"{'predicted':>10} {'measured':>10} {'error':>7} {'process':>8} {'largest part':17} case (GiB)")
    for row in rows:
        sizes = (
            f"{row['predicted_gib']:10.4f} {row['measured_gib']:10.4f} {row['error']:+7.1%} {row['process_gib']:8.2f}"
        )
        print(f"{sizes} {row['largest']:17} {row['case']}")
    print(f"device context: {rows[-1]['context_gib']}")


if __name__ == "__main__":
    main()

"""The memory estimate: against torch's own allocations, and in the cases that no CPU can measure."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict, replace

from iis_finetune.arguments import trained_with
from iis_finetune.machine import profile
from iis_finetune.models import ModelFacts, from_config, look
from iis_finetune.plan.memory import estimate
from iis_finetune.recipe import Kit, Recipe
from iis_finetune.rules import Case

ROOT = Path(__file__).parent.parent
QWEN = look("Qwen/Qwen2.5-7B-Instruct", Path("nowhere"))
STATED = {
    "lora_rank": 64,
    "lora_dropout": 0.05,
    "cutoff_len": 1024,
    "optim": "adamw_torch",
    "per_device_train_batch_size": 1,
}
CARD = Case(
    recipe=Recipe("own", Path("own.yaml"), {}, Kit()),
    settings=trained_with(STATED),
    machine=profile("mi300x"),
    model=QWEN,
    attention="disabled",
    processes=2,
)


@pytest.mark.slow
def test_the_estimate_is_near_what_torch_allocates() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--cpu", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout)
    for row in rows:
        line = f"{row['predicted_gib']:9.4f} {row['measured_gib']:9.4f} {row['error']:+7.1%} {row['case']}"
        sys.stdout.write(line + "\n")  # pytest -s, or a failure, shows the table
    errors = [row["error"] for row in rows]
    assert len(errors) >= 18
    assert statistics.median(map(abs, errors)) <= 0.10
    assert max(map(abs, errors)) <= 0.20
    assert min(errors) >= -0.05


def test_published_peaks_lie_around_the_estimate() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "memory_references.py"), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    ratios: dict[str, list[float]] = {"lora": [], "qlora": [], "full": []}
    for row in json.loads(done.stdout):
        if not row["not_comparable"]:
            ratios[row["kind"]].append(row["ratio"])
    assert len(ratios["lora"]) >= 16 and 0.95 <= statistics.median(ratios["lora"]) <= 1.05
    assert min(ratios["lora"]) >= 0.85 and max(ratios["lora"]) <= 1.20
    assert len(ratios["qlora"]) >= 6 and min(ratios["qlora"]) >= 0.8 and max(ratios["qlora"]) <= 1.25
    assert min(ratios["full"]) >= 0.8 and max(ratios["full"]) <= 1.25


SHORT = {"attention": "sdpa", "per_device_train_batch_size": 8}
WHOLE = {"finetuning_type": "full", "lora_rank": 8}
OF_CASE = ("precision", "attention", "machine")


def need(launcher: str, **other: Any) -> float:
    stated = {**STATED, **{name: value for name, value in other.items() if name not in OF_CASE}}
    beside = {name: value for name, value in other.items() if name in OF_CASE}
    case = replace(CARD, settings=trained_with(stated), launcher=launcher, **beside)
    found = estimate(case, 31.98).per_device_gib
    assert found is not None
    return found


def test_true_fp32_of_7b_fits_a_32_gb_card_only_when_it_is_shared_out() -> None:
    assert need("ddp") > 31.98
    assert need("zero2") > 31.98
    assert need("zero3") < 31.98
    assert need("fsdp") < 31.98
    assert need("zero3_offload") < need("zero3")


def test_items_add_up_to_the_peak_and_the_largest_is_named() -> None:
    found = estimate(CARD, 31.98)
    assert found.per_device_gib == pytest.approx(sum(found.items.values()))
    assert found.largest == "base weights"
    assert found.items["base weights"] == pytest.approx(7_615_616_512 * 4 / 2**30)
    assert asdict(found) == {
        "per_device_gib": found.per_device_gib,
        "limit_gib": 31.98,
        "items": found.items,
        "not_counted": (),
        "host_gib": None,
    }


def test_adapter_weights_follow_from_rank_and_targets() -> None:
    # 64 x (inputs + outputs) of q and v in each of 28 blocks, in fp32
    case = replace(CARD, settings=trained_with({**STATED, "lora_target": "q_proj,v_proj"}))
    found = estimate(case, None).items["trained weights"]
    assert found == pytest.approx(28 * 64 * (3584 + 3584 + 3584 + 512) * 4 / 2**30)


def test_an_unknown_model_has_no_estimate() -> None:
    found = estimate(replace(CARD, model=ModelFacts("someone/something")), 31.98)
    assert found.per_device_gib is None
    assert not found.items


def test_pure_bf16_takes_eight_bytes_a_parameter() -> None:
    settings = trained_with({**STATED, "finetuning_type": "full", "pure_bf16": True})
    items = estimate(replace(CARD, settings=settings, precision="bf16"), None).items
    names = ("base weights", "trained weights", "optimizer states", "gradients")
    held = sum(items.get(name, 0) for name in names)
    assert held == pytest.approx(7_615_616_512 * 8 / 2**30)


@pytest.mark.parametrize(
    ("stated", "config"),
    [
        ({"use_unsloth": True}, {}),
        ({"use_kt": True}, {}),
        ({}, {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}),
        ({}, {"model_type": "qwen3_moe", "num_experts": 8}),
    ],
)
def test_what_the_formulas_do_not_describe_is_unknown(stated: dict[str, object], config: dict[str, object]) -> None:
    facts = from_config(QWEN, {**QWEN.config, **config})
    facts = replace(facts, parameters=QWEN.parameters, linear_layers=QWEN.linear_layers)  # as its headers show them
    found = estimate(replace(CARD, model=facts, settings=trained_with({**STATED, **stated})), 31.98)
    assert found.per_device_gib is None and not found.items and found.not_counted


def test_a_lower_bound_says_what_is_not_counted() -> None:
    case = replace(CARD, settings=trained_with({**STATED, "additional_target": "embed_tokens"}))
    assert estimate(case, 31.98).not_counted == ("the modules of additional_target",)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"precision": "bf16"}, {"precision": "fp32"}),
        ({"quantization_bit": 4}, {"quantization_bit": 8}),
        ({"quantization_bit": 8}, {}),
        ({}, {"disable_gradient_checkpointing": True}),
        ({}, {"per_device_train_batch_size": 4}),
        ({}, {"cutoff_len": 2048}),
        ({"lora_rank": 8}, {"lora_rank": 128}),
        ({}, {"finetuning_type": "full"}),
        ({"attention": "sdpa", "cutoff_len": 16384}, {"attention": "disabled", "cutoff_len": 16384}),
        (
            {"attention": "sdpa", "cutoff_len": 16384},
            {"attention": "sdpa", "cutoff_len": 16384, "machine": profile("mi50")},
        ),
        ({"finetuning_type": "full", "optim": "paged_adamw_8bit"}, {"finetuning_type": "full"}),
        ({}, {"use_dora": True, "disable_gradient_checkpointing": True}),
        ({**SHORT, "enable_liger_kernel": True}, SHORT),
        ({}, {"do_eval": True, "cutoff_len": 4096}),
        ({"do_eval": True, "per_device_eval_batch_size": 1}, {"do_eval": True}),
        ({**WHOLE, "use_galore": True}, WHOLE),
        ({**WHOLE, "use_badam": True}, {**WHOLE, "use_galore": True}),
        ({**WHOLE, "use_apollo": True, "apollo_layerwise": True}, {**WHOLE, "use_apollo": True}),
        ({**WHOLE, "pure_bf16": True, "precision": "bf16"}, {**WHOLE, "precision": "bf16"}),
    ],
)
def test_what_costs_more_is_estimated_higher(less: dict[str, object], more: dict[str, object]) -> None:
    assert need("single", **less) < need("single", **more)

"""How processes share a model: that all ways train alike, and that what is planned as shared is shared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import make_project, run
from test_plan import SMALL, make
from test_survival import add_data

from iis_finetune.hook import iis_training_hook as hook
from iis_finetune.plan.processes import SHARDED, deepspeed_config
from iis_finetune.runs import Run

ALIKE = {
    "alone": ("kit.devices=1",),
    "ddp": ("kit.devices=2", "kit.launcher=ddp"),
    "zero2": ("kit.devices=2", "kit.launcher=zero2"),
    "zero3": ("kit.devices=2", "kit.launcher=zero3"),
}
WORDS = (
    *("dataset=many", "lora_dropout=0.0", "average_tokens_across_devices=true", "kit.global_batch_size=8"),
    *("max_steps=10", "save_steps=10"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Run]:
    """One short training each way, in one project."""
    pytest.importorskip("deepspeed")
    project = tmp_path_factory.mktemp("launchers")
    make_project(project, tiny_model)
    add_data(project)
    for words in ALIKE.values():
        done = run(["train", "tiny", *WORDS, *words], project)
        assert done.returncode == 0, done.stdout + done.stderr
    return {name: Run(project / "runs" / f"{number:04d}-tiny") for number, name in enumerate(ALIKE, 1)}


@pytest.mark.slow
def test_the_same_global_batch_gives_the_same_losses_however_the_model_is_shared(trained: dict[str, Run]) -> None:
    losses, sharing = {}, {}
    for name, made in trained.items():
        logged = json.loads(made.trainer_state.read_text())["log_history"]
        losses[name] = [line["loss"] for line in logged if "loss" in line]
        sharing[name] = json.loads(made.loaded.read_text())["sharing"]
    alone = losses["alone"]
    worst = {name: max(abs(a - b) for a, b in zip(alone, losses[name], strict=True)) for name in ALIKE}
    for name in ALIKE:
        print(f"{name:6} last loss {losses[name][-1]:.6f}, worst difference {worst[name]:.1e}, {sharing[name]}")
    assert len(alone) == 10 and max(worst.values()) <= 1e-3
    assert alone[0] - alone[-1] > 0.05, "it learns, so that a difference would show"
    whole = sharing["alone"]
    assert sharing["ddp"] == {**whole, "wrapper": "DistributedDataParallel"}
    assert sharing["zero2"] == {**whole, "wrapper": "DeepSpeedEngine", "optimizer": whole["optimizer"] // 2}
    assert sharing["zero3"]["optimizer"] * 2 == whole["optimizer"]
    assert sharing["zero3"]["parameters"] * 2 <= whole["parameters"] * 1.01


@pytest.mark.slow
def test_a_run_that_is_not_shared_as_planned_is_stopped_before_its_first_step(trained: dict[str, Run]) -> None:
    """Planted: the run's deepspeed.json is turned to stage 0 behind the kit's back."""
    folder = trained["zero2"].folder
    config = json.loads((folder / "deepspeed.json").read_text())
    config["zero_optimization"] = {"stage": 0}
    (folder / "deepspeed.json").write_text(json.dumps(config))
    command = ["bash", str(trained["zero2"].command), f"output_dir={folder}/other"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "the plan shares the model by zero2, but each of 2 processes holds" in done.stderr
    assert not list((folder / "other").glob("checkpoint-*"))


LOADED = {"processes": 2, "parameters": {"trainable": {"float32": 10}, "frozen": {"float32": 90}}}
HELD = {
    # launcher, processes, parameters and optimizer's values held: what is wrong
    ("ddp", 2, 100, 10): None,
    ("ddp", 4, 100, 10): "2 processes train together, not 4",
    ("zero2", 2, 100, 5): None,
    ("zero2_offload", 2, 100, 10): "each of 2 processes holds 10 of 10 values of the optimizer",
    ("zero3", 2, 52, 6): None,
    ("zero3", 2, 100, 5): "each of 2 processes holds 100 of 100 values of the parameters",
    ("fsdp", 2, 100, 10): "each of 2 processes holds 10 of 10 values of the optimizer",
    ("deepspeed", 2, 100, 10): None,
}


@pytest.mark.parametrize(("case", "said"), HELD.items(), ids=str)
def test_what_counts_as_not_shared(case: tuple[str, int, int, int], said: str | None) -> None:
    launcher, processes, parameters, optimizer = case
    loaded: dict[str, Any] = {**LOADED, "sharing": {"parameters": parameters, "optimizer": optimizer}}
    assert hook.unshared(loaded, launcher, processes) == said


READ = """
import json, sys
from deepspeed.runtime.config import DeepSpeedConfig
from transformers import TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig
for name, config in json.load(sys.stdin).items():
    filled = HfTrainerDeepSpeedConfig(config)
    filled.trainer_config_process(TrainingArguments(output_dir="x", max_steps=1))
    read = DeepSpeedConfig(filled.config)
    zero = read.zero_config
    parts = [zero.offload_optimizer, zero.offload_param]
    devices = [getattr(part.device, "value", part.device) if part else "none" for part in parts]
    print(json.dumps([name, int(zero.stage), *devices, bool(read.use_node_local_storage)]))
"""


@pytest.mark.slow
def test_deepspeed_itself_reads_every_generated_configuration(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    configs = {f"{name} on {n}": deepspeed_config(name, n) for name in SHARDED for n in (1, 2)}
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input=json.dumps(configs),
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    offload = {"zero2": ("none", "none"), "zero3": ("none", "none")}
    offload |= {"zero2_offload": ("cpu", "none"), "zero3_offload": ("cpu", "cpu")}
    expected = [[f"{name} on {n}", SHARDED[name], *offload[name], n == 2] for name in SHARDED for n in (1, 2)]
    assert rows == expected


def test_oft_and_whole_reward_models_get_what_ddp_can_follow(tmp_path: Path) -> None:
    oft, reward = "finetuning_type: oft\n", "stage: rm\nfinetuning_type: full\n"
    small = SMALL.replace("stage: sft\n", "")
    for lines, machine, chosen in (
        ("stage: sft\n" + oft, "cpu", True),
        (reward, "cpu", True),
        ("stage: rm\nfinetuning_type: lora\n", "cpu", False),
        ("stage: sft\n" + oft + "use_reentrant_gc: true\n", "cpu", False),
    ):
        made = make(str(tmp_path / "r.yaml"), machine, "kit.devices=2", text=small + lines)
        decided = {each.name: each for each in made.decisions}
        assert ("use_reentrant_gc" in decided) is chosen
        assert not chosen or (made.arguments["use_reentrant_gc"] is False and decided["use_reentrant_gc"].reason)
    alone = make(str(tmp_path / "r.yaml"), "cpu", text=small + reward)
    assert "use_reentrant_gc" not in alone.arguments

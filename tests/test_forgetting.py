"""On real runs: what a training forgets, and which of its checkpoints is the best."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import LONGEST, RECIPE, make_project, run

from iis_finetune import runs
from iis_finetune.observe import losses_of
from iis_finetune.runs import Run, Workspace

HARD = "  guard: other\n  env: {OMP_NUM_THREADS: 1}\n"
STEPS = 300
OVER_FITTING = f"eval_dataset: fresh\neval_strategy: steps\neval_steps: {STEPS // 6}\n"


def chances(numbers: range) -> str:
    """One-word answers that follow no rule: whoever learns them by heart gets worse on held-out ones."""
    chance = random.Random(numbers.start)
    return json.dumps([{"instruction": f"{n}?", "input": "", "output": chance.choice(["a", "b"])} for n in numbers])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A project with one run: a whole model on one-word answers, faster and longer than is good for it."""
    folder = make_project(tmp_path_factory.mktemp("forgetting"), tiny_model)
    data = folder / "data"
    (data / "little.json").write_text(chances(range(8)), encoding="utf-8")
    (data / "fresh.json").write_text(chances(range(40, 64)), encoding="utf-8")
    words = [{"instruction": f"words {n}", "input": "", "output": "一些中文字。 {}[]"} for n in range(24)]
    (data / "other.json").write_text(json.dumps(words), encoding="utf-8")
    registry = json.loads((data / "dataset_info.json").read_text())
    registry |= {name: {**registry["little"], "file_name": f"{name}.json"} for name in ("fresh", "other")}
    (data / "dataset_info.json").write_text(json.dumps(registry), encoding="utf-8")
    recipe = RECIPE.replace("model_name_or_path", f"{HARD}model_name_or_path", 1).replace("1.0e-3", "5.0e-3")
    recipe = recipe.replace("max_steps: 4", f"max_steps: {STEPS}").replace("save_steps: 2", f"save_steps: {STEPS // 6}")
    recipe = recipe.replace("finetuning_type: lora\nlora_rank: 8\nlora_target: all", "finetuning_type: full")
    (folder / "recipes" / "tiny.yaml").write_text(recipe + OVER_FITTING, encoding="utf-8")
    done = run(["train", "tiny"], folder, LONGEST)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "said").write_text(done.stdout, encoding="utf-8")
    return folder


def made(folder: Path) -> Run:
    return runs.find(Workspace(folder, folder / "models", folder / "runs"), "last")


@pytest.mark.slow
def test_a_training_that_leaves_one_word_for_everything_has_forgotten(trained: Path) -> None:
    said = (trained / "said").read_text(encoding="utf-8")
    scores: Any = json.loads((made(trained).evaluation / "other" / "scores.json").read_text())
    assert scores["guard"]["verdict"] == "worse" and scores["guard"]["low"] > 0.02
    assert "did it forget? worse: the loss changes by +" in said and said.count("next: ") == 1
    assert "held-out loss" in said and "warning: over-fitting since step " in said


@pytest.mark.extended
def test_a_run_of_zero_steps_has_forgotten_nothing(trained: Path, tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(made(trained).folder, tmp_path / made(trained).name)))
    shutil.copyfile(trained / "models" / "tiny" / "model.safetensors", copy.output / "model.safetensors")
    done = run(["evaluate", "last", "--guard", "other"], trained, LONGEST, IIS_RUNS=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "did it forget? not worse: the loss changes by +0.0% to +0.0%" in done.stdout


@pytest.mark.extended
def test_the_checkpoint_that_llamafactory_measured_as_best_is_named(trained: Path) -> None:
    done = run(["evaluate", "last", "--checkpoints", "--last", "6", "--json"], trained, LONGEST)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    trainers = losses_of(made(trained))[1]
    assert found["best"] == min(trainers, key=lambda step: trainers[step]) < STEPS
    ours = {each["step"]: each["alone"]["tuned"] for each in found["checkpoints"]}
    assert ours == pytest.approx(trainers, rel=0.02)
    assert found["checkpoints"][-1]["verdict"] == "worse" and found["overfits"]
    assert json.loads((made(trained).evaluation / "fresh" / "checkpoints.json").read_text()) == found

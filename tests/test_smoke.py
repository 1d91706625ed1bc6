"""`train --smoke`: a recipe's whole path on its model shrunken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import ROOT, Command, run

from iis_finetune import recipe as recipes
from iis_finetune import runs
from iis_finetune.models import look
from iis_finetune.runs import Workspace
from iis_finetune.session.bringup import overrides_of, without_devices

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
IN_SLOW = ("qwen7b_lora", "llama8b_lora")
SEVERAL = """\
kit: {launcher: zero2, devices: 2, global_batch_size: 64, precision: bf16}
model_name_or_path: owner/a-model-nobody-knows
stage: sft
do_train: true
dataset: little
template: qwen
finetuning_type: lora
flash_attn: fa2
per_device_train_batch_size: 8
cutoff_len: 4096
val_size: 100
streaming: true
"""


@pytest.fixture(scope="module")
def project_of_recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke")
    for name in ("recipes", "data"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in IN_SLOW else pytest.mark.extended) for name in RECIPES],
)
def test_every_recipe_goes_the_whole_way_without_its_model(project_of_recipes: Path, name: str) -> None:
    done = run(["train", name, "--smoke"], project_of_recipes, timeout=600)
    print(done.stdout[-1500:], done.stderr[-1500:])
    assert done.returncode == 0
    assert f"{name}: smoke run passed" in done.stdout
    possible = run(["check", name], project_of_recipes).returncode == 0
    assert ("note: " in done.stdout, "error" in done.stderr) == (not possible, False), "what a smoke run goes without"
    assert f"next: iis-finetune {'train' if possible else 'check'} {name}\n" in done.stdout
    workspace = Workspace(project_of_recipes, project_of_recipes / "models", project_of_recipes / "runs")
    made = [each for each in runs.listed(workspace) if each.recipe_name == name][-1]
    assert made.smoke and runs.state(made) == "finished"
    decided = runs.read_decided(made)
    assert decided is not None and decided.processes == 1 and decided.arguments["max_steps"] == 5
    shapes = look(decided.arguments["model_name_or_path"], workspace.models).shapes
    assert shapes is not None and shapes.layers <= 2 and shapes.hidden_size <= 128


def test_a_smoke_run_is_one_process_on_the_cpu_whatever_the_recipe_says(tmp_path: Path) -> None:
    (tmp_path / "several.yaml").write_text(SEVERAL)
    recipe, _ = recipes.read(str(tmp_path / "several.yaml"))
    changed = dict(word.split("=", 1) for word in overrides_of(recipe, tmp_path / "small"))
    unset = {"kit.launcher", "kit.devices", "kit.global_batch_size", "kit.precision", "flash_attn", "streaming"}
    assert {key for key, value in changed.items() if value == "null"} == unset
    assert changed["val_size"] == "4"
    assert (changed["per_device_train_batch_size"], changed["cutoff_len"]) == ("4", "512")
    assert without_devices({"HOME": "/"}) == {
        "HOME": "/",
        "CUDA_VISIBLE_DEVICES": "-1",
        "HIP_VISIBLE_DEVICES": "-1",
        "ROCR_VISIBLE_DEVICES": "-1",
    }


def test_a_model_of_unknown_shape_is_told_not_guessed(iis: Command, project: Path) -> None:
    done = iis("train", "tiny", "model_name_or_path=owner/a-model-nobody-knows", "--smoke")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "the shape of 'owner/a-model-nobody-knows' is not known here" in done.stderr
    assert "fix:   iis-finetune download owner/a-model-nobody-knows" in done.stderr
    assert not (project / "runs").is_dir() or not runs.listed(Workspace(project, project / "models", project / "runs"))


def test_a_recipe_that_must_change_is_refused_before_anything_is_made(iis: Command, project: Path) -> None:
    done = iis("train", "tiny", "lora_rnak=4", "--smoke")
    assert done.returncode == 2 and "did you mean 'lora_rank'" in done.stderr
    assert "Nothing was started." in done.stderr and not (project / "runs").exists()

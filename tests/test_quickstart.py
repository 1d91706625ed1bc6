"""The README's first command, from an empty project to base against tuned."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run

from iis_finetune import runs
from iis_finetune.runs import Workspace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's recipes and data in which the quickstart was run once."""
    folder = tmp_path_factory.mktemp("quickstart")
    for name in ("recipes", "data"):
        shutil.copytree(ROOT / name, folder / name)
    finished = run(["train", "quickstart"], folder, timeout=1500)
    (folder / "said").write_text(finished.stdout + finished.stderr)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return folder


def scores(folder: Path) -> Any:
    made = runs.find(Workspace(folder, folder / "models", folder / "runs"), "last")
    return json.loads((made.evaluation / "intelligence_alpaca_test" / "scores.json").read_text(encoding="utf-8"))


def test_the_base_is_a_run_of_its_own_and_a_real_model_folder(done: Path) -> None:
    listed = json.loads(run(["runs", "--json"], done).stdout)["runs"]
    expected = [("quickstart_base", "finished"), ("quickstart", "finished")]
    assert [(each["recipe"], each["state"]) for each in listed] == expected
    model = done / "models" / "quickstart_base"
    assert (model / "model.safetensors").is_file() and not (model / "model.safetensors").is_symlink()
    size = (model / "model.safetensors").stat().st_size
    assert 4e6 < size < 20e6, "1 to 5 M parameters in FP32"


def test_tuned_decides_rightly_in_valid_json_where_base_does_not(done: Path) -> None:
    measured = scores(done)
    said = (done / "said").read_text()
    print(said[-2500:])
    assert measured["rows"] == 100
    metrics = {each["name"]: each for each in measured["metrics"]}
    for name in ("valid_json", "decision"):
        base, tuned = metrics[name]["base"], metrics[name]["tuned"]
        assert base <= 0.1 and tuned >= 0.9, (name, base, tuned)


def test_the_second_run_reaches_its_first_step_soon(done: Path) -> None:
    began = time.time()
    again = run(["train", "quickstart", "max_steps=2", "logging_steps=1", "kit.evaluate_after=null"], done)
    assert again.returncode == 0, again.stderr
    made = runs.find(Workspace(done, done / "models", done / "runs"), "last")
    first = made.trainer_log.stat().st_mtime - began
    print(f"to the last of 2 steps: {first:.1f} s")
    assert made.recipe_name == "quickstart" and "quickstart_base" not in again.stdout.split("run ")[1]

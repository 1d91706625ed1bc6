"""FP32 is FP32: what the training process holds in memory is what the plan says, or the training does not begin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Command, make_project, run

from iis_finetune import models
from iis_finetune.hook import iis_training_hook as hook

WORDS = ("train", "tiny", "model_name_or_path=models/half", "max_steps=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A project whose model is saved in bf16, as nearly every checkpoint on the hubs is, with one run in fp32."""
    project = make_project(tmp_path_factory.mktemp("precision"), tiny_model)
    folder = project / "models" / "half"
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).bfloat16(); model.save_pretrained(sys.argv[2])\n"
        "AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny_model), str(folder)], check=True, capture_output=True)
    assert models.look(str(folder), project / "models").dtype == "bfloat16"
    shutil.copy(folder / "config.json", project / "as_saved.json")
    done = run([*WORDS, "kit.precision=fp32"], project)
    assert done.returncode == 0, done.stdout + done.stderr
    return project


def held(project: Path, number: int) -> Any:
    made = next((project / "runs").glob(f"{number:04d}-*"))
    return json.loads((made / "loaded.json").read_text())["parameters"]


def test_fp32_is_in_memory_and_the_original_is_untouched(trained: Path) -> None:
    assert set(held(trained, 1)["frozen"]) == set(held(trained, 1)["trainable"]) == {"float32"}
    original = trained / "models" / "half"
    assert (original / "config.json").read_bytes() == (trained / "as_saved.json").read_bytes()
    assert (trained / "models" / "half@fp32" / "model.safetensors").is_symlink()
    adapter = json.loads((trained / "runs" / "0001-tiny" / "output" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(original), "the adapter names the original, not the view"


def test_bf16_is_in_memory_where_it_is_planned(trained: Path) -> None:
    done = run([*WORDS, "kit.precision=bf16"], trained)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(held(trained, 2)["frozen"]) == {"bfloat16"}


def test_another_precision_than_the_plans_stops_the_run_before_its_first_step(trained: Path) -> None:
    """Planted: the view's config is turned back to bf16 behind the kit's back."""
    config = trained / "models" / "half@fp32" / "config.json"
    planned = config.read_text()
    config.write_text(planned.replace("float32", "bfloat16"))
    command = ["bash", str(trained / "runs" / "0001-tiny" / "command.sh"), f"output_dir={trained}/other"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, env=dict(os.environ))
    config.write_text(planned)
    assert done.returncode == 1
    assert "the plan says fp32" in done.stderr and "bfloat16" in done.stderr
    assert not list((trained / "other").glob("checkpoint-*")) if (trained / "other").exists() else True
    assert "Traceback" not in done.stderr


def test_a_mismatch_is_a_failed_run_that_says_why(iis: Command, project: Path) -> None:
    done = iis("train", "tiny", "kit.env={ACCELERATE_MIXED_PRECISION: bf16}")
    assert done.returncode == 1, done.stderr
    assert "error: the plan says fp32, but in the training process mixed precision is bf16" in done.stderr
    assert len((project / "runs" / "0001-tiny" / "attempts.jsonl").read_text().splitlines()) == 1, "not tried again"


LOADED = {
    "parameters": {"trainable": {"float32": 10}, "frozen": {"float32": 90}},
    "mixed_precision": "no",
    "quantization": None,
    "distributed": "no",
}
MEMORY = {
    ("fp32", "float32", "no"): None,
    ("fp32", "bfloat16", "no"): "90 parameters are bfloat16",
    ("fp32", "float32", "bf16"): "mixed precision is bf16",
    ("bf16", "bfloat16", "bf16"): None,
    ("bf16", "float32", "bf16"): "90 parameters are float32",
    ("bf16", "bfloat16", "no"): "mixed precision is off",
    ("fp16", "bfloat16", "fp16"): "90 parameters are bfloat16",
    ("as-saved", "bfloat16", "no"): None,
}


@pytest.mark.parametrize(("case", "said"), MEMORY.items(), ids=str)
def test_what_counts_as_another_precision(case: tuple[str, str, str], said: str | None) -> None:
    planned, frozen, mixed = case
    loaded = {**LOADED, "mixed_precision": mixed, "parameters": {"trainable": {"float32": 10}, "frozen": {frozen: 90}}}
    if said is None:
        hook.refuse_another_precision(loaded, planned)
        return
    with pytest.raises(SystemExit, match=said):
        hook.refuse_another_precision(loaded, planned)


def test_the_hook_leaves_other_python_processes_alone(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(ROOT / "iis_finetune" / "hook"), "PATH": "/usr/bin:/bin"}
    code = "import sys; print('iis_training_hook' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


TUNER = """
import os

class Tensor:
    def __del__(self, abort=os.abort):
        abort()

def run_exp(args=None):
    global kept
    kept = Tensor()  # freed as the interpreter takes itself apart
    if os.environ.get("WRONG"):
        raise ValueError("a broken row")
"""


@pytest.mark.parametrize(("wrong", "codes"), [("", {0}), ("yes", {1, -6})])
def test_a_training_that_has_returned_is_not_aborted_by_the_interpreters_end(
    tmp_path: Path, wrong: str, codes: set[int]
) -> None:
    package = tmp_path / "llamafactory" / "train"
    package.mkdir(parents=True)
    for file in (package.parent / "__init__.py", package / "__init__.py"):
        file.touch()
    (package / "tuner.py").write_text(TUNER)
    path = f"{ROOT / 'iis_finetune' / 'hook'}:{tmp_path}"
    environment = {"PYTHONPATH": path, "IIS_RUN": str(tmp_path), "WRONG": wrong}
    code = (
        "import atexit; atexit.register(print, 'the others have had their turn');"
        "from llamafactory.train.tuner import run_exp; run_exp(); print('saved')"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in codes, done.stderr
    assert done.stdout == ("" if wrong else "saved\n") + "the others have had their turn\n"

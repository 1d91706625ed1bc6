"""What a run folder is made of, and the words and the environment that a training is started with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from msgspec.structs import replace
from ruamel.yaml import YAML

from iis_finetune import launch, preflight, runs
from iis_finetune.preflight import Examined, Question
from iis_finetune.runs import Run, Workspace

OF_0_1_0 = ROOT / "tests" / "fixtures" / "runs" / "0001-tiny"


@pytest.fixture
def workspace(project: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(project)
    return Workspace(project, project / "models", project / "runs")


@pytest.fixture
def examined(workspace: Workspace) -> Examined:
    words = ("kit.env={TOLD: 'a word'}", "kit.global_batch_size=8")
    return preflight.look(Question(str(workspace.recipes / "tiny.yaml"), words, workspace, dict(os.environ)))


@pytest.fixture
def made(examined: Examined, workspace: Workspace) -> Run:
    data = {str(workspace.data / "little.json"): "0" * 64}
    run = runs.create(workspace, examined.recipe.name)
    launch.rewrite(run, examined, workspace, data)
    return run


def test_what_was_decided_is_read_back_as_it_was_written_with_real_paths(made: Run, examined: Examined) -> None:
    decided = runs.read_decided(made)
    assert decided is not None
    assert decided.arguments["output_dir"] == str(made.output) and "{" not in str(decided.arguments.values())
    assert decided.decisions[0] == examined.plan.decisions[0] and len(decided.decisions) > 5
    assert decided.launcher == "single" and decided.processes == 1 and decided.nodes is None
    output = decided.decision("output_dir")
    assert output is not None and output.value == str(made.output)
    assert YAML(typ="safe").load(made.arguments) == dict(decided.arguments)


def test_the_script_is_the_same_training_without_the_kit(made: Run) -> None:
    text = made.command.read_text()
    assert os.access(made.command, os.X_OK) and "export TOLD='a word'" in text
    assert text.splitlines()[-1] == 'exec llamafactory-cli train arguments.yaml "$@"'
    subprocess.run(["bash", "-n", str(made.command)], check=True)


def test_where_a_training_came_from_is_on_record(made: Run, workspace: Workspace) -> None:
    proof = json.loads(made.provenance.read_text())
    assert proof["packages"]["llamafactory"] and proof["model"] == str(workspace.models / "tiny")
    assert proof["data_sha256"] == {str(workspace.data / "little.json"): "0" * 64}
    assert json.loads(made.machine.read_text())["accelerator"] == "cpu"


@pytest.mark.parametrize("text", ["no", "1e3", "0x1f", "null", "~", "2024-01-01", "一些中文字", "a: b"])
def test_a_text_that_looks_like_something_else_stays_a_text(text: str) -> None:
    import yaml  # LLaMA-Factory's reader

    written = launch.yaml_text({"key": text, "rate": 1.0e-5})
    assert yaml.safe_load(written) == {"key": text, "rate": 1.0e-5}


def test_a_later_attempt_says_where_it_goes_on_or_that_it_begins_anew(made: Run) -> None:
    text = launch.resumed_arguments(made, None).read_text()
    assert text.endswith("resume_from_checkpoint: false\n")
    text = launch.resumed_arguments(made, made.output / "checkpoint-2").read_text()
    assert f'resume_from_checkpoint: "{made.output.resolve()}/checkpoint-2"' in text
    assert "resume_from_checkpoint" not in made.arguments.read_text()


def test_a_child_gets_the_users_environment_without_what_would_change_the_run(examined: Examined) -> None:
    around = {"HOME": "/home/you", "RANK": "3", "ACCELERATE_MIXED_PRECISION": "fp16", "PATH": "/usr/bin"}
    given = launch.child_environment(examined.machine, around, {"IIS_PRECISION": "fp32"})
    assert given["HOME"] == "/home/you" and given["IIS_PRECISION"] == "fp32"
    assert not {"RANK", "ACCELERATE_MIXED_PRECISION"} & set(given)
    assert given["PATH"].endswith(":/usr/bin")
    assert launch.child_environment(examined.machine, around, {"VIRTUAL_ENV": "/ppo"})["PATH"] == "/ppo/bin:/usr/bin"


def test_a_device_that_a_living_run_has_is_occupied_and_a_cpu_never_is(made: Run, workspace: Workspace) -> None:
    decided = runs.read_decided(made)
    assert decided is not None
    runs.write_decided(made, replace(decided, environment={"CUDA_VISIBLE_DEVICES": "0,1"}))
    with runs.claimed(made, "trained"):
        assert launch.occupant({"CUDA_VISIBLE_DEVICES": "1"}, workspace) == made
        assert launch.occupant({"CUDA_VISIBLE_DEVICES": "1"}, workspace, but=made) is None
        assert launch.occupant({"CUDA_VISIBLE_DEVICES": "2"}, workspace) is None
        assert launch.occupant({"HIP_VISIBLE_DEVICES": "1"}, workspace) is None
        assert launch.occupant({"CUDA_VISIBLE_DEVICES": "-1"}, workspace) is None
    assert launch.occupant({"CUDA_VISIBLE_DEVICES": "1"}, workspace) is None


def test_a_run_folder_of_version_0_1_0_still_opens(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / OF_0_1_0.name
    shutil.copytree(OF_0_1_0, folder)
    (folder / "output" / "adapter_model.safetensors").write_bytes(b"x")  # the real one was left out
    run = Run(folder)
    assert runs.find(Workspace(tmp_path, tmp_path / "models", tmp_path / "runs"), "1") == run
    decided = runs.read_decided(run)
    assert decided is not None
    assert (decided.recipe, decided.precision, decided.launcher, decided.processes) == ("tiny", "fp32", "single", 1)
    assert decided.arguments["lora_rank"] == 8 and decided.environment["IIS_PRECISION"] == "fp32"
    assert all(each.reason for each in decided.decisions)
    assert runs.attempts(run)[0].ending == "finished" and runs.state(run) == "finished"


def test_what_a_training_prints_is_in_its_log_at_once(tmp_path: Path) -> None:
    program = tmp_path / "llamafactory-cli"
    program.write_text(f"#!{sys.executable}\nimport time\nprint({{'loss': '1.5'}})\ntime.sleep(60)\n")
    program.chmod(0o755)
    made = Run(tmp_path / "runs" / "0001-some")
    made.folder.mkdir(parents=True)
    child = launch.start(made, {"PATH": str(tmp_path)}, made.arguments)
    until = time.monotonic() + 20
    try:
        while "1.5" not in made.log.read_text() and time.monotonic() < until:
            time.sleep(0.05)
        assert child.poll() is None and "1.5" in made.log.read_text()
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()

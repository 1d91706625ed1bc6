"""Real LLaMA-Factory, a few steps, through the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Command, make_project, run
from hub_server import Hub

from iis_finetune import runs
from iis_finetune.runs import Run, Workspace


def the_run(project: Path, number: int = 1) -> Run:
    return runs.find(Workspace(project, project / "models", project / "runs"), str(number))


def content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A project in a folder with a space in its name, with one finished run; several tests look at it."""
    folder = make_project(tmp_path_factory.mktemp("a project"), tiny_model)
    done = run(["train", "tiny"], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_a_run_ends_with_a_usable_adapter_and_a_picture(trained: Path) -> None:
    made = the_run(trained)
    assert runs.state(made) == "finished"
    for name in ("adapter_model.safetensors", "adapter_config.json", "training_loss.png", "tokenizer.json"):
        assert (made.output / name).is_file(), name
    said = (trained / "stdout").read_text()
    assert "step 4/4" in said and "0001-tiny: finished" in said and str(made.output) in said


def test_the_run_folder_says_everything(trained: Path) -> None:
    made = the_run(trained)
    decisions = content(made.decisions)
    assert {each["name"] for each in decisions["decisions"]} >= {"precision", "attention", "launcher", "output_dir"}
    assert all(each["reason"] for each in decisions["decisions"])
    assert content(made.machine)["accelerator"] == "cpu"
    provenance = content(made.provenance)
    assert provenance["packages"]["llamafactory"] == "0.9.5"
    assert [len(digest) for digest in provenance["data_sha256"].values()] == [64]
    loaded = content(made.loaded)
    assert set(loaded["parameters"]["frozen"]) == set(loaded["parameters"]["trainable"]) == {"float32"}
    attempt = runs.attempts(made)[0]
    assert attempt.returncode == 0 and attempt.process is not None and attempt.ended is not None


def test_no_path_in_the_written_arguments_is_left_open_and_none_is_relative(trained: Path) -> None:
    text = the_run(trained).arguments.read_text()
    assert "{run}" not in text and "{models}" not in text and "{data}" not in text
    assert f"output_dir: {trained}/runs/0001-tiny/output" in text.replace("\n ", "")


def test_the_adapter_names_the_model_that_it_belongs_to(trained: Path) -> None:
    config = content(the_run(trained).output / "adapter_config.json")
    assert Path(config["base_model_name_or_path"]) == trained / "models" / "tiny"


def test_status_and_runs_tell_the_same_story(trained: Path) -> None:
    status = json.loads(run(["status", "last", "--json"], trained).stdout)
    assert (status["state"], status["step"], status["total_steps"], status["pids"]) == ("finished", 4, 4, [])
    listed = json.loads(run(["runs", "--json"], trained).stdout)["runs"]
    assert [(each["run"], each["recipe"], each["state"]) for each in listed] == [("0001-tiny", "tiny", "finished")]
    assert "train metrics" in run(["logs", "1"], trained).stdout


def test_the_same_run_without_the_kit_gives_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    made = the_run(trained)
    script = tmp_path / "command.sh"
    shutil.copy(made.command, script)
    refused = subprocess.run(["bash", str(made.command)], capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2 and "output_dir=DIR" in refused.stderr
    subprocess.run(["bash", str(script), f"output_dir={tmp_path}/other"], check=True, capture_output=True, timeout=300)
    ours, theirs = (path / "adapter_model.safetensors" for path in (made.output, tmp_path / "other"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_what_llamafactory_refuses_before_the_first_step_is_a_problem_and_exit_code_2(
    iis: Command, project: Path
) -> None:
    # An adapter that is none is beyond what is looked at before the start; LLaMA-Factory itself has to refuse it.
    (project / "adapter").mkdir()
    done = iis("train", "tiny", f"adapter_name_or_path={project}/adapter")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr.split("\n  |")[0]
    assert "fix:" in done.stderr


def test_ctrl_c_ends_the_run_and_everything_that_it_started(project: Path) -> None:
    command = [sys.executable, "-m", "iis_finetune", "train", "tiny", "max_steps=2000", "num_train_epochs=500"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("step "):
                break
        made = the_run(project)
        tried = runs.attempts(made)[-1]
        child.send_signal(signal.SIGINT)
        rest = child.stdout.read()
        code = child.wait(timeout=60)
    assert code == 130, rest
    assert runs.state(made) == "stopped"
    deadline = time.monotonic() + 10
    pids = [who.pid for who in (tried.supervisor, tried.process) if who]
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_model_that_is_on_a_hub_only_is_fetched_verified_and_trained(
    iis: Command, project: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, source: str
) -> None:
    served = tmp_path_factory.mktemp("served")
    shutil.copytree(tiny_model, served / "acme" / "tiny")
    with Hub(served) as server:
        words = ("train", "tiny", "model_name_or_path=acme/tiny", f"kit.source={source}", "max_steps=2")
        done = iis(*words, HOME=str(project), HF_HUB_OFFLINE="0", **server.environment)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    folder = project / "models" / "acme--tiny"
    assert f"downloading acme/tiny to {project / 'models'}" in done.stdout
    proof = content(the_run(project).provenance)
    assert proof["model"].startswith(str(folder)) and proof["model_revision"]
    assert iis("download", "acme/tiny", "--verify").returncode == 0

"""Real LLaMA-Factory trainings that are killed, stopped, hung up, poisoned: what comes out must be the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from conftest import run as command

from iis_finetune import process, runs
from iis_finetune.observe import signs
from iis_finetune.runs import Run

STEPS = 24
WORDS = (
    f"max_steps={STEPS}",
    "save_steps=4",
    "lora_dropout=0.1",
    "kit.global_batch_size=32",
    "dataset=many",
    "kit.env={OMP_NUM_THREADS: 1}",
)
WAIT_SECONDS = 240.0


def add_data(folder: Path) -> None:
    """More rows, so that a step takes long enough to be hit in."""
    rows = [{"instruction": f"say {n} and {n + 1}", "input": "", "output": f"it is {n * 7} " * 6} for n in range(300)]
    (folder / "data" / "many.json").write_text(json.dumps(rows), encoding="utf-8")
    registry = json.loads((folder / "data" / "dataset_info.json").read_text())
    registry["many"] = {**registry["little"], "file_name": "many.json"}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(registry))


@pytest.fixture
def place(project: Path) -> Path:
    add_data(project)
    return project


def until(condition: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:.0f} s"
        time.sleep(0.05)


def train(folder: Path, *words: str, first: tuple[str, ...] = ("train", "tiny")) -> Run:
    """Start in the background; the newest run of the folder."""
    done = command([*first, *WORDS, *words, "--background"], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return newest(folder)


def newest(folder: Path) -> Run:
    where = folder / "runs"
    until(lambda: bool(list(where.glob("0*/attempts.jsonl"))), "a run")
    return Run(sorted(where.glob("0*"))[-1])


def step_of(run: Run) -> int:
    return signs(run).step or 0


def living(run: Run) -> bool:
    return runs.state(run) in ("starting", "running")


def ended(run: Run) -> str:
    until(lambda: not living(run), "the end")
    return runs.state(run)


def adapter(run: Run) -> str:
    return hashlib.sha256((run.output / "adapter_model.safetensors").read_bytes()).hexdigest()


def events(run: Run) -> list[str]:
    return [event["event"] for event in runs.events(run)]


def trainer(run: Run) -> process.Identity:
    """The last attempt's training process."""
    until(lambda: bool(runs.attempts(run)) and runs.attempts(run)[-1].process is not None, "a process")
    who = runs.attempts(run)[-1].process
    assert who is not None
    return who


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> str:
    """The adapter of the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    make_project(folder, tiny_model)
    run = train(folder)
    assert ended(run) == "finished", (run.log).read_text()[-2000:]
    assert len(runs.attempts(run)) == 1
    return adapter(run)


def make_project(folder: Path, tiny_model: Path) -> None:
    from conftest import RECIPE

    for name in ("recipes", "data", "models"):
        (folder / name).mkdir()
    (folder / "recipes" / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "models" / "tiny").symlink_to(tiny_model)
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    (folder / "data" / "dataset_info.json").write_text(json.dumps({"little": {"file_name": "x", "columns": columns}}))
    add_data(folder)


def kill_at(run: Run, step: int) -> None:
    """SIGKILL once a step beyond is logged."""
    until(lambda: step_of(run) >= step or not living(run), f"step {step}")
    process.send(process.tree(trainer(run)), signal.SIGKILL)


def test_a_killed_run_ends_byte_identical(place: Path, undisturbed: str) -> None:
    run = train(place)
    kill_at(run, 10)
    assert ended(run) == "finished", runs.events(run)
    assert [attempt.ending for attempt in runs.attempts(run)] == ["interrupted", "finished"]
    assert runs.attempts(run)[1].from_checkpoint in ("checkpoint-8", "checkpoint-12")
    assert adapter(run) == undisturbed

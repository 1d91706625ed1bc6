"""Two hands at once: whole commands started together on one run, or one device; staged training."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, left_after

from iis_finetune import process, runs
from iis_finetune.runs import Run

SECONDS = 120.0
ROUNDS = [pytest.param(0, id="once"), *(pytest.param(n, marks=pytest.mark.extended) for n in range(1, 10))]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(python: Path, project: Path) -> Iterator[Start]:
    """Start a verb in the project; what it left running is ended afterwards."""

    def call(*words: str, **more: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "FAKE_STEP_SECONDS": "0.3", **more}
        command = [str(python), "-m", "iis_finetune", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=project, env=environment, stdout=pipe, stderr=pipe, text=True)

    yield call
    for run in all_runs(project):
        held = runs.holder(run)
        process.end([*(process.tree(held.process) if held else ()), *runs.living(run)], 0)


def all_runs(project: Path) -> list[Run]:
    return [Run(path) for path in sorted((project / "runs").glob("0*"))]


def both(start: Start, *commands: tuple[str, ...], seed: int) -> list[subprocess.CompletedProcess[str]]:
    """Commands started within 50 ms of each other; what each said."""
    children = []
    for words in commands:
        children.append(start(*words))
        time.sleep(random.Random(seed).uniform(0, 0.05))
    return [said(child) for child in children]


def said(child: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    texts = child.communicate(timeout=SECONDS)
    return subprocess.CompletedProcess(child.args, child.returncode, *texts)


def stopped(start: Start, project: Path) -> Run:
    """A run whose supervisor and training were killed after its first checkpoint."""
    assert said(start("train", "tiny", "--background")).returncode == 0
    (run,) = all_runs(project)
    until(lambda: bool(run.checkpoints()))
    held = runs.holder(run)
    assert held is not None
    process.send(process.tree(held.process), signal.SIGKILL)
    until(lambda: runs.state(run) == "interrupted")
    return run


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end_of(run: Run) -> str:
    until(lambda: runs.holder(run) is None)
    return runs.state(run)


@pytest.mark.parametrize("seed", ROUNDS)
def test_of_two_that_resume_a_run_one_wins(start: Start, project: Path, seed: int) -> None:
    run = stopped(start, project)
    done = both(start, *[("resume", "last", "--background")] * 2, seed=seed)
    assert sorted(each.returncode for each in done) == [0, 2], done
    (refused,) = [each for each in done if each.returncode == 2]
    assert "0001-tiny is being" in refused.stderr and "by process" in refused.stderr
    assert end_of(run) == "finished"
    assert len(runs.attempts(run)) == 2 and len((run.folder / "starts").read_text().splitlines()) == 2
    steps = [line["current_steps"] for line in runs.read_lines(run.trainer_log)]
    assert steps[-10:].count(steps[-1]) == 1, "one training wrote the log"


@pytest.mark.parametrize("seed", ROUNDS)
def test_of_two_that_train_on_a_device_one_wins(start: Start, project: Path, seed: int) -> None:
    words = ("train", "tiny", "kit.env={CUDA_VISIBLE_DEVICES: '1'}", "--background")
    done = both(start, words, words, seed=seed)
    assert sorted(each.returncode for each in done) == [0, 3], done
    (refused,) = [each for each in done if each.returncode == 3]
    told = r"0001-tiny is being (prepared|trained) by process \d+ on the same device"
    assert re.search(told, refused.stderr + refused.stdout)
    (run,) = all_runs(project)
    assert end_of(run) == "finished"


def test_two_may_train_on_the_cpu(start: Start, project: Path) -> None:
    done = both(start, *[("train", "tiny")] * 2, seed=0)
    assert [each.returncode for each in done] == [0, 0]
    assert [runs.state(run) for run in all_runs(project)] == ["finished", "finished"]


@pytest.mark.parametrize("seed", ROUNDS)
def test_a_stop_against_a_resume_leaves_nothing_half(start: Start, project: Path, seed: int) -> None:
    run = stopped(start, project)
    resumed, halted = both(start, ("resume", "last", "--background"), ("stop", "last"), seed=seed)
    assert (resumed.returncode, halted.returncode) in ((0, 2), (0, 0), (2, 0), (1, 0), (130, 0)), (resumed, halted)
    state = end_of(run)
    assert state in ("finished", "stopped", "interrupted") and not runs.living(run)
    assert (state == "finished") == (halted.returncode == 2), (resumed, halted)


@pytest.mark.parametrize("seed", ROUNDS)
def test_a_delete_against_an_evaluate_one_wins(start: Start, project: Path, seed: int) -> None:
    assert said(start("train", "tiny", FAKE_STEP_SECONDS="0.01")).returncode == 0
    (run,) = all_runs(project)
    # The staged program answers nothing: who wins the run is what is looked at.
    evaluated, deleted = both(
        start, ("evaluate", "last", "--data", "little"), ("runs", "--delete", "last", "--yes"), seed=seed
    )
    if deleted.returncode == 0:
        assert not run.folder.exists() and evaluated.returncode in (1, 2), evaluated
    else:
        assert deleted.returncode == 2 and "0001-tiny is being evaluated by process" in deleted.stderr
        assert (run.output / "trainer_state.json").is_file()


def test_a_run_that_is_prepared_evaluated_or_exported_is_not_deleted(
    quick: Callable[..., subprocess.CompletedProcess[str]], project: Path
) -> None:
    run = Run(project / "runs" / "0001-tiny")
    run.folder.mkdir(parents=True)
    works: list[runs.Work] = ["prepared", "evaluated", "exported"]
    for work in works:
        with runs.claimed(run, work):
            refused = quick("runs", "--delete", "1", "--yes")
            assert refused.returncode == 2 and f"is being {work} by process {os.getpid()}" in refused.stderr
    assert quick("runs", "--delete", "1", "--yes").returncode == 0 and not run.folder.exists()


def test_an_evaluation_after_training_is_alone_and_ends_with_its_supervisor(start: Start, project: Path) -> None:
    mark = {"IIS_TEST_MARK": str(uuid.uuid4()), "FAKE_STEP_SECONDS": "0.02", "FAKE_ANSWER_SECONDS": "90"}
    assert said(start("train", "tiny", "kit.evaluate_after=little", "--background", **mark)).returncode == 0
    (run,) = all_runs(project)
    until(lambda: bool(list(run.evaluation.rglob("answering"))))
    held = runs.holder(run)
    assert held is not None
    told = json.loads(said(start("status", "last", "--json")).stdout)
    assert (told["state"], told["supervisor_pid"]) == ("running", held.process.pid), told
    for words in (("evaluate", "last", "--data", "little"), ("export", "last"), ("runs", "--delete", "last")):
        assert said(start(*words)).returncode == 2, words
    process.send([held.process], signal.SIGKILL)
    assert left_after(mark, 5) == []
    assert runs.holder(run) is None and runs.state(run) == "finished"
    again = said(start("evaluate", "last", "--data", "little"))
    assert "is being" not in again.stderr and len(list(run.evaluation.rglob("answering"))) == 1, again


def test_a_stop_of_a_copy_stops_nothing(start: Start, project: Path) -> None:
    assert said(start("train", "tiny", "--background")).returncode == 0
    (run,) = all_runs(project)
    until(lambda: bool(runs.living(run)))
    shutil.copytree(run.folder, run.folder.with_name("0009-copy"))
    done = both(start, ("stop", "9"), ("status", "9", "--json"), seed=0)
    assert done[0].returncode == 2 and "is not running" in done[0].stderr
    told = json.loads(done[1].stdout)
    assert told["state"] == "interrupted" and told["pids"] == [] and told["supervisor_pid"] is None
    assert end_of(run) == "finished"

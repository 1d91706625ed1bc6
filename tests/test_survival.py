"""Real LLaMA-Factory trainings that are killed, stopped, hung up, poisoned: what comes out must be the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import random
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from conftest import ROOT, make_project
from conftest import run as command
from safetensors.numpy import load_file, save_file

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
Adapter = Callable[[], str]  # its digest, once it is there


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
    return Run(max(where.glob("0*")))


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
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Adapter:
    """The adapter of the run that nothing happened to; it trains beside the test that asks for it first."""
    folder = make_project(tmp_path_factory.mktemp("undisturbed"), tiny_model)
    add_data(folder)
    run = train(folder)

    def finished() -> str:
        assert ended(run) == "finished", run.log.read_text()[-2000:]
        assert len(runs.attempts(run)) == 1
        return adapter(run)

    return finished


def kill_at(run: Run, step: int) -> None:
    """SIGKILL once a step beyond is logged."""
    until(lambda: step_of(run) >= step or not living(run), f"step {step}")
    process.send(process.tree(trainer(run)), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_run_ends_byte_identical(place: Path, undisturbed: Adapter) -> None:
    run = train(place)
    kill_at(run, 10)
    assert ended(run) == "finished", runs.events(run)
    assert [attempt.ending for attempt in runs.attempts(run)] == ["interrupted", "finished"]
    assert runs.attempts(run)[1].from_checkpoint in ("checkpoint-8", "checkpoint-12")
    assert adapter(run) == undisturbed()


@pytest.mark.slow
def test_three_kills_one_of_them_during_a_save_end_byte_identical(place: Path, undisturbed: Adapter) -> None:
    run = train(place)
    kill_at(run, 5)
    until(lambda: (run.output / "checkpoint-12").is_dir() or not living(run), "a save")
    process.send(process.tree(trainer(run)), signal.SIGKILL)
    until(lambda: len(runs.attempts(run)) == 3 or not living(run), "the third attempt")
    kill_at(run, 17)
    assert ended(run) == "finished", runs.events(run)
    assert len(runs.attempts(run)) == 4 and adapter(run) == undisturbed()


@pytest.mark.extended
def test_ten_kills_at_random_moments_end_byte_identical(place: Path, undisturbed: Adapter) -> None:
    chance = random.Random(7)
    run = train(place)
    for number in range(10):
        before = len(runs.attempts(run))
        if number % 5 == 4:  # within a save
            there = len(run.checkpoints())
            until(lambda: len(run.checkpoints()) > there or not living(run), "a save")  # noqa: B023
        else:
            at = step_of(run)
            until(lambda: step_of(run) > at or not living(run), "a step")  # noqa: B023
            time.sleep(chance.uniform(0, 1.5))
        process.send(process.tree(trainer(run)), signal.SIGKILL)
        until(lambda: len(runs.attempts(run)) > before or not living(run), "the next attempt")  # noqa: B023
        if not living(run):
            break
    if runs.state(run) == "failed":  # three kills in a row hit before a checkpoint: the user starts it again
        run = train(place, first=("resume", "last"))
    assert ended(run) == "finished", runs.events(run)
    assert adapter(run) == undisturbed()


@pytest.mark.slow
def test_a_kill_of_everything_and_a_resume_by_hand_end_byte_identical(place: Path, undisturbed: Adapter) -> None:
    run = train(place)
    until(lambda: step_of(run) >= 10, "step 10")
    supervisor = runs.attempts(run)[-1].supervisor
    process.send(process.tree(supervisor), signal.SIGKILL)
    assert ended(run) == "interrupted"
    assert command(["resume", "last", "--background"], place).returncode == 0
    until(lambda: living(run) or len(runs.attempts(run)) > 1, "the resume")
    assert ended(run) == "finished" and adapter(run) == undisturbed()


def break_pickle(path: Path) -> None:
    """The same archive, whole, with something in it that no pickle is."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            archive.writestr(name, b"no pickle" if name.endswith("data.pkl") else data)


@pytest.mark.slow
def test_a_checkpoint_that_the_trainer_cannot_load_gives_way_to_an_older_one(place: Path, undisturbed: Adapter) -> None:
    run = train(place)
    until(lambda: step_of(run) >= 9, "step 9")
    assert command(["stop", "last", "--now"], place).returncode == 0
    newest_one, older = run.checkpoints()[-1], run.checkpoints()[-2]
    break_pickle(newest_one / "optimizer.pt")
    (run.checksums / f"{newest_one.name}.json").unlink()
    done = command(["resume", "last"], place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [each.from_checkpoint for each in runs.attempts(run)] == [None, newest_one.name, older.name]
    assert adapter(run) == undisturbed()


@pytest.mark.slow
def test_a_training_whose_supervisor_is_killed_saves_and_ends_by_itself(place: Path, undisturbed: Adapter) -> None:
    run = train(place)
    until(lambda: step_of(run) >= 6, "step 6")
    who = trainer(run)
    process.send([runs.attempts(run)[-1].supervisor], signal.SIGKILL)
    until(lambda: not process.alive(who), "the end of the training")
    assert runs.state(run) == "interrupted" and runs.faults(run.checkpoints()[-1]) == []
    assert command(["resume", "last", "--background"], place).returncode == 0
    until(lambda: living(run) or len(runs.attempts(run)) > 1, "the resume")
    assert ended(run) == "finished" and adapter(run) == undisturbed()


def stop_and_resume(place: Path, step: int) -> Run:
    run = train(place)
    until(lambda: step_of(run) >= step, f"step {step}")
    process.send([trainer(run)], signal.SIGUSR1)
    until(
        lambda: any("_inner_training_loop" in path.read_text() for path in run.stacks()),
        "the stacks of a living training",
    )
    stopped = command(["stop", "last"], place)
    assert stopped.returncode == 0 and "stopped with checkpoint-" in stopped.stdout, stopped.stdout + stopped.stderr
    assert runs.state(run) == "stopped" and not process.tree(trainer(run))
    resumed = command(["resume", "last"], place)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    return run


@pytest.mark.slow
def test_a_stop_and_a_resume_end_byte_identical(place: Path, undisturbed: Adapter) -> None:
    assert adapter(stop_and_resume(place, 9)) == undisturbed()


@pytest.mark.extended
@pytest.mark.parametrize("step", [1, 8, 18])
def test_stops_at_three_points_end_byte_identical(place: Path, undisturbed: Adapter, step: int) -> None:
    assert adapter(stop_and_resume(place, step)) == undisturbed()


@pytest.mark.slow
def test_two_processes_stopped_resumed_or_robbed_of_one_end_byte_identical(place: Path) -> None:
    whole = train(place, "kit.devices=2")
    assert ended(whole) == "finished", whole.log.read_text()[-2000:]
    run = train(place, "kit.devices=2")
    until(lambda: step_of(run) >= 9, "step 9")
    assert command(["stop", "last"], place).returncode == 0
    newest_checkpoint = run.checkpoints()[-1]
    assert runs.faults(newest_checkpoint, 2) == []
    assert command(["resume", "last"], place).returncode == 0
    assert runs.attempts(run)[-1].from_checkpoint == newest_checkpoint.name
    assert adapter(run) == adapter(whole)
    killed = train(place, "kit.devices=2")
    until(lambda: step_of(killed) >= 9 and bool(runs.attempts(killed)[-1].workers), "step 9")
    one_worker = process.tree(trainer(killed))[-1]
    process.send([one_worker], signal.SIGKILL)
    assert ended(killed) == "finished", runs.events(killed)
    assert runs.events(killed)[1]["cause"] == "killed" and adapter(killed) == adapter(whole)


@pytest.mark.slow
def test_a_run_that_lost_only_its_end_is_not_trained_a_step_too_far(place: Path, undisturbed: Adapter) -> None:
    """Killed between the last checkpoint and the final weights: transformers would take one more step."""
    run = train(place)
    assert ended(run) == "finished"
    for name in ("adapter_model.safetensors", "trainer_state.json"):
        (run.output / name).unlink()
    assert runs.state(run) == "failed"
    resumed = command(["resume", "last"], place)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert runs.attempts(run)[-1].from_checkpoint == f"checkpoint-{STEPS}"
    assert adapter(run) == undisturbed() and not (run.output / f"checkpoint-{STEPS + 1}").exists()


def hung_up(folder: Path, words: list[str]) -> None:
    """Start a command on a terminal of its own, wait for training, then close the terminal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe(words[0], words, environment)
    run = newest(folder)
    deadline = time.monotonic() + WAIT_SECONDS
    while step_of(run) < 3 and time.monotonic() < deadline:
        try:
            os.read(terminal, 65536)  # a terminal that nobody reads from would stop who writes to it
        except OSError:
            break  # it has already gone to the background
        time.sleep(0.02)
    until(lambda: step_of(run) >= 3 or not living(run), "step 3")
    os.close(terminal)
    os.waitpid(pid, 0)


WAYS = {
    "foreground": [sys.executable, "-m", "iis_finetune", "train", "tiny"],
    "background": [sys.executable, "-m", "iis_finetune", "train", "tiny", "--background"],
    "train_nohup.sh": ["bash", "scripts/train_nohup.sh", "tiny"],
}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_a_closed_terminal_ends_nothing(place: Path, way: str, processes: int) -> None:
    (place / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "train_nohup.sh", place / "scripts")
    installed = place / ".venv" / "bin" / "iis-finetune"
    installed.parent.mkdir(parents=True)
    installed.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m iis_finetune "$@"\n')
    installed.chmod(0o755)
    hung_up(place, [*WAYS[way], *WORDS, f"kit.devices={processes}"])
    run = newest(place)
    assert ended(run) == "finished", run.log.read_text()[-2000:]
    assert len(runs.attempts(run)) == 1 and "recovering" not in events(run), (
        runs.events(run),
        run.log.read_text()[-6000:],
    )


def poison(source: Path, target: Path) -> None:
    """A copy in fp16 whose first MLP passes 65,504 from the second step on; in fp32 it is an ordinary model.

    No embedding and no layer writes to one dimension of the hidden state, and the first MLP multiplies that dimension
    by 5,000 twice: all is well until the first step of LoRA has written to it.
    """
    target.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, target)
    tensors = load_file(source / "model.safetensors")
    for name, values in tensors.items():
        if "embed_tokens" in name:
            values[:, -1] = 0
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            values[-1] = 0
        elif "layers.0.mlp" in name:
            values[:, -1] = 5000
    save_file({name: values.astype(numpy.float16) for name, values in tensors.items()}, target / "model.safetensors")
    config = json.loads((target / "config.json").read_text())
    config.pop("torch_dtype", None)
    (target / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))


@pytest.mark.slow
def test_nan_in_fp16_is_seen_at_its_step_and_the_run_ends_in_fp32(place: Path, tiny_model: Path) -> None:
    poison(tiny_model, place / "models" / "poisoned")
    words = ("model_name_or_path=models/poisoned", "kit.precision=as-saved", "save_steps=1")
    run = train(place, *words)
    assert ended(run) == "finished", run.log.read_text()[-3000:]
    trouble = next(event for event in runs.events(run) if event["event"] == "not finite")
    first, second = runs.attempts(run)
    assert second.changed == {"precision": "fp32"} and second.from_checkpoint == f"checkpoint-{trouble['step'] - 1}"
    loaded = json.loads(run.loaded.read_text())["parameters"]
    assert set(loaded["frozen"]) == {"float32"}
    assert runs.weight_faults(run.output) == [] and first.ending == "interrupted"

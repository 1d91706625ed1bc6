"""Tuning: what is tried where, what a trial trains on, what wins, what is refused, what goes wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import LONGEST, ROOT, TINY, Command, left_after
from hub_server import Hub
from msgspec.structs import replace

from iis_finetune import dataset, machine, preflight, tune
from iis_finetune import recipe as recipes
from iis_finetune.errors import Misused, Place, RunFailed
from iis_finetune.preflight import Question
from iis_finetune.runs import Measured, Workspace, load
from iis_finetune.tables import read
from iis_finetune.tune import rows, search
from iis_finetune.tune.trial import Bench, Figures, Trial, bench, try_out

PLANTED = {"name": "planted", "changes": "nothing"}
Tuner = Callable[..., tuple[Measured, list[dict[str, Any]]]]


def named(profile: str) -> list[str]:
    return [row["name"] for row in tune.levers_for(machine.profile(profile), "sft")]


def test_each_lever_says_what_it_changes_and_who_says_so() -> None:
    for row in read("tune.toml")["lever"]:
        assert row["changes"] in ("nothing", "rounding", "training"), row["name"]
        assert row["source"] and row["date"] and row["confirmed"] in (True, False), row["name"]
        assert ("try" in row) != ("doubled" in row), row["name"]


def test_each_class_of_device_has_levers_of_its_own() -> None:
    assert named("mi50")[:2] == ["precision", "micro-batch"]
    assert "one device" in named("mi50x2")
    assert "one device" not in named("mi50")
    assert "fused attention" not in named("mi50")
    assert "matrix library" in named("rx7900xtx")
    assert "precision" not in named("h200")
    assert "threads" in named("cpu")
    assert "offloaded checkpoints" not in named("cpu")


def test_what_may_change_the_training_is_tried_only_by_name() -> None:
    host = machine.profile("cpu")
    assert "grouping by length" not in named("cpu")
    assert [row["name"] for row in tune.levers_for(host, "sft", ["grouping by length"])] == ["grouping by length"]
    assert "micro-batch" not in [row["name"] for row in tune.levers_for(host, "kto")]
    with pytest.raises(Misused, match="no lever 'liger' on the CPU here"):
        tune.levers_for(host, "sft", ["liger"])


def test_settings_are_said_so_that_nothing_in_the_recipe_is_against_them(project: Path) -> None:
    file = project / "recipes" / "tiny.yaml"
    file.write_text(file.read_text().replace("kit:\n", "kit:\n  env: {A: 1}\n") + "flash_attn: sdpa\n")
    recipe, _ = recipes.read(str(file))
    settings = {"kit.attention": "disabled", "env.B": "2", "per_device_train_batch_size": 4}
    assert tune.typed(settings, recipe) == (
        "flash_attn=null",
        'kit.attention="disabled"',
        "per_device_train_batch_size=4",
        'kit.env={"A": 1, "B": "2"}',
    )


def test_the_longest_rows_come_first_and_every_length_after_them(tmp_path: Path) -> None:
    found = [{"instruction": "x" * n, "input": "", "output": "y"} for n in range(1, 101)]
    (tmp_path / "rows.json").write_text(json.dumps(found))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"all": {"file_name": "rows.json"}}))
    sources, _ = dataset.check_registered(["all"], str(tmp_path), "sft", Place())
    rows.lay_out(sources, {rows.TIMED: 20, rows.SHORT: 30, rows.HELD_OUT: 10}, 4, tmp_path / "made")

    def lengths(kind: str) -> list[int]:
        return [len(row["instruction"]) for row in json.loads((tmp_path / "made" / f"{kind}_0.json").read_text())]

    assert lengths(rows.TIMED)[:4] == [100, 99, 98, 97]
    assert abs(sum(lengths(rows.TIMED)[4:]) / 16 - 50.5) < 2
    assert sorted(lengths(rows.SHORT) + lengths(rows.HELD_OUT)) == list(range(1, 41))
    again, _ = dataset.check_registered(["timed_0"], str(tmp_path / "made"), "sft", Place())
    assert again[0].layout == sources[0].layout


def test_two_numbers_of_layers_tell_those_of_all() -> None:
    two = Figures(seconds_per_step=3.0, noise=0.01, held_gib=2.0, tokens_per_step=10)
    four = Figures(seconds_per_step=4.0, noise=0.01, held_gib=2.5, tokens_per_step=10)
    whole = search.whole([two, four], (2, 4), 24)
    assert (whole.seconds_per_step, whole.held_gib) == (14.0, 7.5)
    assert 0.03 < whole.noise < 0.04  # what is uncertain of four layers is ten times that of 24
    assert search.whole([two], (2,), 24) == two


@pytest.fixture
def tuner(project: Path, python: Path, monkeypatch: pytest.MonkeyPatch) -> Tuner:
    """Tune the tiny recipe with levers of the test's own, its trainings staged."""
    monkeypatch.chdir(project)
    workspace = Workspace(project, project / "models", project / "runs")

    def call(*planted: Mapping[str, Any], minutes: float = 2.0) -> tuple[Measured, list[dict[str, Any]]]:
        told: list[dict[str, Any]] = []
        words = (f"kit.env={{VIRTUAL_ENV: {python.parent.parent}, FAKE: '[]'}}", "kit.tuned=false")
        question = Question("tiny", words, workspace, dict(os.environ))
        examined = preflight.examine(question)
        return tune.tune(
            (question, examined, None), [{**PLANTED, **row} for row in planted], minutes, told.append
        ), told

    return call


def staged(what: str, at: int = 3) -> dict[str, Any]:
    return {"name": what, "try": [{"env.FAKE": json.dumps([{"at": at, "do": what}])}]}


FASTER = {"name": "faster", "try": [{"env.FAKE_STEP_SECONDS": "0.01"}]}


def test_what_is_faster_and_trains_the_same_is_kept(tuner: Tuner, project: Path) -> None:
    measured, told = tuner({"name": "slower", "try": [{"env.FAKE_STEP_SECONDS": "0.08"}]}, FASTER)
    assert [row["verdict"] for row in told] == ["the start", "no faster", "kept", "trains what the start trains"]
    assert measured.settings == {"env.FAKE_STEP_SECONDS": "0.01"}
    assert measured.seconds_per_step < measured.start_seconds_per_step
    assert measured.global_batch_size == 4
    assert load(project / "measured")[0] == (measured,)
    assert [path.name for path in (project / "measured").iterdir() if path.is_dir()] == []
    assert not (project / "runs").exists()


def test_what_is_as_it_was_at_the_start_again_is_nothing_that_was_found(tuner: Tuner) -> None:
    def planted(micro_batch: int, seconds: str) -> dict[str, Any]:
        return {
            "name": seconds,
            "try": [{"per_device_train_batch_size": micro_batch, "env.FAKE_STEP_SECONDS": seconds}],
        }

    measured, told = tuner(planted(1, "0.02"), planted(2, "0.005"))
    assert [row["verdict"] for row in told[:3]] == ["the start", "kept", "kept"]
    assert measured.settings == {"env.FAKE_STEP_SECONDS": "0.005"}


SKIPS = {"name": "skips", "try": [{"env.FAKE_SKIPS": "1"}]}


def test_what_is_fast_and_wrong_is_refused_by_its_first_losses(tuner: Tuner) -> None:
    measured, told = tuner(SKIPS, FASTER)
    assert told[1]["verdict"] == "fast, and refused: the loss of step 2 is 3, the start's 2.95"
    assert measured.settings == {"env.FAKE_STEP_SECONDS": "0.01"}


def test_what_trains_something_else_in_twenty_steps_goes(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "ROUNDED", 1.0)  # as if the first losses told nothing
    measured, told = tuner(SKIPS)
    assert measured.settings == {} and [row["verdict"] for row in told[:2]] == ["the start", "kept"]
    assert told[2]["verdict"] == "fast, and refused: the loss of held-out rows is 2.5, the start's 2"


def test_what_is_slow_when_repeated_is_refused(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = search.try_out

    def uneven(at: Bench, trial: Trial, limit_seconds: float) -> Figures:
        figures = tried(at, trial, limit_seconds)
        return replace(figures, seconds_per_step=9.0) if trial.purpose == "quality" and trial.settings else figures

    monkeypatch.setattr(search, "try_out", uneven)
    measured, told = tuner(FASTER)
    assert measured.settings == {} and told[-1]["verdict"].startswith("fast at first, and slow when repeated: ")


def test_the_best_before_is_begun_with_and_kept_where_no_time_is_left(tuner: Tuner, project: Path) -> None:
    first, _ = tuner(FASTER)
    again, told = tuner(FASTER)
    assert [row["name"] for row in told][:2] == ["as it stands", "the best before"] and again.settings == first.settings
    (project / "measured" / "trials.jsonl").unlink()
    late, told = tuner(FASTER, minutes=0.0001)
    assert late == again and load(project / "measured")[0] == (again,)
    assert [row["name"] for row in told] == ["as it stands"]


def test_a_micro_batch_is_doubled_as_long_as_it_helps_and_the_global_batch_stays(tuner: Tuner) -> None:
    _, told = tuner({"name": "micro-batch", "doubled": "per_device_train_batch_size"})
    tried = [row["settings"] for row in told if row["name"] == "micro-batch"]
    assert {"per_device_train_batch_size": 4} in tried
    assert all(4 % row["per_device_train_batch_size"] == 0 for row in tried)


@pytest.mark.parametrize(
    ("what", "verdict"),
    [("oom", "out of memory: torch.OutOfMemoryError"), ("nan", "not finite: "), ("crash", "crash: ValueError")],
)
def test_what_goes_wrong_is_a_row_and_the_search_goes_on(tuner: Tuner, what: str, verdict: str) -> None:
    measured, told = tuner(staged(what), FASTER)
    assert told[1]["verdict"].startswith(verdict)
    assert measured.settings == {"env.FAKE_STEP_SECONDS": "0.01"}


def test_a_trial_that_hangs_is_ended(tuner: Tuner, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "LEAST_SECONDS", 4.0)
    began = time.monotonic()
    _, told = tuner(staged("stall"))
    assert told[1]["verdict"].startswith("stall: 2 steps in ")
    assert time.monotonic() - began < 100  # it sleeps for 120 s
    assert "stall" not in (project / "measured" / "trials.jsonl").read_text(), "the machine may have been busy"


def test_a_fault_of_the_card_ends_all_and_is_never_tried_again(tuner: Tuner, project: Path) -> None:
    with pytest.raises(tune.CardFault, match=r"Memory access fault by GPU.*reset the card"):
        tuner(staged("fault"), FASTER)
    kept = (project / "measured" / "trials.jsonl").read_text().splitlines()
    assert len(kept) == 2
    _, told = tuner(staged("fault"), FASTER)
    assert told[1]["verdict"].startswith("gpu fault: Memory access fault by GPU")


def test_a_start_that_fails_is_told(tuner: Tuner, project: Path) -> None:
    file = project / "recipes" / "tiny.yaml"
    file.write_text(file.read_text().replace("cutoff_len: 128", "cutoff_len: 128\nlora_dropout: 7"))
    with pytest.raises(RunFailed, match="the recipe as it stands cannot be measured: refused: "):
        tuner(FASTER)


def test_the_verb_shows_a_table_keeps_the_best_and_goes_on_where_it_was(
    quick: Command, project: Path, python: Path
) -> None:
    words = ("tune", "tiny", f"kit.env={{VIRTUAL_ENV: {python.parent.parent}}}", "--levers", "micro-batch")
    done = quick(*words)
    assert done.returncode == 0, done.stderr
    assert "  tokens/s  peak GiB loss off  what was tried: " in done.stdout
    assert "as it stands: the start" in done.stdout
    assert "next: iis-finetune plan tiny 'kit.env=" in done.stdout
    assert re.search(r"the whole recipe, of 4 steps: \d+ s as it stands, \d+ s at best", done.stdout)
    kept = (project / "measured" / "trials.jsonl").read_text()
    assert quick("report", *words[1:3], "--tuning").stdout.startswith(f"{project}/measured/tiny.html: ")
    page = (project / "measured" / "tiny.html").read_text(encoding="utf-8")
    assert "as it stands" in page and "the start" in page and 'class="bar"' in page and "per_device_train" in page
    other = quick("report", *words[1:3], "cutoff_len=77", "--tuning")
    assert other.returncode == 2 and "cutoff_len was 128 and is 77 now" in other.stderr
    again = quick(*words, "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout)["measured"]["global_batch_size"] == 4
    assert (project / "measured" / "trials.jsonl").read_text() == kept


@pytest.mark.slow
def test_a_model_that_is_not_here_gives_its_tokenizer_and_shapes_and_no_weights(
    quick: Command, project: Path, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served"
    shutil.copytree((project / "models" / "tiny").resolve(), served / "own" / "small")
    staged_here = f"kit.env={{VIRTUAL_ENV: {python.parent.parent}}}"
    words = ("kit.source=huggingface", staged_here, "--levers", "micro-batch")
    with Hub(served) as hub:
        for name, value in hub.environment.items():
            monkeypatch.setenv(name, value)
        done = quick("tune", "tiny", "model_name_or_path=own/small", *words)
    assert done.returncode == 0, done.stderr
    folder = project / "measured" / "models" / "own--small"
    assert (folder / "tokenizer.json").is_file() and not list(folder.glob("*.safetensors"))
    assert not (project / "models" / "own--small").exists()
    (row,), _ = load(project / "measured")
    assert row.key.shape.startswith("qwen2 2x64x128 "), "as it will be once the model is here"
    shutil.rmtree(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = quick("tune", "tiny", "model_name_or_path=own/small", *words)
    assert offline.returncode == 3 and "the network is switched off" in offline.stderr
    known = quick("tune", "tiny", "model_name_or_path=Qwen/Qwen2.5-0.5B-Instruct", *words, "--minutes", "0.1")
    assert "note: one made from the rows stands in for it" in known.stdout


def test_a_lever_that_is_not_here_and_a_stage_without_steps_are_told(quick: Command) -> None:
    done = quick("tune", "tiny", "--levers", "micro-batch, micro-bach")
    assert done.returncode == 2 and "no lever 'micro-bach'" in done.stderr
    assert "did you mean 'micro-batch'?" in done.stderr
    assert quick("tune", "tiny", "lora_rnak=3").returncode == 2


def test_ctrl_c_keeps_what_finished_trials_gave_and_leaves_nothing_running(project: Path, python: Path) -> None:
    mark = f"tune-{os.getpid()}"
    words = ["tune", "tiny", f"kit.env={{VIRTUAL_ENV: {python.parent.parent}, FAKE_STEP_SECONDS: 0.2, MARK: {mark}}}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "iis_finetune", *words]
    child = subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    kept = project / "measured" / "trials.jsonl"
    until = time.monotonic() + LONGEST
    while not kept.is_file() and time.monotonic() < until:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=LONGEST)
    assert child.returncode == 130, said.decode()
    assert b"the same command goes on from there" in said
    assert not list((project / "measured").glob(".iis-finetune-scratch-*"))
    assert left_after({"MARK": mark}, 10) == []


WIDE = {**TINY, "num_hidden_layers": 16, "hidden_size": 256, "intermediate_size": 1024, "vocab_size": 400}


@pytest.fixture
def deep(project: Path) -> None:
    """The tiny model said to have sixteen layers, of which trials have four and twelve; staged ones load nothing."""
    folder = project / "models" / "tiny"
    shared = folder.resolve()
    folder.unlink()
    shutil.copytree(shared, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"num_hidden_layers": 16, "layer_types": config["layer_types"] * 8})
    )


@pytest.mark.slow
@pytest.mark.usefixtures("deep")
def test_the_start_and_the_best_are_confirmed_with_all_layers_and_a_best_that_fails_there_goes(
    tuner: Tuner, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = search.try_out

    def failing(at: Bench, trial: Trial, limit_seconds: float) -> Figures:
        if trial.layers == 16 and trial.settings.get("env.FAKE_STEP_SECONDS") == "0.001":
            return Figures(trouble="out of memory", why="seven of eight")
        return tried(at, trial, limit_seconds)

    monkeypatch.setattr(search, "try_out", failing)
    monkeypatch.setattr(search, "GAIN", 100.0)  # what is faster is not the question here
    measured, told = tuner(FASTER, {"name": "fastest", "try": [{"env.FAKE_STEP_SECONDS": "0.001"}]})
    verdicts = [(row["name"], re.split("[:0-9]", row["verdict"])[0].strip()) for row in told]
    assert verdicts[:3] == [("as it stands", "the start"), ("faster", "kept"), ("fastest", "kept")]
    foretold = ("all layers", "fewer layers foretold")
    assert verdicts[3:] == [
        ("its quality", "trains what the start trains"),
        foretold,
        ("all layers", "out of memory"),
        foretold,
    ]
    assert measured.settings == {"env.FAKE_STEP_SECONDS": "0.01"}


@pytest.mark.extended
def test_fewer_layers_foretell_the_memory_of_the_whole(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project / "models" / "wide"
    text = project / "data" / "little.json"
    tokenizer = {"train_on": [str(text)], "vocab_size": 400}
    spec = project / "spec.json"
    spec.write_text(json.dumps({"config": WIDE, "tokenizer": tokenizer, "to": str(folder)}))
    subprocess.run([sys.executable, "-m", "iis_finetune.probe.scratch", str(spec)], cwd=ROOT, check=True)
    monkeypatch.chdir(project)
    workspace = Workspace(project, project / "models", project / "runs")
    question = Question("tiny", ("model_name_or_path=models/wide", "kit.tuned=false"), workspace, dict(os.environ))
    with bench(question, preflight.examine(question)) as at:
        assert at.depths == (4, 12)
        four, twelve, all_of_it = (try_out(at, Trial({}, layers), LONGEST) for layers in (4, 12, 16))
    assert [each.trouble for each in (four, twelve, all_of_it)] == [None, None, None]
    told = search.whole([four, twelve], (4, 12), 16)
    assert abs(told.held_gib / all_of_it.held_gib - 1) < 0.05
    assert four.tokens_per_step == all_of_it.tokens_per_step


SABOTAGED = """\
import os, sys
import torch

if "SKIPS" in os.environ:
    update, calls = torch.optim.AdamW.step, []

    def step(self, *words, **named):
        calls.append(1)
        return update(self, *words, **named) if len(calls) % 2 else None

    torch.optim.AdamW.step = step
from llamafactory.cli import main

sys.exit(main())
"""


@pytest.mark.slow
def test_a_real_training_that_skips_updates_is_refused_and_a_larger_micro_batch_is_not(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_folder = tmp_path / "sabotaged" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "main.py").write_text(SABOTAGED)
    program = bin_folder / "llamafactory-cli"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{bin_folder}/main.py" "$@"\n')
    program.chmod(0o755)
    monkeypatch.chdir(project)
    monkeypatch.setattr(search, "GAIN", 100.0)  # so small a model is too quick to tell what is faster
    monkeypatch.setattr(search, "AGAIN", 100.0)
    workspace = Workspace(project, project / "models", project / "runs")
    words = (f"kit.env={{VIRTUAL_ENV: {bin_folder.parent}}}", "kit.tuned=false")
    question = Question("tiny", words, workspace, {**os.environ, "OMP_NUM_THREADS": "1"})
    planted = [
        {**PLANTED, "name": "skips", "try": [{"env.SKIPS": "1"}]},
        {**PLANTED, "name": "skips as well", "changes": "training", "try": [{"env.SKIPS": "2"}]},
        {**PLANTED, "name": "rows", "try": [{"per_device_train_batch_size": 4}]},
    ]
    told: list[dict[str, Any]] = []
    measured = tune.tune((question, preflight.examine(question), None), planted, LONGEST / 60, told.append)
    assert "fast, and refused: the loss of step " in told[1]["verdict"]
    assert "fast, and refused: the loss of held-out rows " in told[2]["verdict"]
    assert [row["verdict"] for row in (told[0], told[3])] == ["the start", "kept"]
    assert measured.settings == {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    assert 0.1 < (measured.peak_gib or 0) < 4
    assert measured.tokens_per_second > 0

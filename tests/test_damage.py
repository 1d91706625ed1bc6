"""Run folders that something has damaged: one line that names the file, the other runs untouched, never a trace."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Command

from iis_finetune import runs
from iis_finetune.runs import Run

OF_0_1_0 = ROOT / "tests" / "fixtures" / "runs" / "0001-tiny"
FILES = ("attempts.jsonl", "events.jsonl", "decisions.json", "machine.json", "provenance.json", "loaded.json")
IN_OUTPUT = ("output/trainer_state.json", "output/trainer_log.jsonl", "output/all_results.json")
VALUES: tuple[object, ...] = (None, [], {}, "x", -1, 1e300, True, [[]], {"a": []}, "\x1b[31m")


@pytest.fixture
def folders(project: Path) -> tuple[Run, Run]:
    """A finished run, and one to be damaged."""
    where = project / "runs"
    good, bad = Run(where / "0001-tiny"), Run(where / "0002-tiny")
    for run in (good, bad):
        shutil.copytree(OF_0_1_0, run.folder)
        (run.output / "adapter_model.safetensors").write_bytes(b"x")
    return good, bad


DAMAGES: dict[str, tuple[str, Callable[[str], str]]] = {
    "a word for a time": ("attempts.jsonl", lambda text: text.replace('"attempt": 1', '"attempt": "first"')),
    "a name that is no text": ("attempts.jsonl", lambda text: text.replace("{", r'{"\ud800": 0, ', 1)),
    "a time of no calendar": (
        "attempts.jsonl",
        lambda text: text.replace('"started": ', '"started": 1e300, "x": '),
    ),
    "no supervisor": ("attempts.jsonl", lambda _text: '{"attempt": 1, "started": 0, "supervisor": 7}\n'),
    "no start": ("attempts.jsonl", lambda _text: '{"attempt": 1}\n'),
    "a list of steps": ("output/trainer_state.json", lambda _text: '{"global_step": [4], "max_steps": 4}'),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_is_one_line_and_the_others_are_listed(
    quick: Command, folders: tuple[Run, Run], name: str
) -> None:
    _, bad = folders
    file, change = DAMAGES[name]
    path = bad.folder / file
    path.write_text(change(path.read_text()))
    listed = quick("runs")
    assert listed.returncode == 0 and "0001-tiny" in listed.stdout and "finished" in listed.stdout
    assert listed.stderr.count("warning:") == 1 and Path(file).name in listed.stderr, listed.stderr
    assert ": :" not in listed.stderr
    told = json.loads(quick("runs", "--json").stdout)["runs"]
    assert [run["state"] for run in told] == ["finished", None] and Path(file).name in told[1]["damaged"]
    for words in (("status", "2"), ("resume", "2"), ("report", "2")):
        refused = quick(*words)
        assert refused.returncode == 2 and Path(file).name in refused.stderr, (words, refused)
    assert quick("status", "1").returncode == 0
    assert quick("runs", "--delete", "2", "--yes").returncode == 0


OF_A_REPORT = {
    "loaded.json": ("parameters", "attention", "device_memory_gib"),
    "provenance.json": ("model", "data_sha256"),
    "machine.json": ("title",),
    "output/all_results.json": ("epoch", "train_loss"),
}


def test_a_report_of_a_damaged_run_is_a_page_or_one_line(quick: Command, folders: tuple[Run, Run]) -> None:
    _, bad = folders
    for file, keys in OF_A_REPORT.items():
        path = bad.folder / file
        whole = path.read_text() if path.is_file() else "{}"
        for key in keys:
            for value in (*VALUES, {"trainable": 3}, {"trainable": {"float32": "x"}}):
                path.write_text(json.dumps({**json.loads(whole), key: value}))
                done = quick("report", "2")
                assert done.returncode == 0 or (done.returncode == 2 and path.name in done.stderr), (
                    file,
                    key,
                    value,
                    done,
                )
        path.write_text(whole)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_lies_in_a_run_folder_no_verb_ends_as_a_bug(
    quick: Command, folders: tuple[Run, Run], seed: int
) -> None:
    fuzz(quick, folders, seed, rounds=4)


@pytest.mark.extended
@pytest.mark.parametrize("seed", range(100, 110))
def test_whatever_lies_in_a_run_folder_no_verb_ends_as_a_bug_at_length(
    quick: Command, folders: tuple[Run, Run], seed: int
) -> None:
    fuzz(quick, folders, seed, rounds=40)


def fuzz(quick: Command, folders: tuple[Run, Run], seed: int, rounds: int) -> None:
    """Damage a file, then ask five verbs."""
    good, bad = folders
    chance = random.Random(seed)
    for _ in range(rounds):
        shutil.rmtree(bad.folder, ignore_errors=True)
        shutil.copytree(good.folder, bad.folder)
        path = bad.folder / chance.choice(FILES + IN_OUTPUT)
        damage(path, chance)
        for words in (("runs",), ("runs", "--json"), ("status", "2"), ("status", "2", "--json"), ("logs", "2")):
            done = quick(*words)
            shown = path.read_bytes()[:400] if path.is_file() else None
            assert done.returncode in (0, 2), (seed, words, path.name, shown, done.stderr)


def damage(path: Path, chance: random.Random) -> None:
    if not path.is_file():
        path.write_text(json.dumps(chance.choice(VALUES)))
        return
    data = path.read_bytes()
    kind = chance.choice(["cut", "noise", "value", "value", "value", "gone"])
    if kind == "cut":
        path.write_bytes(data[: chance.randrange(len(data) + 1)])
    elif kind == "noise":
        at = chance.randrange(len(data) + 1)
        path.write_bytes(data[:at] + chance.randbytes(20) + data[at + 20 :])
    elif kind == "gone":
        path.unlink()
    else:
        lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
        path.write_text("\n".join(json.dumps(changed(json.loads(line), chance)) for line in lines if line) + "\n")


def changed(value: object, chance: random.Random) -> object:
    """The same with one value, anywhere in it, put in another's place."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value))
        return {**value, key: changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.5:
        return [changed(value[0], chance), *value[1:]]
    return chance.choice(VALUES)


def test_a_half_written_last_line_costs_only_itself(tmp_path: Path) -> None:
    run = Run(tmp_path)
    runs.note(run, "started")
    run.events.write_text(run.events.read_text() + '{"time": 1.0, "eve')
    runs.note(run, "stopped")
    runs.note(run, "resumed")
    assert [event["event"] for event in runs.events(run)] == ["started", "stopped", "resumed"]


def test_the_umask_is_kept(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        runs.write(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    runs.write(tmp_path / "b", "text")
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o666 & ~before

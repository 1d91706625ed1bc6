"""What the detached process does, in this process; the training program is the staged one."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RECIPE, Command

from iis_finetune import cli, dataset, evaluate, machine, preflight, process, recover, runs, session
from iis_finetune.cli.summary import tell_evaluation
from iis_finetune.dataset import readings
from iis_finetune.evaluate.answers import material, settings_of
from iis_finetune.runs import Decided, Request, Run, Workspace
from iis_finetune.session import Order

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def staged(project: Path, python: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The project, with the staged training program where LLaMA-Factory's is looked for."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(recover, "PAUSES_SECONDS", (0.05, 0.05, 0.05))
    return Workspace(project, project / "models", project / "runs")


def told(request: Request) -> list[dict[str, Any]]:
    return list(runs.read_lines(request.progress))


def carried_out(order: Order, workspace: Workspace, **more: str) -> tuple[int, Request]:
    request = session.place(order, workspace, dataset.Readings())
    return session.carry_out(request.folder, workspace, {**os.environ, **more}), request


def recovered(workspace: Workspace, what: str, *overrides: str, **more: str) -> tuple[Run, Decided]:
    """The run of a training that failed at step 5 and then went on to its end."""
    fake = json.dumps([{"at": 5, "do": what}])
    code, request = carried_out(Order("tiny", overrides), workspace, FAKE=fake, **more)
    assert code == 0, told(request)
    (run,) = runs.listed(workspace)
    decided = runs.read_decided(run)
    assert decided is not None
    return run, decided


def test_an_order_is_carried_out_and_its_end_is_told(staged: Workspace) -> None:
    code, request = carried_out(Order("tiny"), staged)
    assert code == 0, told(request)
    assert [next(key for key in line if key != "time") for line in told(request)] == ["run", "finished", "exit"]
    assert [run.name for run in runs.listed(staged)] == ["0001-tiny"]


def test_a_run_whose_data_are_edited_does_not_recover_onto_other_rows(
    staged: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runs.record

    def edit(run: Run, attempt: runs.Attempt) -> None:
        (staged.data / "little.json").write_text("[]")
        real(run, attempt)

    monkeypatch.setattr(runs, "record", edit)
    code, _ = carried_out(Order("tiny"), staged, FAKE=json.dumps([{"at": 5, "do": "kill"}]))
    (run,) = runs.listed(staged)
    assert code == 1 and "little.json changed since the run began" in str(runs.attempts(run)[-1].why)


def test_a_secret_of_the_shell_reaches_the_training_and_no_file_of_the_run(
    staged: Workspace, python: Path, quick: Command
) -> None:
    secret = "hf_" + "s3cret" * 6
    program = staged.root / "bin" / "llamafactory-cli"
    program.parent.mkdir()
    seen = staged.root / "seen"
    watched = f'#!/bin/sh\nprintenv HF_TOKEN WANDB_API_KEY > "{seen}"\nexec "{python.parent}/llamafactory-cli" "$@"\n'
    program.write_text(watched)
    program.chmod(0o755)
    (program.parent / "python").symlink_to(python)
    sys.executable = str(program.parent / "python")  # `staged` puts the real one back
    given = {"HF_TOKEN": secret, "WANDB_API_KEY": f"w{secret}"}
    code, request = carried_out(Order("tiny"), staged, **given)
    assert code == 0, told(request)
    assert seen.read_text().split() == [secret, f"w{secret}"]
    assert quick("report", "1").returncode == 0
    files = [path for path in staged.runs.rglob("*") if path.is_file()]
    assert {"recipe.yaml", "command.sh", "decisions.json", "report.html", "request.json"} <= {f.name for f in files}
    assert [str(path) for path in files if secret.encode() in path.read_bytes()] == []


def test_problems_and_bugs_are_told_with_their_exit_codes(staged: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    code, request = carried_out(Order("tiny", ("lora_rnak=8",)), staged)
    assert code == 2 and "did you mean 'lora_rank'" in str(told(request)[0]["problems"])

    def broken(_question: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(preflight, "examine", broken)
    code, request = carried_out(Order("tiny"), staged)
    assert code == 70 and told(request)[-1]["exit"] == 70 and "planted" in request.log.read_text()
    assert runs.listed(staged) == []


def test_a_program_that_ends_well_without_answers_has_failed_the_evaluation(staged: Workspace, quick: Command) -> None:
    code, request = carried_out(Order("tiny"), staged)
    assert code == 0, told(request)
    done = quick("evaluate", "1", "--data", "little")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "base could not be evaluated: LLaMA-Factory ended without an error and without an answer; see" in done.stderr
    assert Path(done.stderr.rpartition("see ")[2].strip()).is_file()


def test_an_evaluation_gives_its_figures_without_the_rows_that_were_trained_on_as_well(
    staged: Workspace, quick: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    code, request = carried_out(Order("tiny"), staged)
    assert code == 0, told(request)
    trained = json.loads((staged.data / "little.json").read_text())
    new = [{"instruction": f"name the town {n}", "input": "", "output": f"town number {n}"} for n in range(20)]
    mixed = [row for pair in zip(trained[:20], new, strict=True) for row in pair]
    (staged.data / "mixed.json").write_text(json.dumps([mixed[0], {**mixed[1], "instruction": 7}, *mixed[1:]]))
    registry = json.loads((staged.data / "dataset_info.json").read_text())
    registry["mixed"] = {**registry["little"], "file_name": "mixed.json"}
    (staged.data / "dataset_info.json").write_text(json.dumps(registry))
    (run,) = runs.listed(staged)
    asked = evaluate.Evaluation(run, "mixed", dict(os.environ), with_losses=False)
    sides = evaluate.sides_of(asked)
    given = material(asked, sides[1])
    for side in filter(None, sides):
        right = side.name == "tuned"
        rows = [
            {
                "prompt": row["instruction"],
                "predict": row["output"] if right and row in trained else "?",
                "label": row["output"],
            }
            for row in mixed
        ]
        (asked.folder / f"{side.name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        runs.write_json(asked.folder / f"{side.name}.settings.json", settings_of(side, given))
    scores = evaluate.evaluate(asked)
    assert [leak["row"] for leak in scores["leaks"]["found"]] == [1, *range(4, 42, 2)]
    every, without = (
        {each["name"]: each for each in scores[key]}["exact_match"] for key in ("metrics", "without_leaks")
    )
    assert (every["rows"], every["tuned"], every["verdict"]) == (40, 0.5, "better")
    assert (without["rows"], without["tuned"], without["low"], without["high"]) == (20, 0.0, 0.0, 0.0)
    said = quick("report", "1")
    told_there = "20 of the 40 held-out rows of &#39;mixed&#39; are training rows (row 1, 4, 6, 8"
    assert said.returncode == 0 and told_there in run.report.read_text(encoding="utf-8")
    tell_evaluation(run)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("note: 20 of the 40 held-out rows") and "too good" in line for line in lines)
    assert [line.startswith("without them") for line in lines].count(True) == 1


def test_a_folder_without_an_order_is_refused(staged: Workspace, tmp_path: Path) -> None:
    assert session.carry_out(tmp_path, staged, {}) == 2


def test_out_of_memory_is_planned_anew_with_the_same_global_batch(staged: Workspace) -> None:
    run, _ = recovered(staged, "oom")
    text = run.arguments.read_text()
    assert "per_device_train_batch_size: 1\n" in text and "gradient_accumulation_steps: 4\n" in text
    assert runs.attempts(run)[1].changed == {"micro_batch": 1}


def test_nan_in_bf16_is_planned_anew_in_fp32(staged: Workspace) -> None:
    run, decided = recovered(staged, "nan", "kit.precision=bf16", FAKE_MIXED="bf16")
    assert decided.precision == "fp32" and decided.environment["IIS_PRECISION"] == "fp32"
    assert "bf16: false" in run.arguments.read_text() and runs.attempts(run)[1].changed == {"precision": "fp32"}


def test_a_precision_stated_in_llamafactorys_words_gives_way_too(staged: Workspace) -> None:
    assert recovered(staged, "nan", "bf16=true", FAKE_MIXED="bf16")[1].precision == "fp32"


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a recipe is examined, the machine looked for, and the rows of each file read."""
    counted: Counter[str] = Counter()
    examine, detect, check_rows = preflight.examine, machine.detect, dataset.check_rows

    def examining(question: preflight.Question) -> preflight.Examined:
        counted["examined"] += 1
        return examine(question)

    def detecting(**words: Any) -> machine.Machine:
        counted["detected"] += 1
        return detect(**words)

    def reading(source: dataset.Source, *words: Any) -> dataset.Reading:
        counted.update(str(file) for file in source.files)
        return check_rows(source, *words)

    monkeypatch.setattr(preflight, "examine", examining)
    monkeypatch.setattr(machine, "detect", detecting)
    monkeypatch.setattr(readings, "check_rows", reading)
    return counted


def test_one_train_with_an_unmade_base_looks_three_times_and_reads_the_rows_twice_at_most_in_each_process(
    staged: Workspace, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = RECIPE.replace("kit:\n", "kit:\n  base: tiny\n").replace("model_name_or_path: models/tiny\n", "")
    (staged.recipes / "after.yaml").write_text(text)
    start, started = process.start, []

    def foreground_only(launch: process.Launch) -> process.Child:
        started.append(start(process.Launch(["sleep", "0.5"], launch.environment, launch.folder, launch.log)))
        return started[-1]

    with monkeypatch.context() as patched:
        patched.setattr(process, "start", foreground_only)
        patched.setattr(sys, "argv", ["iis-finetune", "train", "after", "--background"])
        assert cli.run() == 1, "the process in the background ended without a word"
        started[0].wait()
    data = str(staged.data / "little.json")
    assert 1 <= counts["examined"] <= 3 and 1 <= counts[data] <= 2 and counts["detected"] == 1
    counts.clear()
    request = Request(next((staged.runs / ".requests").iterdir()))
    assert json.loads(request.asked.read_text())["recipe"].endswith("after.yaml")
    assert session.carry_out(request.folder, staged, dict(os.environ)) == 0, told(request)
    assert 1 <= counts["examined"] <= 3 and counts["detected"] == 1
    assert counts[data] == 0, "the foreground's reading is trusted while the file stays as it is"
    assert [run.name for run in runs.listed(staged)] == ["0001-tiny", "0002-after"]

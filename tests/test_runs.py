from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from msgspec.structs import replace

from iis_finetune import observe, process, runs
from iis_finetune.errors import ProblemsFound
from iis_finetune.process import Identity
from iis_finetune.runs import Attempt, Decided, Nodes, Run, Workspace

GONE = Identity(2**22 + 1, 1, "another boot")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, tmp_path / "models", tmp_path / "runs")


def result(run: Run, step: int, planned: int) -> None:
    run.output.mkdir()
    (run.output / "adapter_model.safetensors").write_bytes(b"x")
    run.trainer_state.write_text(json.dumps({"global_step": step, "max_steps": planned}))


def test_runs_are_numbered_and_found_by_number_name_prefix_and_last(workspace: Workspace) -> None:
    made = [runs.create(workspace, name) for name in ("alpha", "beta")]
    smoke = runs.create(workspace, "beta", smoke=True)
    assert [run.name for run in runs.listed(workspace)] == ["0001-alpha", "0002-beta", "0003-beta-smoke"]
    assert runs.find(workspace, "1") == made[0] and runs.find(workspace, "0002") == made[1]
    assert runs.find(workspace, "0003-be") == smoke and smoke.smoke and smoke.recipe_name == "beta"
    assert runs.find(workspace, "last") == made[1]
    assert runs.find(workspace, "beta") == made[1] and runs.find(workspace, "beta-smoke") == smoke
    for text, words in {"000": "fits 3 runs", "7": "no run '7'", "gamma": "no run"}.items():
        with pytest.raises(ProblemsFound, match=words) as found:
            runs.find(workspace, text)
        assert found.value.exit_code == 2


def test_the_number_after_a_deleted_run_is_not_used_again_while_newer_ones_exist(workspace: Workspace) -> None:
    first = runs.create(workspace, "a")
    runs.create(workspace, "a")
    runs.delete(first)
    third = runs.create(workspace, "a")
    assert third.number == 3
    assert [run.number for run in runs.listed(workspace)] == [2, 3]
    runs.delete(third)
    runs.delete(runs.find(workspace, "2"))
    assert runs.create(workspace, "a").number == 4, "a number of a run that was the newest one as well"


def test_last_names_the_smoke_run_where_there_is_no_other(workspace: Workspace) -> None:
    runs.create(workspace, "a", smoke=True)
    with pytest.raises(ProblemsFound, match="no run yet but the smoke run 0001-a-smoke") as found:
        runs.find(workspace, "last")
    assert "0001" in found.value.problems[0].fix


def test_a_run_that_is_not_finished_is_answered_with_what_can_be_done_now(workspace: Workspace) -> None:
    run = runs.create(workspace, "a")
    (run.output / "checkpoint-4").mkdir(parents=True)
    with pytest.raises(ProblemsFound, match="0001-a is interrupted, not finished") as found:
        runs.finished_run(workspace, "last")
    assert "iis-finetune resume 0001" in found.value.problems[0].fix
    with runs.claimed(run, "trained"), pytest.raises(ProblemsFound) as found:
        runs.finished_run(workspace, "last")
    assert "iis-finetune watch 0001" in found.value.problems[0].fix
    assert "--checkpoint 4" in found.value.problems[0].fix


def test_an_evaluation_tells_how_far_it_is_and_a_supervisors_own_is_still_its_run(workspace: Workspace) -> None:
    run = runs.create(workspace, "a")
    assert observe.evaluating(run) is None
    me = process.identity(os.getpid())
    assert me is not None
    with runs.claimed(run, "evaluated"):
        assert observe.evaluating(run) == "evaluating" and runs.state(run) == "interrupted"
        runs.record(run, Attempt(1, 0.0, me))
        assert runs.state(run) == "starting", "the supervisor evaluates what it has trained"
        with pytest.raises(ProblemsFound, match=f"0001-a is being evaluated by process {os.getpid()}"):
            runs.finished_run(workspace, "last")
        folder = run.evaluation / "news"
        (folder / "parts" / "base").mkdir(parents=True)
        (folder / "rows").mkdir()
        parts: dict[str, dict[str, str]] = {"part-00000": {}, "part-00200": {}, "slice-00000": {}}
        (folder / "rows" / "dataset_info.json").write_text(json.dumps(parts))
        (folder / "parts" / "base" / "part-00000.jsonl").touch()
        (folder / "base.log").write_text("\r 40%|#  | 20/50 [00:01<00:08]\rLoading weights: 100%|##| 9/9 [00:00<00:00]")
        os.utime(folder / "base.log", (time.time() + 1, time.time() + 1))
        assert observe.evaluating(run) == "evaluating on news: base 70%"
    assert observe.evaluating(run) is None


def test_exit_code_zero_before_the_last_step_is_not_finished(workspace: Workspace) -> None:
    run = runs.create(workspace, "a")
    ended = Attempt(1, 0.0, GONE, ended=1.0, ending="finished", returncode=0)
    runs.record(run, ended)
    result(run, 5, 10)
    assert runs.state(run) == "failed"
    result_state = {"global_step": 10, "max_steps": 10}
    run.trainer_state.write_text(json.dumps(result_state))
    assert runs.state(run) == "finished"
    runs.record(run, replace(ended, returncode=1, ending="failed"))
    assert runs.state(run) == "failed"


def test_the_weights_may_be_on_the_first_of_several_nodes(workspace: Workspace) -> None:
    run = runs.create(workspace, "a")
    runs.record(run, Attempt(1, 0.0, GONE, ended=1.0, ending="finished", returncode=0))
    result(run, 10, 10)
    (run.output / "adapter_model.safetensors").unlink()
    for rank, state in ((0, "failed"), (1, "finished")):
        runs.write_decided(run, Decided(nodes=Nodes(2, rank, "10.0.0.1", 29500)))
        assert runs.state(run) == state


def test_early_stopping_counts_as_the_end(workspace: Workspace) -> None:
    run = runs.create(workspace, "a")
    runs.record(run, Attempt(1, 0.0, GONE, ended=1.0, ending="finished", returncode=0))
    result(run, 5, 10)
    early = {"args": {"early_stopping_patience": 2}, "attributes": {"early_stopping_patience_counter": 2}}
    progress = {"global_step": 5, "max_steps": 10, "stateful_callbacks": {"EarlyStoppingCallback": early}}
    run.trainer_state.write_text(json.dumps(progress))
    assert runs.state(run) == "finished"


def test_the_state_follows_the_supervisor_not_a_word_in_a_file(workspace: Workspace) -> None:
    run = runs.create(workspace, "a")
    assert runs.state(run) == "interrupted"
    with another(run) as child:
        assert runs.state(run) == "starting"
        run.output.mkdir()
        run.trainer_log.write_text("{}\n")
        assert runs.state(run) == "running"
        child.kill()
        child.wait()
    assert runs.state(run) == "interrupted" and run.claim.read_text()
    told = json.loads(run.claim.read_text())
    told["process"]["pid"] = os.getpid()
    run.claim.write_text(json.dumps(told) + "\n")
    assert runs.state(run) == "interrupted", "another process with the same number is not the supervisor"


def test_only_one_process_has_a_run_and_the_other_is_told_which(workspace: Workspace) -> None:
    run = runs.create(workspace, "a")
    with another(run) as child:
        with pytest.raises(ProblemsFound, match=f"0001-a is being trained by process {child.pid}") as found:
            claim(run)
        assert found.value.exit_code == 2
        child.kill()
        child.wait()
    claim(run)
    assert runs.holder(run) is None, "a claim that is given back"
    shutil.rmtree(run.folder)
    with pytest.raises(ProblemsFound, match="0001-a is gone"):
        claim(run)


def claim(run: Run) -> None:
    with runs.claimed(run, "evaluated"):
        pass


def test_a_copy_of_a_living_run_has_no_process(workspace: Workspace) -> None:
    run, copy = runs.create(workspace, "a"), Run(workspace.runs / "0007-copy")
    me = process.identity(os.getpid())
    assert me is not None
    with runs.claimed(run, "trained"):
        runs.record(run, Attempt(1, 0.0, me, process=me))
        shutil.copytree(run.folder, copy.folder)
        assert runs.state(run) == "starting" and runs.living(run)
        assert runs.state(copy) == "interrupted" and not runs.living(copy) and runs.holder(copy) is None
        claim(copy)
        run.folder.rename(run.folder.with_name("0001-b"))
        assert runs.state(Run(run.folder.with_name("0001-b"))) == "starting", "the same folder under another name"


@contextlib.contextmanager
def another(run: Run) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has a run."""
    words = (
        "import sys, time; from pathlib import Path; from iis_finetune import runs\n"
        "with runs.claimed(runs.Run(Path(sys.argv[1])), 'trained'): print('has it', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", words, str(run.folder)], stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline() == b"has it\n"
        yield child


def test_an_attempt_is_one_line_that_is_completed_not_repeated(workspace: Workspace) -> None:
    run = runs.create(workspace, "a")
    first = Attempt(1, 0.0, GONE, process=GONE, workers=(GONE,))
    runs.record(run, first)
    runs.record(run, replace(first, ending="failed", why="out of memory"))
    runs.record(run, Attempt(2, 1.0, GONE))
    read = runs.attempts(run)
    assert [attempt.attempt for attempt in read] == [1, 2]
    assert read[0].why == "out of memory" and read[0].workers == (GONE,)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    runs.write(target, "one")
    with pytest.raises(UnicodeEncodeError):
        runs.write(target, "two\ud800")
    assert target.read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_deleting_asks_on_a_terminal_and_wants_a_word_elsewhere(workspace: Workspace) -> None:
    run = runs.create(workspace, "a")
    words = [sys.executable, "-m", "iis_finetune", "runs", "--delete", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    piped = subprocess.run(words, cwd=workspace.root, env=environment, capture_output=True, text=True, check=False)
    assert piped.returncode == 2 and "fix:   iis-finetune runs --delete 0001-a --yes" in piped.stderr
    for answer, kept in (("n", True), ("y", False)):
        ours, theirs = os.openpty()
        with subprocess.Popen(words, cwd=workspace.root, env=environment, stdin=theirs, stdout=theirs) as asked:
            os.write(ours, f"{answer}\n".encode())
        assert asked.returncode == 0 and run.folder.exists() is kept
        os.close(ours)
        os.close(theirs)

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_training import checkpoint, safetensors
from msgspec.structs import replace

from iis_finetune import process, recover, runs
from iis_finetune.decision import Decision
from iis_finetune.errors import Problem, ProblemsFound, RunFailed
from iis_finetune.runs import Decided, Run, write_decided
from iis_finetune.session.supervision import failure
from iis_finetune.supervise import StallLimits, Stop, Task, attempt, disk, supervise

FAKE = Path(__file__).parent / "fake_training.py"
DECIDED = Decided(
    arguments={"stage": "sft", "per_device_train_batch_size": 4},
    decisions=(Decision("attention", "sdpa", "machine table", "a fused kernel"),),
    precision="fp32",
)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recover, "PAUSES_SECONDS", (0.05, 0.05, 0.05))
    monkeypatch.setattr(attempt, "DUMP_SECONDS", 0.1)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "0001-a")
    run.folder.mkdir()
    run.arguments.write_text("stage: sft\n")
    write_decided(run, DECIDED)
    return run


def task(run: Run, *told: Mapping[str, Any], **environment: str) -> Task:
    """A task whose `llamafactory-cli` is the fake one, found on PATH as the real one is."""
    programs = run.folder.parent / "bin"
    programs.mkdir(exist_ok=True)
    program = programs / "llamafactory-cli"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{FAKE}" "$@"\n')
    program.chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    return Task(run, {"PATH": path, "FAKE": json.dumps(told), **environment}, poll_seconds=0.02)


def at(step: int, what: str) -> dict[str, Any]:
    return {"at": step, "do": what}


def seen(run: Run) -> list[str]:
    return [event["event"] for event in runs.events(run)]


def starts(run: Run) -> list[str | None]:
    """From which checkpoint each attempt started."""
    return [attempt.from_checkpoint for attempt in runs.attempts(run)]


def test_an_undisturbed_run_is_one_attempt(run: Run) -> None:
    with runs.claimed(run, "trained"):
        assert supervise(task(run), Stop()) == "finished"
        assert runs.state(run) == "running", "its supervisor, this process, lives"
    assert seen(run) == ["started", "finished"] and starts(run) == [None]
    assert (run.folder / "starts").read_text() == "arguments.yaml\n"


def test_a_killed_training_goes_on_from_its_last_checkpoint(run: Run) -> None:
    assert supervise(task(run, at(5, "kill"), at(9, "kill")), Stop()) == "finished"
    assert starts(run) == [None, "checkpoint-4", "checkpoint-8"]
    assert seen(run) == ["started", "recovering", "started", "recovering", "started", "finished"]
    recovery = runs.events(run)[1]
    assert recovery["cause"] == "killed" and recovery["step"] == 5 and recovery["from_checkpoint"] == "checkpoint-4"
    assert [attempt.ending for attempt in runs.attempts(run)] == ["interrupted", "interrupted", "finished"]


def test_three_kills_without_a_new_checkpoint_are_the_end(run: Run) -> None:
    assert supervise(task(run, *[at(1, "kill")] * 9), Stop()) == "failed"
    assert starts(run) == [None, None, None]
    assert "3 attempts in a row without a new good checkpoint" in str(runs.attempts(run)[-1].why)
    assert runs.state_after_end(run) == "failed"


def test_the_same_crash_at_the_same_step_is_not_tried_a_third_time(run: Run) -> None:
    assert supervise(task(run, *[at(5, "crash")] * 9), Stop()) == "failed"
    assert len(starts(run)) == 2 and "ValueError: a broken row; twice at the same step" in str(
        runs.attempts(run)[-1].why
    )


def test_what_is_refused_before_the_first_step_is_not_tried_again(run: Run) -> None:
    assert supervise(task(run, *[at(0, "crash")] * 9), Stop()) == "failed"
    assert len(starts(run)) == 1 and "before the first step" in str(runs.attempts(run)[0].why)


def test_exit_code_zero_before_the_last_step_is_a_failure(run: Run) -> None:
    assert supervise(task(run, at(5, "exit")), Stop()) == "finished"
    assert "without reaching the last step" in runs.events(run)[1]["why"]


def test_a_half_written_checkpoint_is_passed_over_and_moved_out_of_the_way(run: Run) -> None:
    assert supervise(task(run, at(6, "half")), Stop()) == "finished"
    assert starts(run) == [None, "checkpoint-4"]
    rejected = next(event for event in runs.events(run) if event["event"] == "checkpoint rejected")
    assert rejected["checkpoint"] == "checkpoint-6" and "optimizer.pt cannot be read" in rejected["why"]
    assert (run.rejected / "checkpoint-6").is_dir()


def send_at(run: Run, step: int, *numbers: signal.Signals) -> threading.Thread:
    """Signals to the training once it is at a step, half a second between them."""

    def send() -> None:
        while not run.trainer_log.is_file() or len(list(runs.read_lines(run.trainer_log))) < step:
            time.sleep(0.02)
        for number in numbers:
            process.send(runs.living(run), number)
            time.sleep(0.5)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_a_training_that_is_frozen_counts_as_stalled_and_goes_on_from_its_checkpoint(run: Run) -> None:
    frozen = send_at(run, 5, signal.SIGSTOP)
    given = replace(task(run, FAKE_STEP_SECONDS="0.1"), stall=StallLimits(5, 1.0, 5))
    assert supervise(given, Stop()) == "finished"
    frozen.join()
    assert len(starts(run)) == 2 and "stall" in seen(run)


def test_a_training_that_is_frozen_for_a_while_goes_on_by_itself(run: Run) -> None:
    thawed = send_at(run, 3, signal.SIGSTOP, signal.SIGCONT)
    given = replace(task(run, FAKE_STEP_SECONDS="0.1"), stall=StallLimits(5, 3.0, 5))
    assert supervise(given, Stop()) == "finished" and starts(run) == [None]
    thawed.join()


def test_a_clock_that_is_set_back_changes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real, hours = time.time, iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * next(hours))
    assert supervise(task(run, at(5, "kill")), Stop()) == "finished"
    assert starts(run) == [None, "checkpoint-4"] and runs.state_after_end(run) == "finished"


def test_data_that_was_edited_meanwhile_is_not_gone_on_with(run: Run) -> None:
    given = replace(task(run, at(5, "kill")), edited=lambda: ["little.json"])
    assert supervise(given, Stop()) == "failed" and len(starts(run)) == 1
    assert "little.json changed since the run began: put it back, or resume with" in str(runs.attempts(run)[-1].why)


def test_a_run_whose_folder_is_removed_ends_in_one_sentence(run: Run) -> None:
    left: list[process.Identity] = []

    def remove() -> None:
        left.extend(runs.living(run))
        shutil.rmtree(run.folder)

    threading.Timer(1.2, remove).start()
    with pytest.raises(RunFailed, match="the folder of 0001-a was removed while it ran"):
        supervise(task(run, FAKE_STEP_SECONDS="0.4"), Stop())
    assert left and process.wait_gone(left, 5) == []


def test_a_checkpoint_that_fails_to_load_is_set_aside_for_the_next_older_one(run: Run) -> None:
    assert supervise(task(run, at(7, "kill"), at(0, "unloadable"), at(0, "unloadable")), Stop()) == "finished"
    assert starts(run) == [None, "checkpoint-6", "checkpoint-4", "checkpoint-2"]
    rejected = [event for event in runs.events(run) if event["event"] == "checkpoint rejected"]
    assert [event["checkpoint"] for event in rejected] == ["checkpoint-6", "checkpoint-4"]
    assert "cannot be loaded: _pickle.UnpicklingError: invalid load key" in rejected[0]["why"]
    assert sorted(path.name for path in run.rejected.iterdir()) == ["checkpoint-4", "checkpoint-6"]


def test_checkpoints_that_all_fail_to_load_are_kept_and_the_training_does_not_begin_anew(run: Run) -> None:
    assert supervise(task(run, at(5, "kill"), *[at(0, "unloadable")] * 9), Stop()) == "failed"
    assert starts(run) == [None, "checkpoint-4", "checkpoint-2"]
    assert [path.name for path in run.checkpoints()] == ["checkpoint-2", "checkpoint-4"]
    assert "none of the checkpoints can be loaded" in str(runs.attempts(run)[-1].why)


def flip(path: Path) -> None:
    """Change one bit: the value stays finite."""
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("ending", ["stopped", "killed"])
def test_a_flipped_byte_in_a_checkpoint_is_found_before_a_resume(run: Run, ending: str) -> None:
    if ending == "stopped":
        stop = Stop()
        threading.Timer(1.2, lambda: setattr(stop, "asked", "SIGTERM")).start()
        assert supervise(task(run, FAKE_STEP_SECONDS="0.3"), stop) == "stopped"
    else:
        assert supervise(replace(task(run, at(5, "kill")), may_recover=False), Stop()) == "failed"
    *_, older, newest = run.checkpoints()
    flip(newest / "adapter_model.safetensors")
    assert runs.faults(newest) == [], "it looks good"
    assert supervise(task(run), Stop()) == "finished"
    assert starts(run) == [None, older.name]
    assert "adapter_model.safetensors is not what was saved" in runs.events(run)[-3]["why"]


def test_a_checkpoint_is_sealed_beside_the_training_once_nothing_in_it_changes(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "SEAL_SECONDS", 0.05)
    assert supervise(task(run, FAKE_STEP_SECONDS="0.2"), Stop()) == "finished"
    assert {path.stem for path in run.checksums.iterdir()} >= {"checkpoint-4", "checkpoint-6"}
    older, newest = run.checkpoints()[2:4]
    checkpoint(newest, 8, 3.0)
    assert runs.sealed(run, newest) is None, "saved anew"
    shutil.rmtree(older)
    runs.seal(run, newest)
    assert runs.sealed(run, newest) and not (run.checksums / f"{older.name}.json").exists()


def test_a_broken_first_checkpoint_means_the_beginning_not_whatever_lies_there(run: Run) -> None:
    assert supervise(task(run, at(2, "half")), Stop()) == "finished"
    assert starts(run) == [None, None]
    assert "resume_from_checkpoint: false" in run.resumed_arguments.read_text()


@pytest.mark.parametrize("mixed", ["bf16", "fp16"])
def test_nan_is_seen_at_its_step_and_the_next_attempt_is_safer(run: Run, mixed: str) -> None:
    given = task(run, at(6, "nan"), FAKE_MIXED=mixed)
    made: list[Mapping[str, Any]] = []

    def replan(change: Mapping[str, Any]) -> Mapping[str, str]:
        made.append(change)
        return {**given.environment, "FAKE_MIXED": "no"}

    began = time.monotonic()
    assert supervise(replace(given, replan=replan), Stop()) == "finished"
    assert time.monotonic() - began < 20, "the poisoned attempt was not waited for"
    assert made == [{"precision": "fp32"}]
    assert starts(run) == [None, "checkpoint-4"], "checkpoint-6 holds the NaN"
    assert runs.attempts(run)[1].changed == {"precision": "fp32"}
    trouble = next(event for event in runs.events(run) if event["event"] == "not finite")
    assert "nan" in trouble["why"]


def test_nan_in_fp32_is_tried_once_more_then_reported(run: Run) -> None:
    assert supervise(task(run, *[at(6, "nan")] * 9), Stop()) == "failed"
    assert len(starts(run)) == 2 and "lower learning_rate" in str(runs.attempts(run)[-1].why)


def test_a_loss_of_exactly_zero_is_trouble(run: Run) -> None:
    assert supervise(task(run, at(5, "zero")), Stop()) == "finished"
    assert "exactly 0 for 5 logs" in runs.events(run)[1]["why"]


def test_weights_that_end_not_finite_are_no_result(run: Run) -> None:
    given = task(run)
    run.output.mkdir()
    checkpoint(run.output / "checkpoint-10", 10)
    broken = run.folder.parent / "bin" / "llamafactory-cli"
    text = (
        f"import sys; sys.path.insert(0, {str(FAKE.parent)!r}); import fake_training as f; f.main(); "
        "f.safetensors(f.Path('output/adapter_model.safetensors'), [float('inf')])"
    )
    broken.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -c "{text}" "$@"\n')
    assert supervise(given, Stop()) == "failed"
    assert "not finite" in str(runs.attempts(run)[-1].why)


def test_out_of_memory_twice_halves_the_micro_batch_twice(run: Run) -> None:
    given = task(run, at(5, "oom"), at(7, "oom"))
    made: list[Mapping[str, Any]] = []

    def replan(change: Mapping[str, Any]) -> Mapping[str, str]:
        made.append(change)
        arguments = {**DECIDED.arguments, "per_device_train_batch_size": change["micro_batch"]}
        write_decided(run, replace(DECIDED, arguments=arguments))
        return given.environment

    assert supervise(replace(given, replan=replan), Stop()) == "finished"
    assert made == [{"micro_batch": 2}, {"micro_batch": 1}]
    assert starts(run) == [None, "checkpoint-4", "checkpoint-6"]
    assert "CUDA out of memory" in runs.events(run)[1]["why"]


def test_out_of_memory_at_micro_batch_one_says_what_else_would_help(run: Run) -> None:
    write_decided(run, replace(DECIDED, arguments={"per_device_train_batch_size": 1}))
    assert supervise(task(run, at(5, "oom")), Stop()) == "failed"
    assert "cutoff_len" in str(runs.attempts(run)[-1].why)


def test_out_of_memory_before_the_first_step_is_not_the_batchs_fault(run: Run) -> None:
    assert supervise(task(run, at(0, "oom")), Stop()) == "failed"
    assert "does not fit" in str(runs.attempts(run)[-1].why) and len(starts(run)) == 1


def test_a_change_that_cannot_be_planned_ends_the_run_with_its_reason(run: Run) -> None:
    def refuse(_change: Mapping[str, Any]) -> Mapping[str, str]:
        raise ProblemsFound([Problem("40 GiB are needed", "a smaller model", kind="machine")])

    given = replace(task(run, at(5, "nan"), FAKE_MIXED="bf16"), replan=refuse)
    assert supervise(given, Stop()) == "failed"
    assert "40 GiB are needed" in str(runs.attempts(run)[-1].why)


def test_a_stall_is_dumped_ended_and_resumed_once(run: Run) -> None:
    given = replace(task(run, at(5, "stall"), at(5, "stall")), stall=StallLimits(5, 0.8, 3))
    assert supervise(given, Stop()) == "failed"
    assert starts(run) == [None, "checkpoint-4"]
    assert seen(run).count("stacks dumped") == 2 and "IOMMU" in str(runs.attempts(run)[-1].why)
    assert "IOMMU" in failure(run).what + failure(run).fix
    (run.folder / "stacks-0.log").write_text(
        '  File "/x/torch/utils/file_baton.py", line 46 in wait\n', encoding="utf-8"
    )
    assert "holds the lock" in failure(run).what, "what the processes were doing tells more"


def test_kit_on_failure_stop_means_one_attempt(run: Run) -> None:
    assert supervise(replace(task(run, at(5, "kill")), may_recover=False), Stop()) == "failed"
    assert len(starts(run)) == 1 and "kit.on_failure" in str(runs.attempts(run)[0].why)


def test_a_stop_leaves_a_checkpoint_of_the_step_under_way_and_the_next_start_goes_on_there(run: Run) -> None:
    stop = Stop()
    given = task(run, FAKE_STEP_SECONDS="0.3")
    threading.Timer(1.2, lambda: setattr(stop, "asked", "SIGTERM")).start()
    assert supervise(given, stop) == "stopped"
    at_step = json.loads(run.stop_at_step.read_text())
    assert run.checkpoints()[-1].name == f"checkpoint-{at_step}"
    assert runs.attempts(run)[-1].returncode == 0 and runs.state_after_end(run) == "stopped"
    assert supervise(task(run), Stop()) == "finished"
    assert starts(run) == [None, f"checkpoint-{at_step}"]
    assert not run.stop_requested.exists()


def test_a_stop_at_once_does_not_wait(run: Run) -> None:
    stop = Stop()

    def quit_now() -> None:
        stop.asked, stop.now = "SIGQUIT", True

    threading.Timer(1.0, quit_now).start()
    began = time.monotonic()
    assert supervise(task(run, at(5, "stall")), stop) == "stopped"
    assert time.monotonic() - began < 10


def test_sigterm_to_the_training_alone_is_a_stop_not_a_crash(run: Run) -> None:
    assert supervise(task(run, at(5, "term")), Stop()) == "stopped"
    assert runs.attempts(run)[-1].why == "SIGTERM from outside"


def test_a_full_disk_gives_up_and_says_so(run: Run) -> None:
    assert supervise(task(run, *[at(5, "full")] * 9), Stop()) == "failed"
    assert "free some space" in str(runs.attempts(run)[-1].why) and len(starts(run)) == 3


def test_nothing_is_left_running_when_an_attempt_is_over(run: Run) -> None:
    given = replace(task(run, at(5, "stall"), at(6, "stall")), stall=StallLimits(5, 0.8, 3))
    supervise(given, Stop())
    for each in runs.attempts(run):
        assert each.process is not None and process.tree(each.process) == []


@pytest.mark.parametrize("arguments", [{"stage": "rm"}, {"stage": "sft", "pissa_init": True, "pissa_convert": True}])
def test_a_run_that_cannot_be_resumed_begins_anew(run: Run, arguments: dict[str, Any]) -> None:
    write_decided(run, replace(DECIDED, arguments=arguments))
    assert supervise(task(run, at(5, "kill")), Stop()) == "finished"
    assert starts(run) == [None, None] and "not resumable" in seen(run)


def test_every_recovery_and_the_end_are_told(run: Run) -> None:
    told: list[str] = []
    given = replace(task(run, at(5, "kill")), tell=lambda event, _why: told.append(event))
    supervise(given, Stop())
    assert told == ["recovering", "finished"]


def test_signals_ask_and_only_a_second_ctrl_c_hurries() -> None:
    stop, before = Stop(), {number: signal.getsignal(number) for number in (2, 15, 3, 1)}
    try:
        stop.install()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked == "SIGTERM" and not stop.now
        for hurried in (False, True):
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.now == hurried
        os.kill(os.getpid(), signal.SIGHUP)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_final_weights_are_read_even_when_everything_else_is_well(run: Run) -> None:
    run.output.mkdir()
    safetensors(run.output / "adapter_model.safetensors", [1.0, float("nan")])
    assert runs.weight_faults(run.output) == ["adapter_model.safetensors has a value that is not finite in w"]


ON_A_SMALL_DISK = """
import json, sys, threading, time
from pathlib import Path
sys.path[:0] = {paths!r}
from iis_finetune import supervise
from iis_finetune.runs import Run, write_decided
from iis_finetune.supervise import Stop, disk
import test_supervise as t
disk.LOOK_SECONDS, supervise.ROOM_LOOK_SECONDS = {look}, 0.1
run = Run(Path({folder!r}) / "0001-a")
run.folder.mkdir()
run.arguments.write_text("stage: sft\\n")
write_decided(run, t.DECIDED)
def fill():
    time.sleep(1)
    while True:
        try:
            (run.folder.parent / "filler").write_bytes(bytes(shutil.disk_usage(run.folder).free))
            break
        except OSError:
            pass
    threading.Timer(2, (run.folder.parent / "filler").unlink).start()
if {filled}:
    import shutil
    threading.Thread(target=fill).start()
print(supervise.supervise(t.task(run, FAKE_BYTES="{size}", FAKE_STEP_SECONDS="0.2"), Stop()))
print(run.events.read_text())
"""


def on_a_small_disk(tmp_path: Path, **words: object) -> tuple[str, list[dict[str, Any]]]:
    """The ending and the events of a run on a file system of 44 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    paths = [str(FAKE.parent.parent), str(FAKE.parent)]
    script = tmp_path / "script.py"
    script.write_text(ON_A_SMALL_DISK.format(paths=paths, folder=str(folder), **words))
    mount = f"mount -t tmpfs -o size=44m none '{folder}' && exec '{sys.executable}' '{script}'"
    done = process.capture(["unshare", "-rm", "sh", "-c", mount], 60, dict(os.environ))
    if done is None or "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this computer lets nobody make a file system of their own")
    ending, *lines = done.stdout.splitlines()
    return ending, [json.loads(line) for line in lines if line]


def test_a_disk_that_fills_up_is_warned_of_then_the_run_stops_with_a_checkpoint(tmp_path: Path) -> None:
    ending, events = on_a_small_disk(tmp_path, look=0, filled=False, size=2_000_000)
    assert ending == "stopped"
    assert [each["event"] for each in events] == ["started", "disk low", "stop requested", "stopped"]
    assert "nearly full" in events[-1]["why"] and events[-1]["checkpoint"].startswith("checkpoint-")


def test_a_disk_that_somebody_else_fills_is_waited_for(tmp_path: Path) -> None:
    ending, events = on_a_small_disk(tmp_path, look=1000, filled=True, size=200_000)
    assert ending == "finished"
    assert next(each for each in events if each["event"] == "recovering")["cause"] == "disk full"

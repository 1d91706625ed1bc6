from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from iis_finetune import observe
from iis_finetune.runs import Run

LOGGED = {"current_steps": 3, "total_steps": 9, "loss": 6.2, "lr": 3e-5, "remaining_time": "1 day, 0:00:07"}
PRINTED = "{'loss': '6.205', 'grad_norm': '%s', 'learning_rate': '3.333e-05', 'epoch': '0.09375'}"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "0001-a")
    run.output.mkdir(parents=True)
    return run


def test_a_run_without_files_has_no_signs(run: Run) -> None:
    assert observe.signs(run) == observe.Signs()


def test_step_and_rates_come_from_the_trainers_log_and_grad_norm_from_the_printed_line(run: Run) -> None:
    closing = {key: LOGGED[key] for key in ("current_steps", "total_steps")}
    run.trainer_log.write_text(json.dumps(LOGGED) + "\n" + json.dumps(closing) + "\n" + '{"current_st')
    run.log.write_text("noise\r 10%|#  | 1/9 [00:01<00:08, 1.00it/s]\r" + PRINTED % "5.5" + "\n")
    signs = observe.signs(run)
    assert (signs.step, signs.total_steps, signs.grad_norm, signs.loss) == (3, 9, 5.5, 6.205)
    assert signs.eta_seconds == 86_407


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_a_grad_norm_that_is_no_number_is_seen_as_such(run: Run, text: str) -> None:
    run.trainer_log.write_text(json.dumps(LOGGED) + "\n")
    run.log.write_text(PRINTED % text + "\n")
    value = observe.signs(run).grad_norm
    assert value is not None and not math.isfinite(value)


def test_the_exception_is_found_behind_torchruns_own_report(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "[rank0]: Traceback (most recent call last):\n[rank0]: ValueError: Cannot find valid samples\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
        "subprocess.CalledProcessError: Command '['torchrun']' returned non-zero exit status 1.\n"
    )
    assert observe.raised(log) == "ValueError: Cannot find valid samples"


def test_last_lines_leave_out_progress_bars_and_long_logs_are_cut_at_a_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("x" * observe.TAIL_BYTES + "\nfirst\n 5%| | 1/9 [00:01<00:08,  1.00s/it]\nlast\n")
    assert observe.last_lines(log, 5) == ["first", "last"]


def test_following_a_file_gives_whole_lines_once(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("one\ntw")
    got = list(observe.follow(file))
    assert [line for line, _ in got] == ["one"]
    file.write_text("one\ntwo\n")
    assert [line for line, _ in observe.follow(file, got[-1][1])] == ["two"]

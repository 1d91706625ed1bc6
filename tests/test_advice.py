"""The judge of advice: it takes what can be typed, and refuses what cannot."""

from __future__ import annotations

import subprocess
import sys

import advice
import pytest

from iis_finetune.cli import show
from iis_finetune.errors import Problem

GOOD = {
    "next: iis-finetune train tiny lora_rank=8 --smoke": "a command",
    "next: iis-finetune evaluate 0142": "a command",
    "next: make train RECIPE=quickstart": "a command",
    "next: iis-finetune train RECIPE dataset=mine": "a command, a name to fill in",
    "fix: see `iis-finetune runs`": "a command",
    "fix: register your own with: iis-finetune data add FILE": "a command, a name to fill in",
    "fix: eval_strategy: steps": "a line of YAML",
    "fix: a smaller model or kit.precision: fp16 (21.5 GiB)": "a line of YAML",
    "fix: write 'lora_rank'": "a key",
    "fix: did you mean 'lora_rank'?": "words",
}
BAD = {
    "next: edit it, then iis-finetune check mine": "'edit' is no command",
    "next: iis-finetune train": "missing",
    "next: make tarin RECIPE=quickstart": "no target",
    "fix: iis-finetune lgos last": "did you mean 'logs'",
    "fix: see `iis-finetune runs --undo`": "no such option: --undo",
    "fix: lora_rank: banana": "takes a whole number",
    "fix: kit.precision=fp33": "expected auto",
    "fix: write 'lora_rnak'": "no argument 'lora_rnak'",
}


@pytest.mark.parametrize(("line", "what"), GOOD.items())
def test_what_can_be_typed_is_taken(line: str, what: str) -> None:
    (said,) = advice.said_in(line)
    assert advice.verdict(*said) == (what, "")


@pytest.mark.parametrize(("line", "reason"), BAD.items())
def test_what_cannot_be_typed_is_refused_with_the_reason(line: str, reason: str) -> None:
    (said,) = advice.said_in(line)
    assert reason.lower() in advice.verdict(*said)[1].lower()


def test_what_is_printed_here_and_in_a_child_and_what_a_problem_advises_is_heard_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ear = advice.collect(monkeypatch)
    show.line("done\nnext: iis-finetune runs")
    show.line("  0001-some goes on; next: iis-finetune statsu 0001")
    child = "print('next: iis-finetune models')"
    subprocess.run([sys.executable, "-c", child], capture_output=True, check=True)
    subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    Problem("too little of it", "lora_rank: 8")
    heard = {("next", f"iis-finetune {verb}") for verb in ("runs", "statsu 0001", "models")} | {("fix", "lora_rank: 8")}
    assert ear.heard == heard
    report = advice.counted(ear.heard)
    assert report[:2] == ["fix: a line of YAML: 1, of which work 1", "next: a command: 3, of which work 2"]
    assert len(report) == 3 and "statsu" in report[2]

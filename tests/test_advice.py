"""The judge of advice: it takes what can be typed, and refuses what cannot."""

from __future__ import annotations

import advice
import pytest

GOOD = {
    "next: iis-finetune train tiny lora_rank=8 --smoke": "a command",
    "next: iis-finetune evaluate 0142": "a command",
    "next: make train RECIPE=quickstart": "a command",
    "next: iis-finetune train RECIPE dataset=mine": "a command, a name to fill in",
    "fix: see `iis-finetune runs`": "a command",
    "fix: register your own with: iis-finetune data add FILE": "a command, a name to fill in",
    "fix: eval_strategy: steps": "a line of YAML",
    "fix: a smaller model or kit.precision: fp16 (21.5 GiB)": "a line of YAML",
    "fix: did you mean 'lora_rank'?": "words",
}
BAD = {
    "next: edit it, then iis-finetune check mine": "'edit' is no command",
    "next: iis-finetune train": "missing",
    "next: make tarin RECIPE=quickstart": "no target",
    "fix: iis-finetune lgos last": "did you mean 'logs'",
    "fix: see `iis-finetune runs --undo`": "no such option: --undo",
    "fix: lora_rank: banana": "takes a whole number",
    "fix: kit.precision=fp33": "input should be",
}


@pytest.mark.parametrize(("line", "what"), GOOD.items())
def test_what_can_be_typed_is_taken(line: str, what: str) -> None:
    (said,) = advice.said_in(line)
    assert advice.verdict(*said) == (what, "")


@pytest.mark.parametrize(("line", "reason"), BAD.items())
def test_what_cannot_be_typed_is_refused_with_the_reason(line: str, reason: str) -> None:
    (said,) = advice.said_in(line)
    assert reason.lower() in advice.verdict(*said)[1].lower()

"""Problems: their order, where they say they are, and the exit code they lead to."""

from __future__ import annotations

import pytest

from iis_finetune.errors import (
    COMMAND_LINE,
    FINE,
    INPUT,
    MACHINE,
    Place,
    Problem,
    ProblemsFound,
    did_you_mean,
    errors_of,
    exit_code,
    in_file_order,
)

INVALID = Problem("wrong", "mend it", Place("r.yaml", 7, "seed"))
TOO_LARGE = Problem("does not fit", "a smaller one", Place("r.yaml", 3), kind="machine")
NOT_HERE = Problem("no such file", "name another", Place(COMMAND_LINE), kind="missing", code=2)
SLOW = Problem("slow", "leave it out", Place("r.yaml", None, "optim"), severity="warning")


@pytest.mark.parametrize(
    ("problems", "code"),
    [
        ([], FINE),
        ([SLOW], FINE),
        ([INVALID], INPUT),
        ([TOO_LARGE, SLOW], MACHINE),
        ([NOT_HERE], INPUT),
        ([TOO_LARGE, INVALID], INPUT),
    ],
)
def test_the_exit_code_is_that_of_what_the_user_must_change_first(problems: list[Problem], code: int) -> None:
    assert exit_code(problems) == code


def test_problems_stand_in_file_order_each_once_and_the_command_line_last() -> None:
    assert in_file_order([NOT_HERE, SLOW, INVALID, TOO_LARGE, INVALID]) == [TOO_LARGE, INVALID, SLOW, NOT_HERE]
    assert errors_of([SLOW, INVALID]) == [INVALID]


def test_a_place_says_what_is_known_of_it() -> None:
    assert [str(each.where) for each in (INVALID, TOO_LARGE, NOT_HERE, SLOW)] == [
        *("r.yaml:7  seed", "r.yaml:3", "command line", "r.yaml  optim")
    ]
    assert Problem("odd", "none").as_json()["where"] is None
    assert INVALID.as_json() | {"what": "", "fix": ""} == {
        "severity": "error",
        "kind": "invalid",
        "what": "",
        "where": "r.yaml:7  seed",
        "file": "r.yaml",
        "line": 7,
        "key": "seed",
        "fix": "",
    }


def test_found_problems_end_a_verb_with_all_of_them_and_never_with_success() -> None:
    found = ProblemsFound([INVALID, TOO_LARGE])
    assert (found.problems, str(found), found.exit_code) == ([TOO_LARGE, INVALID], "does not fit; wrong", INPUT)
    assert ProblemsFound([SLOW]).exit_code == INPUT


@pytest.mark.parametrize(
    ("fix", "words"),
    [
        ("remove the line: 'lora_rank' is there as well", "leave out that word: 'lora_rank' is there as well"),
        ("write 'kit: {precision: fp32}'", "write 'kit.precision=fp32'"),
        ("write 'quantization_bit: 4'", "write 'quantization_bit=4'"),
        ("did you mean 'lora_rank'?", "did you mean 'lora_rank'?"),
    ],
)
def test_the_command_line_is_mended_in_words_not_in_lines(fix: str, words: str) -> None:
    here, there = Problem("wrong", fix, Place(COMMAND_LINE)), Problem("wrong", fix, Place("a.yaml", 3))
    assert [each.fix for each in in_file_order([here, there])] == [fix, words]


def test_a_full_width_mark_in_a_word_that_is_not_known_is_named_before_any_guess() -> None:
    assert did_you_mean("q_proj，v_proj", ["v_proj"], "") == "a full-width '，'; type ','"
    assert did_you_mean("v－proj", ["v-proj"], "") == "a full-width '－'; type '-'"
    assert did_you_mean("数据", ["v_proj"], "otherwise") == "otherwise"

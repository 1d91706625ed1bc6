"""Evaluation: what answers are worth, when a difference counts, what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import asdict

from iis_finetune.cli.summary import example_rows, shortened, tell_evaluation
from iis_finetune.evaluate.answers import slices_of
from iis_finetune.evaluate.compare import compare, compare_losses, forgotten, interval, macro_f1, verdict, weighted
from iis_finetune.evaluate.metrics import Declared, confusion, kind_of, parse, score
from iis_finetune.runs import Run

KEEP = '{"UUID": "A1", "title": "霜桥镇停电", "ratings": {"urgency": 3}}'
DROP = '{"UUID": "A2"}'


def test_rouge_and_bleu_are_those_of_the_libraries_called_directly() -> None:
    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    predicted, expected = "霜桥镇今天停电三小时", "霜桥镇今天停电两小时，居民抱怨"
    found = score([predicted], [expected], Declared())
    words = " ".join(jieba.cut(predicted)), " ".join(jieba.cut(expected))
    rouge = Rouge().get_scores(*words)[0]
    bleu = sentence_bleu([list(expected)], list(predicted), smoothing_function=SmoothingFunction().method3)
    assert found["rouge-1"] == [pytest.approx(rouge["rouge-1"]["f"] * 100, abs=1e-4)]
    assert found["rouge-l"] == [pytest.approx(rouge["rouge-l"]["f"] * 100, abs=1e-4)]
    assert found["bleu-4"] == [pytest.approx(bleu * 100, abs=1e-4)]
    assert 0 < found["rouge-2"][0] < 100  # type: ignore[operator]


@pytest.mark.parametrize("text", ["", "   ", "\n\n"])
def test_an_empty_answer_is_worth_nothing_and_breaks_nothing(text: str) -> None:
    found = score([text], ["一二三"], Declared())
    assert [found[name] for name in ("rouge-1", "rouge-l", "exact_match")] == [[0.0], [0.0], [0.0]]


@pytest.mark.parametrize(
    ("predicted", "valid", "keys", "decision"),
    [
        (KEEP, 1, 1, 1),
        (DROP, 1, 0, 0),
        ('{"UUID": "A1", "title": "x", "ratings": {}, "more": 1}', 1, 1, 0),
        (f"```json\n{KEEP}\n```", 0, 0, 0),
        (KEEP[:-1], 0, 0, 0),
        ('{"UUID": NaN, "title": "x", "ratings": 1}', 0, 0, 0),
        ("[1, 2]", 0, 0, 0),
    ],
)
def test_a_json_answer_is_judged_by_validity_keys_and_decision(
    predicted: str, valid: int, keys: int, decision: int
) -> None:
    found = score([predicted], [KEEP], Declared())
    assert (found["valid_json"], found["keys_present"], found["decision"]) == ([valid], [keys], [decision])


def test_fields_are_compared_where_the_expected_answer_has_them_and_numbers_have_an_error() -> None:
    found = score([KEEP.replace("3", "5"), DROP], [KEEP, DROP], Declared())
    assert found["field.UUID"] == [1, 1]
    assert found["field.title"] == [1, None]
    assert found["field.ratings.urgency"] == [0, None]
    assert found["error.ratings.urgency"] == [2, None]
    assert "error.title" not in found


def test_a_truth_value_is_not_the_number_one() -> None:
    found = score(['{"a": true}', '{"a": 1.0}'], ['{"a": 1}', '{"a": 1}'], Declared())
    assert found["field.a"] == [0, 1]
    assert found["error.a"] == [None, 0]


def test_answers_count_as_json_only_when_nearly_all_expected_ones_are() -> None:
    assert kind_of([KEEP] * 9 + ["text"], Declared()) == "json"
    assert kind_of([KEEP] * 8 + ["text"] * 2, Declared()) == "text"
    assert kind_of(["yes", "no"], Declared(labels=("yes", "no"))) == "labels"
    assert parse("7") is None


def test_labels_are_counted_as_scikit_learn_counts_them() -> None:
    from sklearn.metrics import f1_score

    expected = ["a", "b", "c"] * 10
    tuned = ["a", "b", "b"] * 10
    declared = Declared(labels=("a", "b", "c"))
    found = macro_f1(["a"] * 30, tuned, expected, declared)
    assert found.tuned == pytest.approx(f1_score(expected, tuned, average="macro", zero_division=0))
    assert found.verdict == "better"
    assert confusion(["x", "b"], ["a", "b"], declared) == {
        "labels": ["a", "b", "c", "(other)"],
        "counts": [[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    }


def test_a_label_can_be_a_field_of_a_json_answer() -> None:
    found = score([KEEP, DROP], [KEEP, KEEP], Declared(field="ratings.urgency"))
    assert found["label"] == [1, 0]


@pytest.mark.parametrize(
    ("differences", "higher", "expected"),
    [
        ([1.0] * 30, True, "better"),
        ([1.0] * 30, False, "worse"),
        ([-1.0] * 30, True, "worse"),
        ([1.0, -1.0] * 20, True, "cannot tell"),
        ([0.0] * 30, True, "cannot tell"),
        ([1.0] * 5, True, "cannot tell"),
        ([], True, "cannot tell"),
    ],
)
def test_a_model_is_better_only_when_the_whole_interval_says_so(
    differences: list[float], higher: bool, expected: str
) -> None:
    low, high = interval(differences)
    assert verdict(low, high, len(differences), higher) == expected


def test_the_interval_is_that_of_a_paired_bootstrap() -> None:
    from scipy.stats import bootstrap  # type: ignore[import-untyped]

    values = [float(number % 7) - 2 for number in range(200)]
    low, high = interval(values)
    import numpy as np

    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=3).confidence_interval
    assert [low, high] == pytest.approx([theirs.low, theirs.high], abs=0.06)
    assert interval(values) == (low, high)


def test_a_perplexity_is_compared_by_its_ratio_with_both_sides_resampled_together() -> None:
    import math

    import numpy as np

    random = np.random.default_rng(5)
    hard = random.normal(0, 1, 40)  # how hard a slice is, for both
    base, tuned = 7.75 + hard, 0.7 + hard / 2 + random.normal(0, 0.1, 40)
    rows = [5] * 39 + [1]
    loss, perplexity = compare_losses(list(base), list(tuned), rows)
    picks = random.integers(0, 40, (4000, 40))
    weights = np.array(rows)[picks]
    ratios = [np.exp(np.average(side[picks], axis=1, weights=weights)) for side in (tuned, base)]
    low, high = np.percentile(ratios[0] / ratios[1], [2.5, 97.5])
    assert [perplexity.low, perplexity.high] == pytest.approx([low, high], rel=0.05)
    assert perplexity.base is not None and perplexity.tuned is not None and loss.low is not None
    assert perplexity.difference == pytest.approx(perplexity.tuned / perplexity.base)
    assert perplexity.low == pytest.approx(math.exp(loss.low)) and perplexity.change == "ratio"
    assert (loss.verdict, perplexity.verdict) == ("better", "better")
    assert loss.difference == pytest.approx(np.average(tuned - base, weights=rows))


@pytest.mark.parametrize(
    ("growth", "noise", "slices", "expected"),
    [
        (0.0, 0.0, 20, "not worse"),  # a run of zero steps
        (0.05, 0.01, 20, "worse"),
        (0.01, 0.005, 20, "not worse"),  # surely more, surely within what is allowed
        (0.02, 0.05, 20, "cannot tell"),
        (-0.3, 0.1, 20, "not worse"),
        (0.5, 0.0, 5, "cannot tell"),  # too few
    ],
)
def test_forgetting_is_said_only_when_the_whole_interval_is_beyond_the_margin(
    growth: float, noise: float, slices: int, expected: str
) -> None:
    import numpy as np

    random = np.random.default_rng(3)
    base = random.uniform(1, 5, slices)
    tuned = base * (1 + growth + random.normal(0, noise, slices))
    found = forgotten(list(base), list(tuned), [10] * slices, 0.02)
    assert found["verdict"] == expected and found["told"].startswith(f"did it forget? {expected}: ")
    assert found["low"] <= tuned.sum() / base.sum() - 1 <= found["high"] + 1e-12
    assert forgotten([None], [1.0], [1], 0.02)["verdict"] == "cannot tell"


def test_losses_that_are_missing_or_alone_are_no_comparison() -> None:
    alone, power = compare_losses(None, [1.0, None], [3, 3])
    assert (alone.tuned, alone.low, alone.verdict) == (1.0, None, None)
    assert power.tuned == pytest.approx(2.718, abs=1e-3)
    assert compare_losses([None, 2.0], [1.0, None], [3, 3])[0].low is None


def test_rows_without_a_value_on_either_side_are_left_out_of_the_difference() -> None:
    found = compare({"error.a": [None, 4.0, None]}, {"error.a": [1.0, 1.0, None]})[0]
    assert (found.rows, found.base, found.tuned, found.difference) == (1, 4.0, 1.0, -3.0)
    assert not found.higher_is_better


def test_without_a_base_only_the_tuned_mean_is_told() -> None:
    found = compare(None, {"exact_match": [1.0, 0.0]})[0]
    assert (found.base, found.tuned, found.verdict) == (None, 0.5, None)


def test_slices_cover_every_row_once() -> None:
    assert slices_of("part", 450, 200) == {"part-00000": 200, "part-00200": 200, "part-00400": 50}
    assert slices_of("slice", 6, 1, dropped=1) == {"slice-00000": 2, "slice-00002": 2, "slice-00004": 2}
    assert slices_of("part", 7, 3, dropped=1) == {"part-00000": 3, "part-00003": 4}, "no slice of dropped rows alone"
    assert slices_of("part", 0, 3) == {}
    assert weighted([1.0, 2.0, None], [100, 300, 50]) == pytest.approx(1.75)


def test_examples_show_each_kind_of_answer() -> None:
    assert example_rows([DROP, DROP, DROP, KEEP]) == [0, 3]
    assert example_rows([DROP, DROP]) == [0, 1]
    assert example_rows(["text"]) == [0]


def test_a_long_answer_is_cut_by_columns_not_by_characters() -> None:
    from rich.cells import cell_len

    assert cell_len(shortened("新" * 300, 50)) <= 50
    assert shortened("a\nb\n") == "a\\nb"


def test_the_summary_lines_up_and_tells_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def summary_lines(run: Run) -> list[str]:
        tell_evaluation(run)
        *lines, following = capsys.readouterr().out.splitlines()
        assert following == "next: iis-finetune export 0007"
        return lines

    run = Run(tmp_path / "0007-tiny")
    assert "not been evaluated" in summary_lines(run)[0]
    folder = run.evaluation / "held_out"
    folder.mkdir(parents=True)
    rows = [{"prompt": "?", "predict": text, "label": KEEP} for text in ("nothing", KEEP)]
    for name, row in zip(("base", "tuned"), rows, strict=True):
        (folder / f"{name}.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    declared = Declared()
    found = compare(score(["nothing"], [KEEP], declared), score([KEEP], [KEEP], declared))
    scores = {"data": "held_out", "base": "base", "tuned": "tuned", "rows": 1, "kind": "json", "cut": ["row 3 is cut"]}
    scores["metrics"] = [asdict(each) for each in found]
    (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    lines = summary_lines(run)
    assert lines[0] == "evaluation on held_out, 1 rows"
    assert any(
        line.split() == ["title", "right", "0.00", "1.00", "+1.00", "to", "+1.00", "cannot", "tell"] for line in lines
    )
    assert "note: row 3 is cut" in lines
    assert lines[-3:] == ["  base      nothing", f"  tuned     {KEEP}", f"  expected  {KEEP}"]
    (folder / "scores.json").write_text(json.dumps({"data": "held_out", "problem": "out of memory"}), encoding="utf-8")
    assert summary_lines(run) == ["not evaluated on held_out: out of memory"]

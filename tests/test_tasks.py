"""Benchmarks by lm_eval: its own figures of both sides, paired; what is measured stays measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import LONGEST, ROOT, run

from iis_finetune.errors import Misused, ProblemsFound, RunFailed
from iis_finetune.evaluate import Evaluation, tasks
from iis_finetune.evaluate.compare import interval
from iis_finetune.report import view
from iis_finetune.runs import Run

ROWS = 50
CHOOSE = """\
task: choose
dataset_path: json
dataset_kwargs: {data_files: {test: choose.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{ask}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
num_fewshot: 2
metric_list:
  - {metric: acc}
  - {metric: acc_norm}
"""
BOTH = "group: both\ntask: [choose]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
SAY: dict[str, Any] = {
    "task": "say",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "choose.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{ask}}",
    "doc_to_target": '{"UUID": "A{{right}}"',
    "generation_kwargs": {"until": [","], "max_gen_toks": 12},
    "metric_list": [{"metric": "exact_match"}, {"metric": "bleu"}],
}
HOW: dict[str, Any] = {
    "tasks": "gsm8k",
    "include_path": None,
    "limit": None,
    "num_fewshot": None,
    "apply_chat_template": False,
}
THEIRS = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
given = {"task_manager": TaskManager(include_path="bench", include_defaults=False), "bootstrap_iters": 0}
given |= {"tasks": ["both", "say.json"], "batch_size": 2, "device": "cpu"}
for model in json.loads(sys.argv[1]):
    found = simple_evaluate("hf", model_args={**model, "dtype": "float32"}, **given)
    print("\\n" + json.dumps(found["results"]))
"""


def lay_out(folder: Path) -> None:
    """Two tasks on 50 rows: in YAML in a folder with a group around it, and a file in JSON."""
    (folder / "bench").mkdir(exist_ok=True)
    rows = [
        {"ask": f"新闻 {n}", "choices": [f"A{n + 10}", f"A{n * 7 % 90 + 10}", f"A{n * 3 % 90 + 10}"], "right": n % 3}
        for n in range(ROWS)
    ]
    (folder / "choose.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bench" / "choose.yaml").write_text(CHOOSE)
    (folder / "bench" / "both.yaml").write_text(BOTH)
    (folder / "say.json").write_text(json.dumps(SAY))


def measured(values: list[float], figure: float | None = None, higher: bool | None = True) -> dict[str, Any]:
    """What a side's file holds of one task."""
    mean = sum(values) / len(values) if figure is None else figure
    figures = {"alias": "t", "sample_len": len(values), "m,none": mean, "m_stderr,none": "N/A"}
    return {"figures": figures, "rows": {"m,none": values}, "higher_is_better": {} if higher is None else {"m": higher}}


def test_rows_are_paired_and_the_interval_is_the_kits_own() -> None:
    base, tuned = [0.0, 1.0] * 20, [1.0, 1.0, 0.0, 1.0] * 10
    (found,) = tasks._compared("t", [measured(base), measured(tuned)])
    low, high = interval([other - one for one, other in zip(base, tuned, strict=True)])
    assert (found.name, found.rows, found.base, found.tuned) == ("t: m", 40, 0.5, 0.75)
    assert (found.low, found.high, found.verdict) == (low, high, "better")


@pytest.mark.parametrize(
    ("base", "tuned", "low", "verdict"),
    [
        (measured([0.0] * 20, higher=False), measured([1.0] * 20, higher=False), 1.0, "worse"),
        (measured([0.0] * 20, higher=None), measured([1.0] * 20, higher=None), 1.0, None),
        (measured([0.0] * 20, figure=8.1), measured([1.0] * 20, figure=9.2), None, None),
    ],
    ids=["lower is better", "nobody says what is better", "not a mean over rows"],
)
def test_nothing_is_said_that_the_rows_do_not_say(
    base: dict[str, Any], tuned: dict[str, Any], low: float | None, verdict: str | None
) -> None:
    (found,) = tasks._compared("t", [base, tuned])
    assert (found.low, found.verdict) == (low, verdict)
    assert (found.base, found.tuned) == (base["figures"]["m,none"], tuned["figures"]["m,none"])


def test_a_side_alone_has_its_figures_and_no_difference() -> None:
    for given in (measured([0.0, 1.0]), measured([0.0, 1.0], figure=7.0)):
        (found,) = tasks._compared("t", [given])
        assert (found.base, found.tuned, found.low) == (None, given["figures"]["m,none"], None)


def test_other_tasks_of_the_same_models_stay_in_the_table() -> None:
    before = {"sides": {"tuned": "a"}, "cut": ["limit 5"], "metrics": [{"name": "old"}, {"name": "again", "was": 1}]}
    scores = {"sides": {"tuned": "a"}, "cut": ["limit 5"], "metrics": [{"name": "again"}, {"name": "new"}]}
    assert tasks._others(before, scores) == [{"name": "old"}]
    assert tasks._others(before, {**scores, "sides": {"tuned": "b"}}) == tasks._others({}, scores) == []


@pytest.mark.parametrize(("prefix", "fix"), [(sys.prefix, "make setup EXTRA=lm_eval"), ("/x", "pip install lm_eval")])
def test_without_lm_eval_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, fix: str
) -> None:
    monkeypatch.setattr(sys, "prefix", prefix)
    monkeypatch.setattr(tasks, "NAME", "lm_eval_that_is_not_installed")
    with pytest.raises(ProblemsFound) as refused:
        tasks.measure(Evaluation(Run(tmp_path), "lm_eval", {}), HOW, print)
    assert refused.value.exit_code == 3
    assert [each.fix for each in refused.value.problems] == [fix]


def test_what_goes_wrong_is_one_sentence(tmp_path: Path) -> None:
    log, file = tmp_path / "lm_eval.log", tmp_path / "mine.yaml"
    file.touch()
    unknown = tasks._failure({"unknown": "gsm8", "near": ["gsm8k", "gsm_plus"]}, "exit code 2", log)
    assert isinstance(unknown, Misused) and unknown.problems[0].fix == "did you mean 'gsm8k' or 'gsm_plus'?"
    away = tasks._failure({"reading": "gsm8k"}, "ConnectionError: no way to the hub. Try again.", log)
    assert isinstance(away, ProblemsFound) and away.exit_code == 3
    assert str(away) == "the task 'gsm8k' cannot be had: ConnectionError: no way to the hub"
    own = tasks._failure({"reading": str(file)}, "FileNotFoundError: no rows", log)
    assert isinstance(own, ProblemsFound) and own.exit_code == 2
    ended = tasks._failure({"doing": "gsm8k: base, 1 of 2"}, "OutOfMemoryError: no room", log)
    assert isinstance(ended, RunFailed) and f"measure gsm8k: base, 1 of 2: OutOfMemoryError: no room; see {log}" in str(
        ended
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "say", "--checkpoints"], "--tasks and --checkpoints are different jobs"),
        (["--tasks", "say", "--guard", "little"], "--tasks and --data or --guard are different jobs"),
        (["--guard", "little", "--baseline", "none"], "--guard says what was lost against a model"),
        (["--shots", "0"], "--include, --limit, --shots and --chat-template are for --tasks"),
    ],
)
def test_words_of_two_jobs_are_refused(evaluated_project: Path, words: list[str], said: str) -> None:
    done = run(["evaluate", "last", *words], evaluated_project, LONGEST)
    assert done.returncode == 2 and said in done.stderr, done.stderr


@pytest.mark.extended
def test_the_figures_are_lm_evals_own_and_what_was_measured_before_a_kill_is_kept(
    evaluated_project: Path, evaluated_run: Run
) -> None:
    lay_out(evaluated_project)
    words = ["evaluate", "last", "--tasks", "both, say.json", "--include", "bench", "--json"]
    command = [sys.executable, "-m", "iis_finetune", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, cwd=evaluated_project, env=environment, stderr=subprocess.PIPE, text=True)
    folder = evaluated_run.evaluation / "lm_eval"
    first, until = folder / "base" / "choose.json", time.monotonic() + LONGEST
    while not first.exists() and time.monotonic() < until:
        time.sleep(0.05)
    child.kill()
    said = child.communicate()[1]
    assert "choose: base, 1 of 2" in said and not (folder / "scores.json").exists()
    before = first.stat().st_mtime_ns

    done = run(words, evaluated_project, LONGEST)
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == before and "choose: base" not in done.stderr
    assert "choose: tuned, 1 of 2" in done.stderr
    ours = {each["name"]: each for each in json.loads(done.stdout)["metrics"]}
    model = json.loads((folder / "spec.json").read_text())["sides"]["tuned"]["model"]
    assert model["peft"] == str(evaluated_run.output.resolve())
    both = [{"pretrained": model["pretrained"]}, {"pretrained": model["pretrained"], "peft": model["peft"]}]
    own = subprocess.run(
        [sys.executable, "-c", THEIRS, json.dumps(both)],
        cwd=evaluated_project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert own.returncode == 0, own.stderr
    sides = [json.loads(line) for line in own.stdout.splitlines() if line.startswith('{"choose"')]
    for name, found in zip(("base", "tuned"), sides, strict=True):
        for each in ("choose: acc", "choose: acc_norm", "say: exact_match", "say: bleu", "both: acc"):
            task, metric = each.split(": ")
            assert ours[each][name] == pytest.approx(found[task][f"{metric},none"], rel=1e-12), (each, name)
    assert [ours["both: acc"][name] for name in ("rows", "low", "high")] == [
        ours["choose: acc"][name] for name in ("rows", "low", "high")
    ]
    assert ours["choose: acc"]["rows"] == ROWS and ours["choose: acc"]["low"] is not None
    assert ours["say: bleu"]["low"] is None
    assert "choose: acc" in [each["name"] for page in view(evaluated_run)["evaluations"] for each in page["metrics"]]


@pytest.mark.extended
def test_a_task_that_is_unknown_or_out_of_reach_is_told_before_a_model_is_loaded(
    evaluated_project: Path, tmp_path: Path
) -> None:
    cache = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    slip = run(["evaluate", "last", "--tasks", "gsm8"], evaluated_project, LONGEST, **cache)
    assert slip.returncode == 2 and "lm_eval has no task 'gsm8'" in slip.stderr and "'gsm8k'" in slip.stderr
    away = run(["evaluate", "last", "--tasks", "gsm8k"], evaluated_project, LONGEST, **cache)
    assert away.returncode == 3 and "the task 'gsm8k' cannot be had: " in away.stderr, away.stderr
    assert "Traceback" not in slip.stderr + away.stderr

"""The report: one file that needs no network, readable in every size and scheme, honest about every run."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import browser
import pytest
from conftest import Command

from iis_finetune import report
from iis_finetune.report import marked, question_of
from iis_finetune.runs import Run

LABELS = ['{"UUID": "A1", "title": "霜桥镇停电三小时"}', '{"UUID": "A2"}', '{"UUID": "A3"}', '{"UUID": "A4"}']
TUNED = [
    '{"UUID": "A1", "title": "霜桥镇停电两小时"}',
    "nothing <script>alert(1)</script>",
    '{"UUID": "A3"}',
    '{"UUID": "A4"}',
]
BASE = ["????", '{"UUID": "A2"}', '{"UUID": "A3"}', "x" * 400]


def write_run(folder: Path, losses: list[float]) -> Run:
    run = Run(folder)
    run.output.mkdir(parents=True)
    lines = [
        {"current_steps": step, "total_steps": len(losses), "loss": loss, "lr": 1e-4 / step, "throughput": 900.0 + step}
        for step, loss in enumerate(losses, 1)
    ]
    run.trainer_log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    reason = "这台机器没有加速卡，所以用 FP32; the CPU computes in it fastest"
    decision = {"name": "precision", "value": "fp32", "source": "machine table", "reason": reason}
    arguments = {"finetuning_type": "lora", "dataset": "little"}
    run.decisions.write_text(json.dumps({"decisions": [decision], "precision": "fp32", "arguments": arguments}))
    run.provenance.write_text(json.dumps({"model": "models/tiny", "data_sha256": {"/data/little.json": "ab" * 32}}))
    run.events.write_text(json.dumps({"time": time.time(), "event": "recovered", "why": "loss was NaN"}) + "\n")
    return run


def write_evaluation(run: Run) -> None:
    folder = run.evaluation / "held_out"
    folder.mkdir(parents=True)
    for name, answers in (("base", BASE), ("tuned", TUNED)):
        rows = [
            {
                "prompt": f"<|im_start|>user\n新闻 {n}<|im_end|>\n<|im_start|>assistant\n",
                "predict": a,
                "label": b + "\n",
            }
            for n, (a, b) in enumerate(zip(answers, LABELS, strict=True))
        ]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    metric = {
        "name": "valid_json",
        "title": "valid JSON",
        "higher_is_better": True,
        "rows": 4,
        "base": 0.5,
        "tuned": 0.75,
    }
    metric |= {"difference": 0.25, "low": -0.25, "high": 0.75, "verdict": "cannot tell"}
    scores = {"data": "held_out", "base": "base", "tuned": "tuned", "rows": 4, "kind": "json", "cut": []}
    scores |= {"metrics": [metric], "worse_rows": [1], "invalid_rows": [1]}
    (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = write_run(tmp_path / "0001-tiny", [5.0 / step for step in range(1, 60)])
    write_evaluation(made)
    return made


def test_a_page_needs_no_network_and_escapes_what_a_model_says(run: Run) -> None:
    text = report.page([run])
    addresses = set(re.findall(r"""(?:src|href)=["']([^"']+)["']|url\(([^)]+)\)""", text))
    assert {a or b for a, b in addresses if not (a or b).startswith(("#", "data:"))} == set()
    assert "<script>alert" not in text
    assert "&lt;script&gt;" in text
    assert text.count("<svg") == 3 and "training rows by length" not in text
    with_lengths = report.page([run], {"little": [(10, 0.5), (20, 0.25), (30, 0.25)]})
    assert with_lengths.count("<svg") == 4 and "share of the training rows by length" in with_lengths


def test_a_page_tells_decisions_events_data_and_metrics(run: Run) -> None:
    text = report.page([run])
    for told in (
        "这台机器没有加速卡",
        "recovered",
        "loss was NaN",
        "ab" * 32,
        "valid JSON",
        "cannot tell",
        "models/tiny",
    ):
        assert told in text, told


def test_a_page_gives_the_figures_without_the_rows_that_were_trained_on(run: Run) -> None:
    file = run.evaluation / "held_out" / "scores.json"
    scores = json.loads(file.read_text())
    without = [{**metric, "rows": 3, "tuned": 0.6125} for metric in scores["metrics"]]
    told = "1 of the 4 held-out rows of 'held_out' are training rows (row 3): these figures are too good"
    before = report.page([run])
    file.write_text(json.dumps({**scores, "cut": [told], "without_leaks": without}))
    text = report.page([run])
    assert "without the training rows" not in before and text.count("<th>without the training rows</th>") == 1
    assert told.replace("'", "&#39;") in text and ">0.6125</td>" in text.partition("without the training rows")[2]


def test_a_run_without_anything_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "0007-empty").mkdir()
    text = report.page([Run(tmp_path / "0007-empty")])
    assert "0007-empty" in text
    assert "<svg" not in text


def test_several_runs_share_their_pictures(tmp_path: Path, run: Run) -> None:
    other = write_run(tmp_path / "0002-other", [4.0, 3.0, float("nan"), 2.0])
    text = report.page([run, other])
    assert text.count("<svg") == 3
    assert "0002-other" in text.split("<svg")[1]


def test_ids_in_the_pictures_are_unique(run: Run) -> None:
    found = re.findall(r'\bid="([^"]+)"', report.page([run]))
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("text", "expected", "pieces"),
    [
        ("same", "same", [("same", False)]),
        ("", "x", []),
        ("停电两小时", "停电三小时", [("停电", False), ("两", True), ("小时", False)]),
        ("A1 b", "A2 b", [("A1", True), (" b", False)]),
    ],
)
def test_differences_from_the_expected_answer_are_marked(
    text: str, expected: str, pieces: list[tuple[str, bool]]
) -> None:
    assert marked(text, expected) == pieces


def test_only_what_the_user_said_last_is_shown_of_a_prompt() -> None:
    prompt = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n你好\nthere<|im_end|>\n<|im_start|>assistant\n"
    assert question_of(prompt) == "你好\nthere"
    assert question_of("plain") == "plain"


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium here: scripts/install_debian_packages.sh adds it")
def test_the_page_works_in_a_browser_in_every_size_and_scheme(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(report.page([run]), encoding="utf-8")
    with browser.Page(file) as page:
        for width in (1440, 390):
            for scheme in ("light", "dark"):
                page.open(width, scheme)
                assert page.run("document.documentElement.scrollWidth") <= width
                paper = page.run("getComputedStyle(document.body).backgroundColor")
                assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
                page.picture(tmp_path / f"{width}-{scheme}.png")
                assert (tmp_path / f"{width}-{scheme}.png").stat().st_size > 20_000
        shown = "[...document.querySelectorAll('tr[data-flags]')].filter(row => !row.hidden).map(row => row.rowIndex)"
        assert page.run(shown) == [1, 2, 3, 4]
        for flag, rows in (("changed", [1, 2, 4]), ("worse", [2]), ("invalid", [2]), ("", [1, 2, 3, 4])):
            page.run(f"document.querySelector('button[data-filter=\"{flag}\"]').click()")
            assert page.run(shown) == rows, flag
        assert page.console == []
        assert [address for address in page.requests if not address.startswith(("file:", "data:"))] == []


def test_a_report_goes_where_it_is_told_and_a_comparison_leaves_each_run_its_own(quick: Command, project: Path) -> None:
    for name in ("0001-one", "0003-three"):
        write_run(project / "runs" / name, [2.0, 1.0])
    kept = project / "runs" / "0001-one" / "report.html"
    assert quick("report", "1").returncode == 0
    before = kept.read_bytes()
    cases = {
        ("1", "3"): "runs/report-0001-0003.html",
        ("1", "3", "--to", "new/folder"): "new/folder/report-0001-0003.html",
        ("last", "--to", "new"): "new/report.html",
        ("1", "--to", "deep/page.html"): "deep/page.html",
    }
    for words, file in cases.items():
        assert quick("report", *words).returncode == 0, words
        assert (project / file).is_file(), words
    assert kept.read_bytes() == before
    refused = quick("report", "1", "--to", "recipes/tiny.yaml/x.html")
    assert refused.returncode == 2 and "'recipes/tiny.yaml/x.html' cannot be written" in refused.stderr


def test_a_page_tells_forgetting_checkpoints_and_what_people_prefer(run: Run) -> None:
    folder = run.evaluation / "held_out"
    scores = json.loads((folder / "scores.json").read_text())
    told = "did it forget? worse: the loss changes by +5.0% to +9.0% of the base's (95 %), 2% is allowed"
    (folder / "scores.json").write_text(json.dumps({**scores, "guard": {"verdict": "worse", "told": told}}))
    (folder / "votes.json").write_text(json.dumps({"told": "75% for tuned", "rows": {"2": "1 of 2"}}))
    measured = {"tuned": 2.0, "low": 1.5, "high": 2.5}
    best = {"step": 40, "verdict": "best", "alone": measured, "against_best": measured}
    checkpoints = {"data": "held_out", "told": "best: step 40", "overfits": "over-fitting since step 40"}
    (folder / "checkpoints.json").write_text(json.dumps({**checkpoints, "checkpoints": [best]}))
    text = report.page([run])
    for said in (
        told.replace("'", "&#39;"),
        "75% for tuned",
        "1 of 2 for tuned",
        "best: step 40",
        "over-fitting since",
    ):
        assert said in text, said
    assert text.count("for tuned</span>") == 1

"""Registration, rows, truncation and adding of data sets."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from dataset_cases import CASES, GOOD, STOPS, Case, alpaca, array, chat, lines, pair, talk

from iis_finetune import dataset
from iis_finetune.arguments import Template, find_template
from iis_finetune.dataset.truncation import KINDS
from iis_finetune.errors import Place, Problem, ProblemsFound, errors_of

RECIPE = Place("recipes/mine.yaml", 9, "dataset")
SPECIAL = ("<|im_start|>", "<|im_end|>")


def register(folder: Path, entry: dict[str, Any], body: bytes = lines(GOOD), name: str = "data.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(body)
    (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": name, **entry}}, indent=2), "utf-8")
    return folder


def checked(case: Case, folder: Path) -> tuple[dataset.RowReport | None, list[Problem]]:
    register(folder, case.entry, case.body, f"data{case.suffix}")
    stage = "ppo" if case.generate else case.stage
    sources, problems = dataset.check_registered("mine", folder, stage, RECIPE)
    if not sources:
        return None, problems
    options = dataset.RowOptions(case.stage, generate=case.generate, special_words=SPECIAL)
    report = dataset.check_rows(sources[0], options)
    return report, [*problems, *report.problems]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_each_file_gets_the_verdict_llamafactory_gives_it(case: Case, tmp_path: Path) -> None:
    report, problems = checked(case, tmp_path)
    assert (STOPS if errors_of(problems) else report and report.kept) == case.kept, problems
    if case.says is None:
        assert problems == []
        return
    (found,) = [problem for problem in problems if case.says in problem.what] or [None]
    if report is None:
        return
    assert found, [problem.what for problem in problems]
    assert found.where.file == str(tmp_path / f"data{case.suffix}")
    if case.row:
        assert found.where.key == f"row {case.row}"

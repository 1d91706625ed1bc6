"""Benchmarks by lm_eval: its own figures of both sides, paired; what is measured stays measured."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import LONGEST, ROOT, Command, run

from iis_finetune.cli.summary import tell_evaluation
from iis_finetune.errors import Misused, ProblemsFound
from iis_finetune.evaluate import tasks
from iis_finetune.evaluate.compare import interval
from iis_finetune.export import card
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
GROUP = "group: both\ntask: [choose, say]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"


def lay_out(folder: Path) -> None:
    """Two tasks on 50 rows, a file in YAML and one in JSON."""
    rows = [
        {"ask": f"新闻 {n}", "choices": ['{"UUID": "A%d"' % n, "it is %d" % n, "a few plain words"], "right": n % 2}
        for n in range(ROWS)
    ]
    (folder / "choose.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "choose.yaml").write_text(CHOOSE)
    (folder / "say.json").write_text(json.dumps(SAY))

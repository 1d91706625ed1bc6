"""The kit's verdict on every data file of the table against LLaMA-Factory's own loader, in one child process."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dataset_cases import CASES, CHATML, Case, alpaca, chat, lines

from iis_finetune import dataset
from iis_finetune.arguments import find_template
from iis_finetune.errors import Place

pytestmark = pytest.mark.slow

CHILD = Path(__file__).with_name("llamafactory_loader.py")


TEMPLATES = ("qwen", "qwen3", "qwen3_nothink", "llama3", "llama2", "mistral", "alpaca", "breeze", "gemma", "phi4")
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, alpaca("an answer of some length", "a question")),
    "long question": ({}, alpaca("short", "a question " * 30)),
    "long answer": ({}, alpaca("an answer " * 30, "short")),
    "both long": ({}, alpaca("an answer " * 30, "a question " * 30)),
    "two turns": (
        CHATML,
        chat(("user", "a" * 40), ("assistant", "b" * 30), ("user", "c" * 50), ("assistant", "d" * 60)),
    ),
    "five turns": (CHATML, chat(*[("user", "a" * 30), ("assistant", "b" * 40)] * 5)),
}
CUTOFFS = (4096, 160, 90)
LENGTHS = [(template, row, cutoff) for template in TEMPLATES for row in ROWS for cutoff in CUTOFFS]


def _as_json(case: Case, **more: Any) -> dict[str, Any]:
    keys = ("name", "stage", "suffix", "entry", "generate")
    return {key: getattr(case, key) for key in keys} | {"body": base64.b64encode(case.body).decode(), **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loader")


@pytest.fixture(scope="module")
def verdicts(folder: Path) -> dict[str, Any]:
    asked = [_as_json(case) for case in CASES]
    for template, row, cutoff in LENGTHS:
        entry, value = ROWS[row]
        case = Case(f"{template}, {row}, {cutoff}", lines(value), 1, entry=entry)
        asked.append(_as_json(case, template=template, cutoff_len=cutoff))
    (folder / "cases.json").write_text(json.dumps(asked), "utf-8")
    placeholder = Path(__file__).parents[1] / "iis_finetune" / "hook" / "torchaudio_placeholder"
    paths = [str(path) for path in (placeholder, *os.environ.get("PYTHONPATH", "").split(os.pathsep)) if str(path)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
    }
    command = [sys.executable, str(CHILD), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "verdicts.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_llamafactory_does_what_the_table_says(case: Case, verdicts: dict[str, Any]) -> None:
    real = verdicts[case.name]
    assert (real if isinstance(real, int) else "stops") == case.kept, real


@pytest.mark.parametrize(("template", "row", "cutoff"), LENGTHS)
def test_what_is_cut_is_what_llamafactory_cuts(
    template: str, row: str, cutoff: int, verdicts: dict[str, Any], folder: Path
) -> None:
    (folder / "row.jsonl").write_bytes(lines(ROWS[row][1]))
    registry = {"row": {"file_name": "row.jsonl", **ROWS[row][0]}}
    (folder / "dataset_info.json").write_text(json.dumps(registry), "utf-8")
    (source,), _ = dataset.check_registered("row", folder, "sft", Place())
    words = find_template(template)
    assert words
    options = dataset.Options("sft", template=words, cutoff_len=cutoff)
    report = dataset.check_rows(source, options, folder / "tokenizer.json").truncation
    whole, labels = verdicts[f"{template}, {row}, 4096"]
    cut, cut_labels = verdicts[f"{template}, {row}, {cutoff}"]
    assert report.longest_tokens in {0, len(whole)}
    lost = [label for label in labels if label >= 0] != [label for label in cut_labels if label >= 0]
    expected = "answer" if lost else "prompt" if len(cut) < len(whole) else None
    found = {"answer_lost": "answer", "answer_shortened": "answer", "turns_lost": "answer", "prompt_cut": "prompt"}
    assert [found[kind] for kind in report.counts] == ([expected] if expected else [])

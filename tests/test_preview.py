"""data preview and data stats: rows as LLaMA-Factory gives them to a training, and their numbers."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Command

from iis_finetune import dataset
from iis_finetune.arguments import Settings, find_template, table
from iis_finetune.errors import Place

CHILD = Path(__file__).with_name("preview_child.py")
CUTTING = ("alpaca", "last turn", "tools", "messages", "dpo", "rm", "kto")


def register(project: Path, name: str, rows: list[dict[str, Any]], **entry: Any) -> None:
    file = project / "data" / "dataset_info.json"
    (project / "data" / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    registry = {**json.loads(file.read_text(encoding="utf-8")), name: {"file_name": f"{name}.json", **entry}}
    file.write_text(json.dumps(registry), encoding="utf-8")


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("preview")
    paths = (str(ROOT), str(ROOT / "iis_finetune" / "hook" / "torchaudio_placeholder"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)}
    command = [sys.executable, str(CHILD), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads((folder / "verdicts.json").read_text("utf-8"))
    return found


@pytest.mark.slow
def test_token_ids_and_loss_mask_are_those_of_llamafactorys_own_loader(verdicts: dict[str, dict[str, Any]]) -> None:
    """Eight families of templates, twelve kinds of rows, fifty rows each, or what max_samples and val_size leave."""
    assert len(verdicts) == 96
    assert [name for name, found in verdicts.items() if found["error"] or not found["same"] or found["rows"] < 10] == []


@pytest.mark.slow
def test_what_is_shown_is_the_whole_text_and_what_is_cut_is_marked(verdicts: dict[str, dict[str, Any]]) -> None:
    for name, found in verdicts.items():
        kind = name.partition(", ")[2]
        assert kind == "texts" or found["other_texts"] == 0, name
        assert (found["cut"] > 0) == (kind in CUTTING), name


@pytest.mark.slow
def test_a_row_is_shown_as_the_model_sees_it(project: Path, quick: Command) -> None:
    rows = [{"instruction": "说", "input": "", "output": text} for text in ("好的 👩‍🚀", "a few plain words " * 40, "")]
    register(project, "own", rows)
    shown = quick("data", "preview", "tiny", "dataset=own,little", "--rows", "2")
    assert shown.returncode == 0, shown.stderr
    assert "own 1  (system: the template's)" in shown.stdout
    assert "user\n说<|im_end|>\n<|im_start|>assistant\n⟦好的 👩‍🚀<|im_end|>\n⟧" in shown.stdout
    assert "⟦it is 7<|im_end|>" in shown.stdout
    assert "~~" in shown.stdout and "cut off by cutoff_len 128" in shown.stdout
    assert shown.stdout.startswith("warning: no token that ends an answer carries loss")
    assert "the model learns not to stop: own 2\n" in shown.stdout
    assert "an empty answer" in shown.stderr or "empty" in shown.stderr
    assert shown.stdout.rstrip().endswith("next: iis-finetune data stats tiny dataset=own,little")
    page = quick("data", "preview", "tiny", "dataset=own", "--row", "1", "--html", "page.html")
    text = (project / "page.html").read_text(encoding="utf-8")
    assert page.returncode == 0 and '<span class="loss">好的 👩‍🚀&lt;|im_end|&gt;' in text
    again = quick("data", "preview", "tiny", "--html", "page.html")
    assert again.returncode == 2 and "page.html is there already" in again.stderr
    beyond = quick("data", "preview", "tiny", "--row", "50")
    assert beyond.returncode == 2 and "'little' has 32 rows" in beyond.stderr


@pytest.mark.slow
def test_without_a_tokenizer_the_templates_text_is_shown(project: Path, quick: Command) -> None:
    override = "model_name_or_path=Qwen/Qwen2.5-0.5B-Instruct"
    shown = quick("data", "preview", "tiny", override, "template=llama3", "--row", "2")
    assert shown.returncode == 0, shown.stderr
    assert "the model's tokenizer is not on this disk" in shown.stdout
    assert "<|start_header_id|>user<|end_header_id|>\n\nsay 1<|eot_id|>" in shown.stdout
    assert "⟦it is 7<|eot_id|>⟧" in shown.stdout and "tokens;" not in shown.stdout
    assert "LLaMA-Factory's template for Qwen2.5-0.5B-Instruct is 'qwen', not 'llama3'" in shown.stderr
    told = json.loads(quick("data", "preview", "tiny", override, "--json").stdout)
    assert told["tokenised"] is False and len(told["data"]["little"]["examples"]) == 3


def test_a_mistake_is_told_before_anything_is_asked(quick: Command) -> None:
    wrong = quick("data", "preview", "tiny", "dataset=litle")
    assert wrong.returncode == 2 and "did you mean 'little'?" in wrong.stderr


def test_the_numbers_of_a_data_set(project: Path, quick: Command) -> None:
    rows = [{"instruction": f"问题 {n}", "input": "", "output": "да" if n < 10 else f"answer {n}"} for n in range(40)]
    register(project, "own", [*rows, *rows[-3:], {"instruction": "no answer", "input": "", "output": None}])
    shown = quick("data", "stats", "tiny", "dataset=own,little")
    assert shown.returncode == 0, shown.stderr
    assert "own: 44 rows, 43 usable" in shown.stdout
    assert "answers that stand in an earlier row: 27.9%" in shown.stdout
    assert "cjk" in shown.stdout and "cyrillic" in shown.stdout
    assert "mixed by concat" in shown.stdout and "own: 44, 57.9% of the rows" in shown.stdout
    fits = (
        "100% of the rows of 'little' fit in cutoff_len=64: half of a full row's tokens, and so of a step's activations"
    )
    assert fits in shown.stdout and "others are cut" not in shown.stdout
    assert "7% of the rows of 'own' equal an earlier row: iis-finetune data clean own" in shown.stdout
    assert shown.stdout.rstrip().endswith("next: iis-finetune data preview tiny dataset=own,little")
    told = json.loads(quick("data", "stats", "tiny", "dataset=little", "--json").stdout)
    assert told["unit"] == "tokens" and told["data"]["little"]["turns"]["max"] == 2
    alone = quick("data", "stats", "own")
    assert alone.returncode == 0 and "characters  min 6" in alone.stdout and "over cutoff_len" not in alone.stdout
    assert alone.stdout.rstrip().endswith("next: iis-finetune data check own")
    assert quick("data", "stats", "own", "cutoff_len=64").returncode == 2


def test_a_name_that_is_neither_a_recipe_nor_a_data_set_is_told_with_both_lists(quick: Command) -> None:
    near, far = quick("data", "stats", "litle"), quick("data", "stats", "nope")
    assert near.returncode == far.returncode == 2
    assert "'nope' is neither a recipe nor a registered data set" in far.stderr
    assert "did you mean 'little'?" in near.stderr
    assert "`iis-finetune recipes`" in far.stderr and "`iis-finetune data check`" in far.stderr
    assert "the recipe file 'mine.yaml' does not exist" in quick("data", "stats", "mine.yaml").stderr


def test_classes_are_not_called_copies(project: Path, quick: Command) -> None:
    rows = [{"instruction": f"text {n}", "input": "", "output": str(n % 2)} for n in range(40)]
    register(project, "classes", rows)
    shown = quick("data", "stats", "classes").stdout
    assert "answers that stand in an earlier row: 95%" in shown and "data clean" not in shown


def test_lengths_are_those_of_every_row_or_of_a_sample_that_is_the_same_each_time(project: Path) -> None:
    chance = random.Random(1)
    rows = [{"instruction": "a" * chance.randint(1, 999), "input": "", "output": "b"} for _ in range(3000)]
    register(project, "many", rows)
    (source,), _ = dataset.check_registered("many", project / "data", "sft", Place())
    everything = dataset.measure(source, dataset.Options("sft", None), None)
    assert everything.lengths == sorted(len(row["instruction"]) + 1 for row in rows)
    drawn = [dataset.measure(source, dataset.Options("sft", 500), None).lengths for _ in range(2)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 500
    assert not Counter(drawn[0]) - Counter(everything.lengths)
    assert abs(sum(drawn[0]) / 500 - sum(everything.lengths) / 3000) < 50


@pytest.mark.parametrize(
    ("strategy", "probabilities", "expected"),
    [
        ("concat", None, {"one": 60, "two": 20}),
        ("interleave_under", None, {"one": 20, "two": 20}),
        ("interleave_over", None, {"one": 60, "two": 60}),
        ("interleave_under", "0.9,0.1", None),
    ],
)
def test_rows_are_mixed_as_llamafactory_mixes_them(
    strategy: str, probabilities: str | None, expected: dict[str, int] | None
) -> None:
    stats = {
        name: dataset.Stats(rows=n, turns=[], lengths=[], repeated=0, copies=0, scripts={})
        for name, n in (("one", 90), ("two", 20))
    }
    stated = {"mix_strategy": strategy, "interleave_probs": probabilities, "max_samples": 60}
    mixed = dataset.mixed(stats, Settings(table(), stated))
    assert mixed == expected or (expected is None and mixed["one"] == 60 > 4 * mixed["two"])


def test_lengths_in_tokens_are_those_that_cutoff_len_is_held_against(project: Path, tiny_model: Path) -> None:
    (source,), _ = dataset.check_registered("little", project / "data", "sft", Place())
    options = dataset.Options("sft", None, template=find_template("qwen"), cutoff_len=8)
    found = dataset.measure(source, options, tiny_model / "tokenizer.json")
    cut = dataset.check_rows(source, options, tiny_model / "tokenizer.json").truncation
    assert found.lengths[-1] == cut.longest_tokens

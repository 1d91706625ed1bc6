"""Data files are read once: what was found is remembered while path, size, time of change and settings are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import RECIPE
from dataset_cases import GOOD, alpaca, array, lines, save_byte_tokenizer
from msgspec.structs import replace

from iis_finetune import dataset, preflight
from iis_finetune.arguments import find_template
from iis_finetune.dataset import Options, Readings, Source
from iis_finetune.errors import Place
from iis_finetune.runs import Workspace

OPENED: list[str] = []
HOOKED: list[bool] = []


@pytest.fixture(autouse=True)
def opened() -> list[str]:
    """The paths opened since the test began."""
    if not HOOKED:
        HOOKED.append(True)
        sys.addaudithook(lambda event, words: OPENED.append(str(words[0])) if event == "open" else None)
    OPENED.clear()
    return OPENED


def source_of(folder: Path, body: bytes, name: str = "rows.jsonl") -> Source:
    (folder / name).write_bytes(body)
    (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": name}}), "utf-8")
    (source,), _ = dataset.check_registered("mine", folder, "sft", Place())
    OPENED.clear()
    return source


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


FILES = {
    "rows.jsonl": lines(GOOD, alpaca(None)),
    "rows.json": array(GOOD, alpaca(None)),
    "rows.csv": b"instruction,input,output\na,,b\nc,d,\n",
}


@pytest.mark.parametrize("name", FILES)
def test_faults_and_cuts_of_a_file_are_found_in_one_opening(name: str, tmp_path: Path, byte_tokenizer: Path) -> None:
    source = source_of(tmp_path, FILES[name], name)
    options = Options("sft", template=find_template("qwen"), cutoff_len=20)
    found = dataset.check_rows(source, options, byte_tokenizer)
    assert (found.kept, found.dropped, found.truncation.tokenised) == (1, 1, 1)
    assert OPENED.count(str(source.files[0])) == 1


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_table_is_opened_once(suffix: str, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table, file = arrow.Table.from_pylist([GOOD, GOOD]), tmp_path / f"made.{suffix}"
    if suffix == "parquet":
        parquet.write_table(table, file)
    else:
        with arrow.ipc.new_file(str(file), table.schema) as writer:
            writer.write_table(table)
    source = source_of(tmp_path, file.read_bytes(), f"rows.{suffix}")
    assert dataset.check_rows(source, Options("sft")).kept == 2
    assert OPENED.count(str(source.files[0])) == 1


def test_a_file_is_read_again_only_when_it_or_the_settings_change(tmp_path: Path) -> None:
    source, readings, options = source_of(tmp_path, lines(GOOD, GOOD)), Readings(), Options("sft")
    path = source.files[0]
    for _ in range(3):
        assert readings.check_rows(source, options).kept == 2
        before = readings.sha256(source)
    assert OPENED.count(str(path)) == 2  # its rows, its hash
    assert readings.check_rows(source, replace(options, max_samples=1)).kept == 1
    assert OPENED.count(str(path)) == 3
    path.write_bytes(lines(GOOD, alpaca(None), GOOD))
    assert readings.check_rows(source, options).dropped == 1
    assert readings.sha256(source) != before
    path.write_bytes(lines(GOOD, GOOD, alpaca(None)))
    os.utime(path, ns=(1, 1))
    (problem,) = readings.check_rows(source, options).problems
    assert "(row 3)" in problem.what


def test_another_tokenizer_is_another_reading(tmp_path: Path, byte_tokenizer: Path) -> None:
    source, readings = source_of(tmp_path, lines(GOOD)), Readings()
    options = Options("sft", template=find_template("qwen"), cutoff_len=20)
    assert readings.check_rows(source, options).truncation.tokenised == 0
    assert readings.check_rows(source, options, byte_tokenizer).truncation.tokenised == 1
    assert readings.check_rows(source, options, tmp_path / "none.json").truncation.tokenised == 0


def test_what_one_process_knows_another_is_handed(tmp_path: Path, byte_tokenizer: Path) -> None:
    odd = [alpaca(**{"half \ud83d": value}) for value in (1, "a")]
    source, readings = source_of(tmp_path, json.dumps([GOOD, *odd, alpaca(None)]).encode(), "rows.json"), Readings()
    options = Options("sft", template=find_template("qwen"), cutoff_len=20)
    found, hashes = readings.check_rows(source, options, byte_tokenizer), readings.sha256(source)
    assert found.problems and found.truncation.problems
    readings.keep(tmp_path / "readings.json")
    OPENED.clear()
    handed = dataset.kept(tmp_path / "readings.json")
    assert handed.check_rows(source, options, byte_tokenizer) == found and handed.sha256(source) == hashes
    assert str(source.files[0]) not in OPENED


def test_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    assert dataset.kept(tmp_path / "readings.json") == Readings()


def test_the_key_of_a_reading_is_the_same_in_every_process(tmp_path: Path) -> None:
    source_of(tmp_path, lines(GOOD))
    program = (
        "import sys; from pathlib import Path; from iis_finetune import dataset;"
        "from iis_finetune.arguments import find_template; from iis_finetune.errors import Place;"
        "(source,), _ = dataset.check_registered('mine', Path(sys.argv[1]), 'sft', Place());"
        "readings = dataset.Readings();"
        "readings.check_rows(source, dataset.Options('sft', template=find_template('qwen3')));"
        "print(*readings.rows)"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    keys = {
        subprocess.run(words, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("1", "2")
    }
    assert len(keys) == 1 and len(keys.pop().strip()) == 64


def test_asking_again_about_a_recipe_and_its_base_reads_no_row_twice(project: Path) -> None:
    text = RECIPE.replace("kit:\n", "kit:\n  base: tiny\n").replace("model_name_or_path: models/tiny\n", "")
    (project / "recipes" / "after.yaml").write_text(text)
    workspace = Workspace(project, project / "models", project / "runs")
    question = preflight.Question("after", (), workspace, dict(os.environ))
    first = preflight.examine(question)
    OPENED.clear()
    again = preflight.examine(replace(question, recipe=str(project / "recipes" / "after.yaml")))
    assert [each.what for each in again.problems] == [each.what for each in first.problems]
    assert not [path for path in OPENED if path.endswith("little.json")]


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for known in [each for each in sys.modules if each.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, name, None)


def test_json_is_checked_without_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without("pandas", monkeypatch)
    for name in ("rows.json", "rows.jsonl"):
        assert dataset.check_rows(source_of(tmp_path, FILES[name], name), Options("sft")).kept == 1


def test_csv_without_pandas_is_one_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without("pandas", monkeypatch)
    (problem,) = dataset.check_rows(source_of(tmp_path, FILES["rows.csv"], "rows.csv"), Options("sft")).problems
    assert "pandas, which is not installed" in problem.what and problem.fix == "run: pip install pandas"
    assert (problem.kind, problem.exit_code) == ("missing", 3)


LATE: list[tuple[str, str, str, str | None]] = [
    ("texts, then numbers", "b", "1", None),
    ("numbers, then texts", "1", "b", "'note' holds number in row 1 and text"),
    ("nothing, then numbers", "", "1", None),
    ("nothing, then texts", "", "b", "'note' is first filled"),
]


@pytest.mark.parametrize(("name", "first", "then", "says"), LATE, ids=[row[0] for row in LATE])
def test_the_first_ten_thousand_rows_of_csv_fix_the_types(
    name: str, first: str, then: str, says: str | None, tmp_path: Path
) -> None:
    rows = [f"a,b,c,{first}\n"] * 10_000 + [f"a,b,c,{then}\n"]
    source = source_of(tmp_path, "".join(["instruction,input,output,note\n", *rows]).encode(), "rows.csv")
    problems: list[Any] = list(dataset.check_rows(source, Options("sft")).problems)
    assert [says in problem.what for problem in problems] == ([True] if says else [])


def test_csv_rows_with_more_cells_than_columns_from_the_start_are_refused(tmp_path: Path) -> None:
    source = source_of(tmp_path, b"instruction,input,output\na,b,c,d\ne,f,g,h\n", "rows.csv")
    (problem,) = [each for each in dataset.check_rows(source, Options("sft")).problems if "cells" in each.what]
    assert "4 cells for 3 columns" in problem.what

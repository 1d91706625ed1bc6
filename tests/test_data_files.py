"""The committed data: equal to a fresh generation, registered, parseable, and no test item known before the test."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
RECORD = ["UUID", "title", "brief", "category", "importance", "credibility"]


def rows_of(name: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads((DATA / name).read_text(encoding="utf-8"))
    return rows


def answers_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(row["output"]) for row in rows_of(name)]


def texts_of(value: Any) -> list[str]:
    """Every string in a row, however deep."""
    if isinstance(value, dict | list):
        return [text for each in (value.values() if isinstance(value, dict) else value) for text in texts_of(each)]
    return [value] if isinstance(value, str) else []


def test_committed_files_equal_a_fresh_generation() -> None:
    for script in ("make_intelligence_data.py", "make_general_data.py"):
        command = [sys.executable, str(ROOT / "scripts" / script), "--check"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr


def test_the_general_rows_are_two_hundred_different_questions_half_of_them_chinese() -> None:
    rows = rows_of("general_test.json")
    questions = {row["instruction"] for row in rows}
    assert len(rows) == len(questions) == 200 and all(row["output"] for row in rows)
    assert sum(bool(re.search("[一-鿿]", question)) for question in questions) == 100


@pytest.mark.parametrize(("name", "count"), [("intelligence_train.json", 600), ("intelligence_test.json", 100)])
def test_half_of_the_rows_are_dropped_and_the_others_are_whole_records(name: str, count: int) -> None:
    answers = answers_of(name)
    assert len(answers) == count
    assert sum(list(answer) == ["UUID"] for answer in answers) == count // 2
    assert sum(list(answer) == RECORD for answer in answers) == count // 2


def test_ratings_are_between_one_and_five() -> None:
    records = [answer for answer in answers_of("intelligence_train.json") if len(answer) > 1]
    for field in ("importance", "credibility"):
        assert {record[field] for record in records} == {1, 2, 3, 4, 5}


def test_every_item_holds_the_id_that_its_answer_names() -> None:
    for name in ("intelligence_train.json", "intelligence_test.json"):
        for row, answer in zip(rows_of(name), answers_of(name), strict=True):
            assert f'"{answer["UUID"]}"' in row["input"]


def test_no_test_item_stands_in_any_other_file() -> None:
    others = [
        path.name for path in DATA.glob("*.json") if path.name not in ("intelligence_test.json", "dataset_info.json")
    ]
    assert len(others) == 7
    known = "\n".join(text for name in others for row in rows_of(name) for text in texts_of(row))
    for row, answer in zip(rows_of("intelligence_test.json"), answers_of("intelligence_test.json"), strict=True):
        body = row["input"].split("\n", 2)[2]
        for mark in (f'"{answer["UUID"]}"', body, answer.get("title", body)):
            assert mark not in known


def test_ids_are_unique_over_train_and_test() -> None:
    ids = [
        answer["UUID"] for name in ("intelligence_train.json", "intelligence_test.json") for answer in answers_of(name)
    ]
    assert len(ids) == len(set(ids))


def verdict(text: str) -> tuple[Any, ...] | None:
    """What an answer says beside the words of title and brief; None when it is no JSON."""
    try:
        answer = json.loads(text)
    except ValueError:
        return None
    return len(answer), answer["UUID"], answer.get("importance"), answer.get("credibility")


def test_a_rejected_answer_is_wrong_in_a_way_that_can_be_named() -> None:
    pairs = [(verdict(row["chosen"]), verdict(row["rejected"])) for row in rows_of("intelligence_pairs.json")]
    assert len(pairs) == 160 and all(chosen and chosen != rejected for chosen, rejected in pairs)
    kinds = [
        "form" if not other else "decision" if chosen[0] != other[0] else "rating" for chosen, other in pairs if chosen
    ]
    assert min(kinds.count(kind) for kind in ("form", "decision", "rating")) >= 20


def test_half_of_the_marked_answers_are_right() -> None:
    labels: list[Any] = [row["label"] for row in rows_of("intelligence_marked.json")]
    assert labels.count(True) == labels.count(False) == 40


@pytest.mark.parametrize(
    ("name", "list_of", "role"), [("sharegpt", "conversations", "from"), ("chatml", "messages", "role")]
)
def test_a_conversation_is_an_instruction_and_two_items_with_their_answers(name: str, list_of: str, role: str) -> None:
    talks: list[Any] = [row[list_of] for row in rows_of(f"intelligence_{name}.json")]
    turns = {tuple(turn[role] for turn in talk) for talk in talks}
    assert len(talks) == 60 and len(turns) == 1 and len(turns.pop()) == 5


def test_each_registered_set_names_its_file_and_every_column_it_needs() -> None:
    registered = json.loads((DATA / "dataset_info.json").read_text(encoding="utf-8"))
    assert {"intelligence_alpaca", "intelligence_alpaca_test", "quickstart_text"} <= registered.keys()
    for entry in registered.values():
        assert set(entry["columns"].values()) <= set(rows_of(entry["file_name"])[0])
        assert len(entry["columns"]) == len(rows_of(entry["file_name"])[0]) or entry["columns"] == {"prompt": "input"}


def test_the_data_stay_small() -> None:
    assert sum(path.stat().st_size for path in DATA.glob("*.json")) < 1_300_000

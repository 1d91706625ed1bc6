"""data clean: every kind of dirt is found with its reason, and no clean row is left out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import Command

from iis_finetune.tables import read

KINDS = read("row_kinds.toml")
DROPPED = {kind for kind, row in KINDS.items() if row["left_out"]} - {"cut"}  # known with a recipe only

BROKEN = "Die Größe der Tür, übermäßig schön – naïve café".encode().decode("cp1252", "replace")


def sentence(source: random.Random, words: int = 30) -> str:
    return " ".join(f"w{source.randrange(5000)}" for _ in range(words))


def talk(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


def pair(question: str, answer: str) -> dict[str, Any]:
    return talk(("human", question), ("gpt", answer))


@pytest.fixture
def dirty(project: Path) -> tuple[Path, dict[int, str], list[str]]:
    """Two hundred clean rows with dirt among them: the file, the kind of each dirty row, the clean lines."""
    source = random.Random(1)
    clean = [pair(sentence(source), sentence(source)) for _ in range(200)]
    first, second, third = (row["conversations"] for row in clean[:3])
    words = first[0]["value"].split()
    near = " ".join([*words[:12], "another", *words[13:]])
    planted: list[tuple[str, Any]] = [
        ("exact", clean[1]),
        ("exact", pair(second[0]["value"].upper() + " ?!", f"  {second[1]['value']}.")),
        ("near", pair(near, first[1]["value"])),
        ("empty", pair("who is there", "")),
        ("empty", pair("who is here", " \n\t ")),
        ("roles", talk(("human", "one"), ("human", "two"))),
        ("roles", talk(("human", "one"), ("gpt", "two"), ("human", "three"))),
        ("roles", talk(("human", "one"), ("robot", "two"))),
        ("unusable", {"conversations": "no messages"}),
        ("unusable", '{"conversations": [{"from": "human", "val'),
        ("control", pair("a bell \x07 rings", "yes it does")),
        ("mojibake", pair("was ist das", BROKEN)),
        ("conflict", pair(third[0]["value"], "something else altogether")),
    ]
    rows: list[tuple[str, Any]] = [("", row) for row in clean]
    for at, each in enumerate(planted):
        rows.insert(15 + 14 * at, each)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for _, row in rows]
    (project / "data" / "dirty.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    entry = {"file_name": "dirty.jsonl", "formatting": "sharegpt", "columns": {"messages": "conversations"}}
    (project / "data" / "dataset_info.json").write_text(json.dumps({"dirty": entry}), "utf-8")
    kinds = {number: kind for number, (kind, _) in enumerate(rows, 1) if kind}
    return project / "data", kinds, [line for line, (kind, _) in zip(lines, rows, strict=True) if kind not in DROPPED]


def told(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_thirteen_dirty_rows_of_eight_kinds_are_found_and_no_clean_one(
    quick: Command, dirty: tuple[Path, dict[int, str], list[str]]
) -> None:
    data, kinds, kept = dirty
    before = (data / "dirty.jsonl").read_bytes()
    done = quick("data", "clean", "dirty")
    assert done.returncode == 0, done.stderr
    print(f"\n{done.stdout}")
    found = told(data / "dirty_clean_found.jsonl")
    assert {row["row"]: row["kind"] for row in found} == kinds
    assert all(row["line"] == row["row"] and row["reason"] for row in found)
    assert {row["kind"] for row in found if row["left_out"]} == DROPPED
    assert {row["kind"] for row in found if not row["left_out"]} == set(KINDS) - DROPPED - {"cut"}
    assert (data / "dirty_clean.jsonl").read_text("utf-8").splitlines() == kept
    assert (data / "dirty.jsonl").read_bytes() == before
    checked = quick(*done.stdout.splitlines()[-1].removeprefix("next: iis-finetune ").split())
    assert checked.returncode == 0 and f"{len(kept)} usable, 0 would be dropped" in checked.stdout


def test_a_dry_run_shows_the_table_and_writes_nothing(
    quick: Command, dirty: tuple[Path, dict[int, str], list[str]]
) -> None:
    data, _, _ = dirty
    before = sorted(each.name for each in data.iterdir())
    done = quick("data", "clean", "dirty", "--dry-run")
    assert done.returncode == 0 and "213 rows, 202 stay" in done.stdout
    again = quick("data", "clean", "dirty", "--dry-run", "--fix-text", "--drop", "exact,near").stdout
    assert again.endswith("next: iis-finetune data clean dirty --drop exact,near --fix-text\n")
    assert sorted(each.name for each in data.iterdir()) == before
    assert json.loads(quick("data", "clean", "dirty", "--dry-run", "--json").stdout)["kept"] == 202


def test_only_the_kinds_that_are_named_are_left_out(
    quick: Command, dirty: tuple[Path, dict[int, str], list[str]]
) -> None:
    data, kinds, _ = dirty
    done = quick("data", "clean", "dirty", "--drop", "unusable, empty", "--name", "some")
    assert done.returncode == 0, done.stderr
    left = {row["row"] for row in told(data / "some_clean_found.jsonl") if row["left_out"]}
    assert left == {row for row, kind in kinds.items() if kind in ("unusable", "empty")}
    wrong = quick("data", "clean", "dirty", "--drop", "exakt")
    assert wrong.returncode == 2 and "did you mean 'exact'?" in wrong.stderr


def test_broken_text_is_mended_when_asked_for(quick: Command, dirty: tuple[Path, dict[int, str], list[str]]) -> None:
    data, _, _ = dirty
    done = quick("data", "clean", "dirty", "--fix-text")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" mended ") == 2
    text = (data / "dirty_clean.jsonl").read_text("utf-8")
    assert "Die Größe der Tür" in text and "a bell  rings" in text
    stay = {row["kind"] for row in told(data / "dirty_clean_found.jsonl") if not row["left_out"]}
    assert stay == {"mojibake", "control", "conflict"}


def test_what_a_recipe_would_cut_is_left_out_with_what_it_loses(quick: Command, project: Path) -> None:
    rows = [{"instruction": "count", "output": "few words"} for _ in range(5)]
    rows.insert(2, {"instruction": "count", "output": "0123456789 " * 200})
    rows.insert(4, {"instruction": "0123456789 " * 200, "output": "few words"})
    for number, row in enumerate(rows):
        row["instruction"] += f" {number}"
    (project / "data" / "long.json").write_text(json.dumps(rows), "utf-8")
    assert quick("data", "add", "data/long.json").returncode == 0
    alone = quick("data", "clean", "long", "--drop", "cut")
    assert alone.returncode == 2 and "--recipe RECIPE, whose cutoff_len cuts" in alone.stderr
    done = quick("data", "clean", "long", "--drop", "cut", "--recipe", "tiny")
    assert done.returncode == 0, done.stderr
    found = [row for row in told(project / "data" / "long_clean_found.jsonl") if row["kind"] == "cut"]
    assert [row["row"] for row in found] == [3, 5] and all(row["left_out"] for row in found)
    assert "the answer loses its end" in found[0]["reason"] and "the question loses its end" in found[1]["reason"]
    checked = quick("check", "tiny", "dataset=long_clean")
    assert checked.returncode == 0 and "cutoff_len" not in checked.stderr
    absent = quick("data", "clean", "long", "--recipe", "tiny", "--name", "other")
    assert absent.returncode == 0
    lacking = quick("data", "clean", "long", "--recipe", "qwen0_5b_lora", "--name", "more")
    assert lacking.returncode == 2, "the recipe is not here"


@pytest.mark.parametrize(
    "answers", [("yes", "no"), ("the long way round by the river", "through the woods and then left")]
)
def test_rows_that_answer_one_question_differently_are_told_and_none_is_chosen(
    quick: Command, project: Path, answers: tuple[str, str]
) -> None:
    source = random.Random(2)
    question = sentence(source, 60)
    rows = [{"instruction": question, "output": answer} for answer in answers]
    rows += [{"instruction": sentence(source), "output": sentence(source)} for _ in range(20)]
    (project / "data" / "some.json").write_text(json.dumps(rows), "utf-8")
    assert quick("data", "add", "data/some.json").returncode == 0
    done = json.loads(quick("data", "clean", "some", "--json").stdout)
    assert done["kept"] == 22 and done["found"]["conflict"] == [2]


def test_pairs_labels_and_texts_are_cleaned_as_well(quick: Command, project: Path) -> None:
    source = random.Random(3)
    texts = [{"text": sentence(source)} for _ in range(20)]
    marked = [{"instruction": sentence(source), "output": sentence(source), "label": bool(n % 2)} for n in range(20)]
    pairs = [{"instruction": sentence(source), "chosen": sentence(source), "rejected": "no"} for _ in range(20)]
    pairs.append({"instruction": sentence(source), "chosen": sentence(source), "rejected": " "})
    for name, rows, kept in (("texts", texts, 20), ("marked", marked, 20), ("pairs", pairs, 20)):
        (project / "data" / f"{name}.json").write_text(json.dumps([*rows, rows[3]]), "utf-8")
        assert quick("data", "add", f"data/{name}.json").returncode == 0
        done = json.loads(quick("data", "clean", name, "--json").stdout)
        assert (done["kept"], done["found"]["exact"]) == (kept, [len(rows) + 1])


def test_nothing_is_written_when_nothing_would_be_left(quick: Command, project: Path) -> None:
    (project / "data" / "none.json").write_text(json.dumps([{"instruction": "a", "output": ""}]), "utf-8")
    entry = {"file_name": "none.json"}
    (project / "data" / "dataset_info.json").write_text(json.dumps({"none": entry}), "utf-8")
    done = quick("data", "clean", "none")
    assert done.returncode == 2 and "no row would be left" in done.stderr
    assert not list((project / "data").glob("*none_clean*"))


def test_many_near_copies_of_one_row_are_left_out_but_its_first(quick: Command, project: Path) -> None:
    source = random.Random(4)
    rows = [{"instruction": sentence(source), "output": sentence(source)} for _ in range(300)]
    words = rows[7]["instruction"].split()
    for number in range(100):
        changed = [*words[: number % 30], f"new{number}", *words[number % 30 + 1 :]]
        rows.append({**rows[7], "instruction": " ".join(changed)})
    (project / "data" / "many.json").write_text(json.dumps(rows), "utf-8")
    assert quick("data", "add", "data/many.json").returncode == 0
    done = json.loads(quick("data", "clean", "many", "--json").stdout)
    assert done["kept"] == 300 and done["found"]["near"] == [*range(301, 401)]


def test_what_is_cleaned_can_be_split(quick: Command, dirty: tuple[Path, dict[int, str], list[str]]) -> None:
    assert quick("data", "clean", "dirty").returncode == 0
    done = quick("data", "split", "dirty_clean")
    assert done.returncode == 0, done.stderr
    checked = quick(*done.stdout.splitlines()[-1].removeprefix("next: iis-finetune ").split())
    assert checked.returncode == 0, checked.stderr


def test_what_contradicts_is_told_and_stays_and_what_is_no_row_never_does(quick: Command, project: Path) -> None:
    source = random.Random(3)
    question, good, bad = sentence(source, 40), sentence(source, 40), sentence(source, 40)
    marked = [{"instruction": question, "output": good, "kto_tag": mark} for mark in (True, False)]
    pairs = [{"instruction": question, "chosen": one, "rejected": two} for one, two in ((good, bad), (bad, good))]
    for name, rows, found in (("marked", marked, [2]), ("pairs", pairs, [])):
        (project / "data" / f"{name}.json").write_text(json.dumps(rows), "utf-8")
        assert quick("data", "add", f"data/{name}.json").returncode == 0
        done = json.loads(quick("data", "clean", name, "--json").stdout)
        assert done["kept"] == 2 and done["found"]["conflict"] == found, name
    lines = [json.dumps({"instruction": "a", "output": "b"}), "42", '{"instruction": "c", "out']
    (project / "data" / "odd.jsonl").write_text("\n".join([*lines, lines[0].replace("a", "d")]), "utf-8")
    registry = project / "data" / "dataset_info.json"
    registry.write_text(json.dumps({**json.loads(registry.read_text()), "odd": {"file_name": "odd.jsonl"}}))
    assert quick("data", "clean", "odd", "--drop", "exact").returncode == 0
    assert [row["instruction"] for row in told(project / "data" / "odd_clean.jsonl")] == ["a", "d"]


def test_what_is_mended_is_compared_as_it_will_stand(quick: Command, project: Path) -> None:
    source = random.Random(5)
    rows = [{"instruction": sentence(source), "output": sentence(source)} for _ in range(20)]
    rows += [{**rows[2], "output": rows[2]["output"] + "\x07\x07"}, {"instruction": "what", "output": "\x07"}]
    whole = {"instruction": "was ist das", "output": "Die Größe der Tür, übermäßig schön – naïve café"}
    rows += [whole, {**whole, "output": BROKEN}, {"instruction": "who", "output": "no\x07body"}]
    (project / "data" / "some.json").write_text(json.dumps(rows), "utf-8")
    assert quick("data", "add", "data/some.json").returncode == 0
    done = quick("data", "clean", "some", "--fix-text", "--json")
    found = {kind: rows for kind, rows in json.loads(done.stdout)["found"].items() if rows}
    assert found == {"exact": [21, 24], "empty": [22], "control": [25]}
    stay = told(project / "data" / "some_clean.jsonl")
    assert [row["output"] for row in stay] == [row["output"] for row in rows[:20]] + [whole["output"], "nobody"]
    why = {row["row"]: row for row in told(project / "data" / "some_clean_found.jsonl")}
    assert {number: why[number]["is"] for number in (21, 22, 24, 25)} == {
        number: rows[number - 1] for number in (21, 22, 24, 25)
    }

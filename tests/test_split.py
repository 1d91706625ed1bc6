"""data split: near rows stay on one side, and no row of an earlier split changes its side."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Command

from iis_finetune.dataset.made import making
from iis_finetune.dataset.registry import read_registry
from iis_finetune.dataset.split import SIDES
from iis_finetune.errors import ProblemsFound

Rows = list[dict[str, Any]]


def sentence(source: random.Random, words: int = 40) -> str:
    return " ".join(f"w{source.randrange(5000)}" for _ in range(words))


def original(count: int, seed: int) -> Rows:
    source = random.Random(seed)
    return [{"instruction": sentence(source), "output": sentence(source, 20)} for _ in range(count)]


def like(row: dict[str, Any], source: random.Random) -> dict[str, Any]:
    """The row with one word of its question replaced: a Jaccard of about 0.9."""
    words = row["instruction"].split()
    words[source.randrange(len(words))] = f"new{source.randrange(10**6)}"
    return {**row, "instruction": " ".join(words)}


def register(data: Path, name: str, rows: Rows) -> None:
    (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    registry = data / "dataset_info.json"
    entries = json.loads(registry.read_text("utf-8")) if registry.exists() else {}
    columns = {"prompt": "instruction", "response": "output"}
    entries[name] = {"file_name": f"{name}.jsonl", "columns": columns}
    registry.write_text(json.dumps(entries), "utf-8")


def rows_in(file: Path) -> Rows:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


@pytest.fixture
def sides(quick: Command, project: Path) -> Any:
    """Split rows under a new name; the instructions of both sides, and of what was left out."""
    data = project / "data"
    made = iter(range(100))

    def split(rows: Rows, *words: str) -> tuple[set[str], set[str], set[str]]:
        name = f"rows{next(made)}"
        register(data, name, rows)
        done = quick("data", "split", name, *words)
        assert done.returncode == 0, done.stderr
        parts = [{row["instruction"] for row in rows_in(data / f"{name}_{side}.jsonl")} for side in ("train", "test")]
        left = {row["is"]["instruction"] for row in rows_in(data / f"{name}_left_out.jsonl")}
        return parts[0], parts[1], left

    return split


def test_near_rows_planted_two_hundred_times_are_on_one_side(sides: Any) -> None:
    source, rows = random.Random(1), original(600, 2)
    twins = [(row, like(row, source)) for row in rows[:200]]
    train, test, left = sides(rows + [twin for _, twin in twins], "--test", "0.3")
    straddling = [
        one
        for one, other in twins
        if {one["instruction"], other["instruction"]} & train and {one["instruction"], other["instruction"]} & test
    ]
    print(f"\n200 planted twins: {len(straddling)} straddle, {len(left)} rows left out")
    assert straddling == [] and 0 < len(left) < 200
    assert len(train) + len(test) + len(left) == 800
    assert 0.2 < len(test) / (len(train) + len(test)) < 0.4


def test_two_hundred_near_copies_of_one_row_are_on_one_side(sides: Any) -> None:
    source, rows = random.Random(21), original(600, 22)
    copies = [rows[0], *(like(rows[0], source) for _ in range(200))]
    train, test, _ = sides(rows[1:] + copies)
    there = {row["instruction"] for row in copies}
    assert not (there & train and there & test) and there & (train | test)


def test_rows_with_a_common_instruction_are_held_out_as_others_are(sides: Any) -> None:
    rule = sentence(random.Random(23), 80)
    rows = [{"instruction": f"{rule}\n{row['instruction'][:60]}", "output": "yes"} for row in original(400, 24)]
    _, test, left = sides(rows, "--test", "0.2")
    assert not left and 50 < len(test) < 110


def test_the_order_of_the_rows_changes_nothing(sides: Any) -> None:
    source, rows = random.Random(3), original(300, 4)
    rows += [like(row, source) for row in rows[:60]]
    mixed = random.Random(5).sample(rows, len(rows))
    assert sides(rows) == sides(mixed)


def test_no_row_changes_its_side_when_a_tenth_is_added_near_ones_among_them(sides: Any) -> None:
    source, rows = random.Random(6), original(600, 7)
    rows += [like(row, source) for row in rows[:100]]
    added = original(35, 8) + [like(row, source) for row in rows[200:235]]
    train, test, left = sides(rows)
    new_train, new_test, new_left = sides(rows + added)
    old = {row["instruction"] for row in rows}
    print(f"\n{len(rows)} rows and {len(added)} more: {len(train & new_test) + len(test & new_train)} moved")
    assert not train & new_test and not test & new_train
    assert (new_left & old) - left <= {row["instruction"] for row in rows[200:235]}  # only what has a new twin


def test_a_row_near_rows_of_both_sides_is_on_one_of_them_or_left_out(sides: Any) -> None:
    """A row between two that are not near each other would join them: then one side goes."""
    source = random.Random(9)
    chains = []
    for row in original(150, 10):
        words = row["instruction"].split()
        middle, end = list(words), list(words)
        middle[5] = middle[6] = f"m{source.randrange(10**6)}"
        end[5], end[6], end[30], end[31] = middle[5], middle[6], "q1", f"q{source.randrange(10**6)}"
        chains.append([" ".join(each) for each in (words, middle, end)])
    rows = [{"instruction": text, "output": "yes"} for chain in chains for text in chain]
    train, test, left = sides(rows, "--test", "0.4")
    assert all(not (set(chain) & train and set(chain) & test) for chain in chains)
    assert left


def test_rows_that_share_a_value_stay_together(sides: Any) -> None:
    rows = [{**row, "user": f"u{number % 40}"} for number, row in enumerate(original(400, 11))]
    train, test, left = sides(rows, "--by", "user", "--test", "0.25")
    of_train, of_test = ({row["user"] for row in rows if row["instruction"] in side} for side in (train, test))
    assert not of_train & of_test and not left
    assert len(of_train | of_test) == 40


def test_every_class_of_answers_is_held_out_at_about_its_share(sides: Any) -> None:
    rows = [{**row, "output": "yes" if number % 4 else "no"} for number, row in enumerate(original(1200, 12))]
    _, test, _ = sides(rows, "--test", "0.2")
    held = [row["output"] for row in rows if row["instruction"] in test]
    assert 0.15 < held.count("no") / 300 < 0.25 and 0.17 < held.count("yes") / 900 < 0.23


def test_another_seed_holds_out_other_rows(sides: Any) -> None:
    rows = original(200, 13)
    assert sides(rows)[1] != sides(rows, "--seed", "7")[1]


def test_what_is_made_can_be_read_and_the_original_stays(quick: Command, project: Path) -> None:
    file = project / "data" / "intelligence_sharegpt.json"
    shutil.copyfile(ROOT / "data" / file.name, file)
    entry = json.loads((ROOT / "data" / "dataset_info.json").read_text("utf-8"))[file.stem]
    (project / "data" / "dataset_info.json").write_text(json.dumps({file.stem: entry}), "utf-8")
    before = file.read_bytes()
    done = quick("data", "split", "intelligence_sharegpt", "--test", "0.2")
    assert done.returncode == 0, done.stderr
    next_ = done.stdout.splitlines()[-1].removeprefix("next: iis-finetune ").split()
    checked = quick(*next_)
    assert checked.returncode == 0, checked.stderr
    assert "0 would be dropped" in checked.stdout
    assert file.read_bytes() == before
    again = quick("data", "split", "intelligence_sharegpt")
    assert again.returncode == 2 and "is there already" in again.stderr and "--name NAME" in again.stderr
    told = json.loads(quick("data", "split", "intelligence_sharegpt", "--name", "other", "--json").stdout)
    assert sum(told["rows"].values()) == 60 and [*told["rows"]] == ["other_train", "other_test", "other_left_out"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "data set 'nothing' is not in"),
        (("few", "--test", "1.5"), "1.5 is no share of the rows"),
        (("few", "--by", "usr"), "no row has a value in a column 'usr'"),
        (("few", "--by", "input"), "the column 'input' is empty in every row"),
        (("few", "--name", "../few"), "'../few_train' cannot name a data set"),
        (("few", "--test", "0.0001"), "none of 5 rows would be held out"),
        (("broken",), "leave such rows out: iis-finetune data clean broken"),
    ],
)
def test_a_mistake_gets_a_sentence_and_nothing_is_written(
    quick: Command, project: Path, words: tuple[str, ...], said: str
) -> None:
    data = project / "data"
    register(data, "few", [{**row, "input": ""} for row in original(5, 14)])
    register(data, "broken", original(5, 15))
    with (data / "broken.jsonl").open("a") as file:
        file.write('{"instruction": "half')
    before = sorted((each.name, each.stat().st_size) for each in data.iterdir())
    done = quick("data", "split", *words)
    assert done.returncode == 2 and said in done.stderr
    assert sorted((each.name, each.stat().st_size) for each in data.iterdir()) == before


def written(data: Path) -> int:
    """The bytes of files that have no name yet."""
    with suppress(FileNotFoundError):
        return sum(each.stat().st_size for each in data.glob(".*/*many*"))
    return 0


@pytest.fixture
def ended(project: Path) -> Callable[[str, signal.Signals], int]:
    """Start a verb on many rows, end it when it has begun to write, and wait for its exit code."""

    def call(verb: str, how: signal.Signals) -> int:
        data = project / "data"
        words = [sys.executable, "-m", "iis_finetune", "data", verb, "many"]
        words += ["--drop", "exact"] if verb == "clean" else ["--by", "instruction"]
        started = subprocess.Popen(words, cwd=project, env={"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 120
            while not written(data) and started.poll() is None and time.monotonic() < until:
                time.sleep(0.002)
            assert written(data), "it never began to write"
            started.send_signal(how)
            return started.wait(60)
        finally:
            started.kill()

    base = original(300, 16)
    rows = [{**row, "output": f"{row['output']} {number}"} for number in range(40) for row in base]
    register(project / "data", "many", rows)
    return call


@pytest.mark.parametrize("verb", ["split", "clean"])
def test_ctrl_c_leaves_nothing_half_written(project: Path, verb: str, ended: Any) -> None:
    data = project / "data"
    before = sorted((each.name, each.stat().st_size) for each in data.iterdir())
    assert ended(verb, signal.SIGINT) == 130
    assert sorted((each.name, each.stat().st_size) for each in data.iterdir()) == before


def test_what_a_killed_verb_left_is_put_away_by_the_next_and_a_users_file_is_not(
    quick: Command, project: Path, ended: Any
) -> None:
    data = project / "data"
    (data / ".2024-notes.jsonl").write_text("my own\n")
    register(data, "few", original(40, 17))
    before = {each.name for each in data.iterdir()}
    assert ended("clean", signal.SIGKILL) == -signal.SIGKILL
    (left,) = {each.name for each in data.iterdir()} - before
    os.utime(data / left, (1, 1))
    assert quick("data", "split", "few").returncode == 0
    assert {each.name for each in data.iterdir()} - before == {f"few_{side}.jsonl" for side in SIDES}


def test_of_two_that_make_the_same_names_the_first_keeps_its_files(
    quick: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"instruction": f"say {number}", "output": "yes"} for number in range(4)]
    (project / "data" / "some.json").write_text(json.dumps(rows), "utf-8")
    assert quick("data", "add", "data/some.json").returncode == 0
    data = project / "data"
    with (
        pytest.raises(ProblemsFound, match=r"new\.jsonl is there already"),
        making("some", data, ("new", "why")) as late,
    ):
        late.streams[0].write(b"late\n")
        with monkeypatch.context() as patched:
            patched.setattr(os, "getpid", lambda: 1)
            with making("some", data, ("new", "why")) as early:
                early.streams[0].write(b"early\n")
    assert (data / "new.jsonl").read_bytes() == b"early\n" and (data / "why.jsonl").is_file()
    assert not list(data.glob(".iis*")) and "new" in read_registry(data).entries


def test_entries_that_several_processes_add_at_once_are_all_there(project: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from iis_finetune.dataset.registry import enter\n"
        "for number in range(20): enter(Path('data'), {f'{sys.argv[1]}{number}': {'file_name': 'little.json'}})"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, name], cwd=project) for name in "abc"]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert {f"{name}{number}" for name in "abc" for number in range(20)} <= set(read_registry(project / "data").entries)


def test_pairs_that_were_split_are_named_as_their_recipe_takes_them(quick: Command, project: Path) -> None:
    source = random.Random(5)
    rows = [
        {"instruction": sentence(source), "chosen": sentence(source), "rejected": sentence(source)} for _ in range(40)
    ]
    rows += [{**row, "rejected": sentence(source)} for row in rows]
    (project / "data" / "pairs.json").write_text(json.dumps(rows), "utf-8")
    assert quick("data", "add", "data/pairs.json").returncode == 0
    done = quick("data", "split", "pairs", "--test", "0.2")
    assert done.returncode == 0, done.stderr
    words = next(line for line in done.stdout.splitlines() if "with: " in line).partition("with: ")[2].split()
    checked = quick("check", "tiny", *words)
    assert checked.returncode == 0 and "too good" not in checked.stderr, checked.stderr


def test_a_class_without_a_held_out_row_is_told(quick: Command, project: Path) -> None:
    rows = [{**row, "output": "yes"} for row in original(60, 18)]
    rows[20]["output"] = rows[40]["output"] = "rare"
    register(project / "data", "some", rows)
    told = json.loads(quick("data", "split", "some", "--name", "one", "--json").stdout)
    assert told["not_held_out"] == {"rare": 2}
    done = quick("data", "split", "some")
    assert "none held out: 2 rows with the answer 'rare'" in done.stdout
    register(project / "data", "all", original(60, 19))
    assert json.loads(quick("data", "split", "all", "--json").stdout)["not_held_out"] == {}


def test_rows_without_the_value_go_each_by_itself_and_are_counted(sides: Any, quick: Command, project: Path) -> None:
    rows = [{**row, "user": f"u{number % 40}"} for number, row in enumerate(original(400, 20))]
    for number, row in enumerate(rows[:200]):
        row["user"] = ("", None, "  ")[number % 3]
    rows += [{**row} for row in original(3, 25)]
    train, test, _ = sides(rows, "--by", "user", "--test", "0.25")
    without = {row["instruction"] for row in rows if not str(row.get("user") or "").strip()}
    assert 25 < len(without & test) < 75 and len(without & train) > 100
    register(project / "data", "some", rows)
    done = quick("data", "split", "some", "--by", "user", "--test", "0.25")
    assert "without 'user': 203 rows, each on a side by itself" in done.stdout


def test_near_copies_that_were_taken_for_a_template_are_counted(quick: Command, project: Path) -> None:
    source, rows = random.Random(26), original(200, 27)
    rows += [like(rows[0], source) for _ in range(150)]
    register(project / "data", "some", rows)
    told = json.loads(quick("data", "split", "some", "--name", "one", "--json").stdout)
    assert 140 <= told["template"] <= 151
    for verb in ("split", "clean"):
        assert f"{told['template']} rows share 70% of their words or more" in quick("data", verb, "some").stdout

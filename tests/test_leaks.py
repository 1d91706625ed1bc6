"""The leak gate: held-out rows that the training sees are named, and nothing is said where there are none."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import RECIPE, ROOT, Command

from iis_finetune import dataset, recipe
from iis_finetune.arguments import settings_of
from iis_finetune.errors import Place
from iis_finetune.evaluate.answers import Evaluation, Material, material
from iis_finetune.plan.after import Trained, Weights
from iis_finetune.preflight import TRAINED_ON
from iis_finetune.runs import Run

Rows = list[dict[str, Any]]
EXACT, NEAR = (3, 21, 40, 77, 100), (5, 22, 41, 78, 99)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [a + b + c for a in "bdfglmnprt" for b in "aeiou" for c in LETTERS]


def sentence(of: random.Random, words: int = 30) -> str:
    return " ".join(of.choice(WORDS) for _ in range(words))


def made(seed: int, count: int) -> Rows:
    of = random.Random(seed)
    chinese = ["".join(chr(0x4E00 + of.randrange(2000)) for _ in range(40)) for _ in range(count)]
    return [{"instruction": chinese[n] if n % 2 else sentence(of), "output": sentence(of, 12)} for n in range(count)]


def planted(held: Rows, trained: Rows) -> None:
    """Five held-out rows in other spelling, and five with one word or letter changed, among the training rows."""
    for at, number in enumerate(EXACT):
        row = held[number - 1]
        levelled = row["instruction"].upper().replace(" ", "  ") + " ！"
        trained.insert(7 * at, {"instruction": levelled, "output": f" {row['output'].title()}.\n"})
    for number in NEAR:
        row = held[number - 1]
        trained.append({"instruction": row["instruction"], "output": row["output"].rpartition(" ")[0] + " other"})


def written(project: Path, **data: Rows) -> None:
    columns = {"prompt": "instruction", "response": "output"}
    for name, rows in data.items():
        (project / "data" / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    registry = {name: {"file_name": f"{name}.json", "columns": columns} for name in data}
    (project / "data" / "dataset_info.json").write_text(json.dumps(registry), encoding="utf-8")


Told = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def leaks(quick: Command) -> Told:
    """The leaks that `check` finds in data sets of the project."""

    def call(*words: str) -> list[dict[str, Any]]:
        done = quick("check", "tiny", "--json", "dataset=trained", *words)
        assert done.returncode == 0, done.stdout
        return [each for each in json.loads(done.stdout)["problems"] if each["kind"] == "leak"]

    return call


@pytest.mark.parametrize("key", ["eval_dataset", "kit.evaluate_after"])
def test_planted_leaks_are_named_exact_ones_always_near_ones_with_full(key: str, project: Path, leaks: Told) -> None:
    held, trained = made(1, 100), made(2, 300)
    planted(held, trained)
    written(project, held=held, trained=trained)
    (quickly,) = leaks(f"{key}=held")
    assert (quickly["severity"], quickly["key"], quickly["leak"]["near"]) == ("warning", key, False)
    exact = {
        row: {"row": row, "trained": "trained", "trained_row": 1 + 7 * at, "recipe": None}
        for at, row in enumerate(EXACT)
    }
    near = {
        row: {"row": row, "trained": "trained", "trained_row": 306 + at, "recipe": None} for at, row in enumerate(NEAR)
    }
    assert quickly["leak"]["found"] == [{**leak, "exact": True} for leak in exact.values()]
    (fully,) = leaks(f"{key}=held", "--full")
    found = [{**leak, "exact": row in exact} for row, leak in sorted({**exact, **near}.items())]
    whole = {
        "data": "held",
        "held_out": True,
        "rows": 100,
        "compared": 310,
        "complete": True,
        "near": True,
        "template": 0,
    }
    assert fully["leak"] == {**whole, "found": found}
    assert fully["what"] == (
        "10 of the 100 held-out rows of 'held' are training rows, 5 of them with small changes "
        "(row 3, 5, 21, 22, 40, 41, 77, 78, 99, 100): these figures would be too good"
    )
    assert fully["fix"].endswith("iis-finetune data split trained --test 0.1")


@pytest.mark.parametrize("word", ["--full", "max_samples=290"])
def test_without_a_leak_nothing_is_said(word: str, project: Path, leaks: Told) -> None:
    written(project, held=made(1, 100), trained=made(2, 300))
    assert leaks("kit.evaluate_after=held", word) == []
    assert leaks("val_size=0.5", "eval_strategy=epoch", word) == []


def test_rows_that_are_not_trained_on_are_no_leak(project: Path, leaks: Told) -> None:
    held, trained = made(1, 100), made(2, 300)
    written(project, held=held, trained=[*trained, *held[:4], {"instruction": "x", "output": None}])
    (found,) = leaks("kit.evaluate_after=held")
    assert [each["trained_row"] for each in found["leak"]["found"]] == [301, 302, 303, 304]
    for full in ((), ("--full",)):
        assert leaks("kit.evaluate_after=held", "max_samples=300", *full) == []


def test_what_was_not_read_is_said_not_to_be_compared(
    project: Path, leaks: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, trained = made(1, 100), made(2, 300)
    written(project, held=held, trained=[*held[:1], *trained, *held[1:3]])
    monkeypatch.setattr(dataset, "LIMIT", 300)
    (found,) = leaks("kit.evaluate_after=held")
    assert (len(found["leak"]["found"]), found["leak"]["complete"]) == (1, False)
    assert "(row 1; 300 training rows were compared)" in found["what"]


def test_rows_that_stand_twice_leak_out_of_the_part_that_val_size_holds_out(project: Path, leaks: Told) -> None:
    rows = made(2, 300)
    written(project, trained=[*rows[:200], *rows[:3], rows[0]], more=[*rows[200:], rows[1]])
    first, second = leaks("dataset=trained,more", "val_size=0.1", "eval_strategy=epoch")
    assert (first["key"], first["leak"]["held_out"], first["leak"]["rows"]) == ("val_size", False, 204)
    pairs = [
        (leak["row"], leak["trained"], leak["trained_row"])
        for each in (first, second)
        for leak in each["leak"]["found"]
    ]
    assert pairs == [
        (201, "trained", 1),
        (202, "trained", 2),
        (203, "trained", 3),
        (204, "trained", 1),
        (101, "trained", 2),
    ]
    assert first["what"] == (
        "4 of the 204 rows of 'trained' repeat others, and of these val_size holds out rows that are trained on "
        "(row 201, 202, 203, 204): these figures would be too good"
    )


def test_no_key_is_made_where_nothing_is_held_out(project: Path, leaks: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[int] = []
    real = dataset.rows.row_key

    def counting(sample: Any) -> bytes:
        keys.append(1)
        return real(sample)

    monkeypatch.setattr(dataset.rows, "row_key", counting)
    written(project, held=made(1, 100), trained=made(2, 300))
    assert (leaks(), len(keys)) == ([], 0)
    assert (leaks("kit.evaluate_after=held"), len(keys)) == ([], 400)


def test_each_file_is_read_once(project: Path, leaks: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Counter[str] = Counter()
    real = dataset.rows.read_rows

    def counting(file: Any, kind: str) -> Any:
        opened[Path(file.name).name] += 1
        return real(file, kind)

    monkeypatch.setattr(dataset.rows, "read_rows", counting)
    written(project, held=made(1, 100), trained=made(2, 300))
    leaks("kit.evaluate_after=held")
    assert opened == {"held.json": 1, "trained.json": 1}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: str(path.stem))
def test_the_recipes_hold_out_rows_that_they_do_not_train_on(path: Path) -> None:
    own, _ = recipe.read(str(path))
    settings, _ = settings_of(own)
    stage, answers = settings["stage"], "pt" if settings["stage"] == "pt" else "sft"
    if not own.kit.evaluate_after:
        return
    trained = read(settings.names(TRAINED_ON), stage)
    (held,) = read([own.kit.evaluate_after], answers)
    found = dataset.leaks_of(held, trained, near=True)
    assert (found.found, found.near, found.complete, found.rows) == ((), True, True, 100)


def read(names: Sequence[str], stage: str) -> list[dataset.Read]:
    sources, problems = dataset.check_registered(list(names), ROOT / "data", stage, Place())
    assert sources and not problems
    options = dataset.Options(stage, None, keyed=True)
    return [dataset.Read(each, options, dataset.check_rows(each, options)) for each in sources]


def based(project: Path, base: str) -> None:
    """The recipe `tiny` goes on from `first`, which goes on from `bottom`; both were trained on another data set."""
    for name, data, below in (("bottom", base, ""), ("first", "little", "bottom"), ("tiny", "little", "first")):
        text = RECIPE.replace("dataset: little", f"dataset: {data}")
        if below:
            text = text.replace("kit:\n", f"kit:\n  base: {below}\n").replace("model_name_or_path: models/tiny\n", "")
        (project / "recipes" / f"{name}.yaml").write_text(text)


def test_rows_that_a_recipe_below_was_trained_on_leak_and_it_is_named(project: Path, leaks: Told) -> None:
    held, trained, base = made(1, 100), made(2, 300), made(3, 40)
    rows = [{"instruction": f"say {n}", "output": f"it is {n * 7}"} for n in range(32)]
    written(project, held=held, trained=[held[0], *trained], base=[*base, *held[4:6]], little=rows)
    based(project, "base")
    (found,) = leaks("kit.evaluate_after=held")
    told = [(each["row"], each["trained"], each["trained_row"], each["recipe"]) for each in found["leak"]["found"]]
    assert told == [(1, "trained", 1, None), (5, "base", 41, "bottom"), (6, "base", 42, "bottom")]
    assert found["what"].startswith(
        "3 of the 100 held-out rows of 'held' are training rows, 2 of them of the base recipe 'bottom' (row 1, 5, 6)"
    )
    based(project, "trained")
    (chance,) = leaks("val_size=0.1", "eval_strategy=epoch")
    assert len(chance["leak"]["found"]) == 301 and "301 of them of the base recipe 'bottom'" in chance["what"]
    assert chance["fix"] == "hold out rows that have no twin", (
        "its own split would hold out what the base was trained on"
    )
    based(project, "base")
    near = [{**row, "output": row["output"].rpartition(" ")[0] + " other"} for row in held[7:9]]
    written(project, held=held, trained=trained, base=[*base, *near], little=rows)
    assert leaks("kit.evaluate_after=held") == []
    (fully,) = leaks("kit.evaluate_after=held", "--full")
    assert [(each["row"], each["recipe"], each["exact"]) for each in fully["leak"]["found"]] == [
        (8, "bottom", False),
        (9, "bottom", False),
    ]


def test_the_fix_is_a_command_that_works_or_another_one(project: Path, leaks: Told, quick: Command) -> None:
    held, trained = made(1, 100), made(2, 300)
    written(project, held=held, trained=[*trained, held[0]])
    command = leaks("kit.evaluate_after=held")[0]["fix"].partition(": ")[2]
    assert quick(*command.split()[1:]).returncode == 0
    assert "iis-finetune" not in leaks("kit.evaluate_after=held")[0]["fix"], "the names are taken by now"
    other = project / "elsewhere"
    (project / "data").rename(other)
    (project / "data").mkdir()
    written(project, held=held, trained=trained[:3])
    (found,) = leaks("kit.evaluate_after=held", "dataset_dir=elsewhere")
    assert found["fix"] == "hold out rows that have no twin"


def test_rows_that_were_taken_for_a_template_are_told_with_full(project: Path, quick: Command) -> None:
    of = random.Random(7)
    words = sentence(of, 60).split()
    copies = [" ".join([*words[: n % 60], f"new{n}", *words[n % 60 + 1 :]]) for n in range(140)]
    rows = [{"instruction": text, "output": "yes"} for text in copies]
    written(project, held=rows[:10], trained=[*rows[10:], *made(2, 200)])
    words_ = ("check", "tiny", "dataset=trained", "kit.evaluate_after=held")
    assert "taken for a template" not in quick(*words_).stderr
    assert "140 rows share 70% of their words or more with over 30% of the rows" in quick(*words_, "--full").stderr


@pytest.fixture
def evaluated(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Material]:
    """The rows of `held` made ready for the evaluation of a run of `tiny`, which was trained on `trained`."""
    made_by = Run(project / "runs" / "0001-tiny")
    made_by.folder.mkdir(parents=True)
    data, model = project / "data", project / "models" / "tiny"
    arguments = {"stage": "sft", "template": "qwen", "dataset": "trained", "dataset_dir": str(data)}
    trained = Trained("tuned", {**arguments, "model_name_or_path": str(model), "cutoff_len": 4096}, Weights(str(model)))

    def call() -> Material:
        monkeypatch.chdir(project)
        made_by.recipe.write_text((project / "recipes" / "tiny.yaml").read_text())
        return material(Evaluation(made_by, "held", {}), trained)

    return call


def test_an_evaluation_names_the_recipe_below_that_was_trained_on_its_rows(
    project: Path, evaluated: Callable[[], Material]
) -> None:
    held = made(1, 20)
    little = [{"instruction": "a", "output": "b"}]
    written(project, held=held, trained=made(2, 30), base=[*made(3, 30), held[6]], little=little)
    based(project, "base")
    found = evaluated()
    assert found.leaks and [(each.row, each.recipe) for each in found.leaks.found] == [(7, "bottom")]
    assert found.seen == (6,) and "1 of them of the base recipe 'bottom'" in found.cut[-1]


def test_an_evaluation_says_which_training_rows_it_cannot_compare_with(
    project: Path, evaluated: Callable[[], Material]
) -> None:
    written(project, held=made(1, 20), trained=made(2, 30), base=made(3, 30), little=made(4, 5))
    based(project, "base")
    assert evaluated().cut == ()
    (project / "data" / "base.json").unlink()
    assert len(told := evaluated().cut) == 1 and "base.json is not there" in told[0]
    (project / "data" / "trained.json").unlink()
    assert [line.startswith("leaks could not be looked for") for line in evaluated().cut] == [True, True]
    (project / "recipes" / "first.yaml").unlink()
    assert "trained.json" in (told := evaluated().cut)[0] and "first" in told[1]

"""Registration, rows, truncation and adding of data sets."""
# ruff: noqa: E501 - a table reads best with one case a line

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from dataset_cases import CASES, GOOD, STOPS, TALK, Case, alpaca, array, chat, lines, pair, save_byte_tokenizer, talk

from iis_finetune import dataset
from iis_finetune.arguments import Template, find_template
from iis_finetune.errors import Place, Problem, ProblemsFound, errors_of

RECIPE = Place("recipes/mine.yaml", 9, "dataset")


def register(folder: Path, entry: dict[str, Any], body: bytes = lines(GOOD), name: str = "data.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(body)
    (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": name, **entry}}, indent=2), "utf-8")
    return folder


def add(file: Path, data_dir: Path, **options: Any) -> dataset.Added:
    return dataset.add(dataset.OwnFile(path=file, **options), data_dir)


def checked(case: Case, folder: Path) -> tuple[dataset.Reading | None, list[Problem]]:
    register(folder, case.entry, case.body, f"data{case.suffix}")
    stage = "ppo" if case.generate else case.stage
    sources, problems = dataset.check_registered("mine", folder, stage, RECIPE)
    if not sources:
        return None, problems
    options = dataset.Options(case.stage, generate=case.generate, template=find_template("qwen"))
    report = dataset.check_rows(sources[0], options)
    return report, [*problems, *report.problems]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_each_file_gets_the_verdict_llamafactory_gives_it(case: Case, tmp_path: Path) -> None:
    report, problems = checked(case, tmp_path)
    assert (STOPS if errors_of(problems) else report and report.kept) == case.kept, problems
    if case.says is None:
        assert problems == []
        return
    if report is None:
        return
    (found,) = [problem for problem in problems if case.says in problem.what]
    assert found.where.file == str(tmp_path / f"data{case.suffix}")
    if case.row:
        assert found.where.key == f"row {case.row}"


def test_rows_after_the_limit_are_not_read_and_the_report_says_so(tmp_path: Path) -> None:
    (source,), _ = dataset.check_registered(
        "mine", register(tmp_path, {}, lines(*[GOOD] * 30, alpaca(None))), "sft", RECIPE
    )
    assert dataset.check_rows(source, dataset.Options("sft", limit=30)).complete is False
    whole = dataset.check_rows(source, dataset.Options("sft", limit=31))
    assert (whole.complete, whole.rows, whole.kept, whole.dropped) == (True, 31, 30, 1)


def test_rows_after_max_samples_are_neither_kept_nor_dropped(tmp_path: Path) -> None:
    (source,), _ = dataset.check_registered(
        "mine", register(tmp_path, {}, lines(*[GOOD] * 3, alpaca(None))), "sft", RECIPE
    )
    report = dataset.check_rows(source, dataset.Options("sft", max_samples=2))
    assert (report.rows, report.kept, report.dropped, report.problems) == (4, 2, 0, ())


def test_an_array_is_read_in_pieces_that_cut_rows_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        alpaca(f"答案 {n} " + '{"a": [1, "]"]}' * (n % 7), n=n * 1.5e10, deep={"x": [None, True]}) for n in range(200)
    ]
    (source,), _ = dataset.check_registered("mine", register(tmp_path, {}, array(*rows), "data.json"), "sft", RECIPE)
    for characters in (64, 257, 1 << 22):
        monkeypatch.setattr("iis_finetune.dataset.readers.CHUNK_CHARACTERS", characters)
        report = dataset.check_rows(source, dataset.Options("sft"))
        assert (report.rows, report.kept, report.problems) == (200, 200, ())


def test_a_fault_in_an_array_is_given_with_its_line(tmp_path: Path) -> None:
    (source,), _ = dataset.check_registered(
        "mine", register(tmp_path, {}, array(GOOD, GOOD, alpaca(None)), "data.json"), "sft", RECIPE
    )
    (problem,) = dataset.check_rows(source, dataset.Options("sft")).problems
    assert problem.where == Place(str(tmp_path / "data.json"), 12, "row 3")
    assert problem.severity == "warning"


def test_parquet_and_arrow_files_are_read(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.Table.from_pylist([GOOD, alpaca(None)])
    tmp_path.joinpath("data.parquet").touch()
    parquet.write_table(table, tmp_path / "data.parquet")
    with arrow.ipc.new_stream(str(tmp_path / "data.arrow"), table.schema) as writer:
        writer.write_table(table)
    for name in ("data.parquet", "data.arrow"):
        body = (tmp_path / name).read_bytes()
        (source,), _ = dataset.check_registered("mine", register(tmp_path, {}, body, name), "sft", RECIPE)
        report = dataset.check_rows(source, dataset.Options("sft"))
        assert (report.kept, report.dropped) == (1, 1)


def test_progress_ends_no_higher_than_one(tmp_path: Path) -> None:
    (source,), _ = dataset.check_registered("mine", register(tmp_path, {}, lines(*[GOOD] * 5000)), "sft", RECIPE)
    seen: list[float] = []
    dataset.check_rows(source, dataset.Options("sft"), progress=seen.append)
    assert len(seen) == 2 and 0 < seen[0] < seen[1] <= 1


ENTRIES: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("unknown key", {"colums": {}}, "sft", "'colums'", "columns"),
    ("unknown column", {"columns": {"promt": "a", "response": "output"}}, "sft", "'promt'", "prompt"),
    ("unknown tag", {"formatting": "sharegpt", "tags": {"role": "from"}}, "sft", "'role'", "role_tag"),
    ("columns are a list", {"columns": ["instruction"]}, "sft", "'columns' is not an object", "columns"),
    (
        "no answer among the columns",
        {"columns": {"prompt": "instruction"}},
        "sft",
        "does not name 'response'",
        "response",
    ),
    (
        "no messages among the columns",
        {"formatting": "sharegpt", "columns": {"system": "s"}},
        "sft",
        "'messages'",
        "messages",
    ),
    ("no pair among the columns", {"ranking": True}, "dpo", "does not name 'chosen'", "chosen"),
    ("no label among the columns", {}, "kto", "does not name 'kto_tag'", "kto_tag"),
    (
        "tags without the user",
        {"formatting": "sharegpt", "tags": {"role_tag": "role"}},
        "sft",
        "no 'user_tag'",
        "user_tag",
    ),
    ("not ranked", {}, "rm", "needs ranked pairs", "ranking"),
    ("ranked", {"ranking": True}, "sft", "cannot train stage sft", "rm or dpo"),
    ("ranking in quotes", {"ranking": "true"}, "sft", "'ranking' is 'true'", "without quotes"),
    ("unknown formatting", {"formatting": "chatml"}, "sft", "'formatting' is 'chatml'", "sharegpt"),
    ("no samples", {"num_samples": 0}, "sft", "'num_samples' is 0", "above 0"),
    ("samples in quotes", {"num_samples": "5"}, "sft", "'num_samples' is '5'", "above 0"),
    ("another split", {"split": "test"}, "sft", "'split' is 'test'", "train"),
    ("a loading script", {"script_url": "x.py"}, "sft", "loading scripts", "file_name"),
    ("cloud file", {"cloud_file_name": "http://x/y.json"}, "sft", "cannot be loaded", "s3://"),
    ("missing file", {"file_name": "other.json"}, "sft", "is not there", "file_name"),
    ("no source", {"file_name": None}, "sft", "names no data", "file_name"),
]


@pytest.mark.parametrize(("name", "entry", "stage", "what", "fix"), ENTRIES, ids=lambda value: str(value)[:30])
def test_each_mistake_in_an_entry_is_named_with_its_line(
    name: str, entry: dict[str, Any], stage: str, what: str, fix: str, tmp_path: Path
) -> None:
    sources, problems = dataset.check_registered("mine", register(tmp_path, entry), stage, RECIPE)
    found = [problem for problem in problems if what in problem.what]
    assert len(found) == 1 and fix in found[0].fix and found[0].exit_code == 2, problems
    assert found[0].where.file == str(tmp_path / "dataset_info.json")
    text = (tmp_path / "dataset_info.json").read_text("utf-8").splitlines()
    assert found[0].where.line and (found[0].where.key or "").split(".")[-1] in text[found[0].where.line - 1]
    assert sources == []


def test_what_is_not_registered_is_said_at_the_recipes_line(tmp_path: Path) -> None:
    _, (problem,) = dataset.check_registered("mien", register(tmp_path, {}), "sft", RECIPE)
    assert (problem.where, problem.kind, problem.exit_code) == (RECIPE, "missing", 2)
    assert "did you mean 'mine'?" in problem.fix
    _, (part, hub) = dataset.check_registered(["mine#500", "tatsu-lab/alpaca"], tmp_path, "sft", RECIPE)
    assert "'dataset: mine' and 'max_samples: 500'" in part.fix and hub.fix.endswith("data add tatsu-lab/alpaca")
    _, both = dataset.check_registered(["other", "another"], tmp_path, "sft", RECIPE)
    assert ["'other'" in both[0].what, "'another'" in both[1].what] == [True, True]


def test_llamafactorys_examples_are_said_to_lie_in_its_repository(tmp_path: Path) -> None:
    _, found = dataset.check_registered(["identity", "alpaca_en_demo"], register(tmp_path, {}), "sft", RECIPE)
    assert ["data/identity.json" in found[0].fix, "data/alpaca_en_demo.json" in found[1].fix] == [True, True]


def test_labelled_rows_cannot_train_stage_sft_also_when_the_file_is_not_here_yet(tmp_path: Path) -> None:
    columns = {"prompt": "instruction", "response": "output", "kto_tag": "label"}
    register(tmp_path, {"columns": columns}).joinpath("data.jsonl").unlink()
    _, problems = dataset.check_registered("mine", tmp_path, "sft", RECIPE)
    assert [each.where.key for each in problems if "drops them all" in each.what] == ["mine.kto_tag"]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('{\n "a": {"file_name": "x.json"},\n}', 3, "not JSON"),
        ("[]", 1, "not JSON"),
        ('{"a": {}', 1, "not JSON"),
        ("", 1, "not JSON"),
    ],
)
def test_a_broken_registry_is_one_problem_with_its_line(text: str, line: int, what: str, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text(text, "utf-8")
    _, (problem,) = dataset.check_registered("a", tmp_path, "sft", RECIPE)
    assert what in problem.what and problem.where.line == line and problem.exit_code == 2


def test_a_registry_that_is_missing_or_not_utf8_is_one_problem(tmp_path: Path) -> None:
    _, (problem,) = dataset.check_registered("a", tmp_path, "sft", RECIPE)
    assert "is not there" in problem.what and problem.exit_code == 2
    (tmp_path / "dataset_info.json").write_bytes('{\n"数据": {}}'.encode("gbk"))
    _, (problem,) = dataset.check_registered("a", tmp_path, "sft", RECIPE)
    assert "not UTF-8" in problem.what and problem.where.line == 2


@pytest.mark.parametrize(("encoding", "count"), [("utf-8", 0), ("ascii", 1), ("gbk", 1), ("UTF8", 0)])
def test_letters_that_the_locale_cannot_read_are_an_error(encoding: str, count: int, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{\n "新闻": {"file_name": "x.json"}\n}', "utf-8")
    problems = dataset.read_registry(tmp_path, encoding).problems
    assert len(problems) == count and all(problem.where.line == 2 for problem in problems)


def test_a_name_registered_twice_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"a": {"hf_hub_url": "x/y"},\n"a": {"hf_hub_url": "x/z"}}', "utf-8")
    sources, (problem, _) = dataset.check_registered("a", tmp_path, "sft", RECIPE)
    assert (problem.severity, problem.where.line, sources) == ("warning", 1, [])


def test_of_data_on_a_hub_and_in_a_cloud_is_said_that_they_are_not_checked(tmp_path: Path) -> None:
    entries = {"hub": {"hf_hub_url": "x/y", "split": "test"}, "cloud": {"cloud_file_name": "s3://x/y.json"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries), "utf-8")
    for names, folder, where in (
        ("hub", tmp_path, "(x/y)"),
        ("cloud", tmp_path, "cloud_file_name: s3://x/y.json"),
        ("x/y", "ONLINE", "dataset_dir: ONLINE"),
        ("a", "REMOTE:x/y", "dataset_dir: REMOTE:x/y"),
    ):
        sources, (problem,) = dataset.check_registered(names, folder, "sft", RECIPE)
        assert (sources, problem.severity) == ([], "warning")
        assert problem.what.startswith("not checked") and where in problem.what, problem


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ([], "is empty"),
        (["a.json", "README.md"], "cannot load README.md"),
        (["a.json", "b.csv"], "several file types"),
        (["a.jsonl.gz"], "cannot load a.jsonl.gz"),
        (["a.JSON"], "cannot load a.JSON"),
    ],
)
def test_a_folder_holds_files_of_one_type(files: list[str], what: str, tmp_path: Path) -> None:
    register(tmp_path, {"file_name": "many"})
    (tmp_path / "many").mkdir()
    for name in files:
        (tmp_path / "many" / name).write_bytes(lines(GOOD))
    _, (problem,) = dataset.check_registered("mine", tmp_path, "sft", RECIPE)
    assert what in problem.what and problem.exit_code == 2


def test_a_folder_of_one_type_is_one_source_whose_columns_the_first_file_fixes(tmp_path: Path) -> None:
    register(tmp_path, {"file_name": "many"})
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "a.json").write_bytes(lines(GOOD))
    (tmp_path / "many" / "b.jsonl").write_bytes(lines(GOOD, alpaca(extra=1)))
    (source,), problems = dataset.check_registered("mine", tmp_path, "sft", RECIPE)
    (problem,) = dataset.check_rows(source, dataset.Options("sft")).problems
    assert problems == [] and "'extra' is first filled" in problem.what and problem.where.file == str(source.files[1])
    assert list(dataset.Readings().sha256(source)) == [str(file) for file in source.files]


KTO_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "kto_tag": "label"}
ADDED: list[tuple[str, str, bytes, str, str, dict[str, Any]]] = [
    ("Alpaca", "a.json", array(GOOD), "sft", "Alpaca", {"prompt": "instruction", "query": "input", "response": "output"}),
    ("question and answer", "a.jsonl", lines({"question": "a", "answer": "b"}), "sft", "Alpaca", {"prompt": "question", "response": "answer"}),
    ("input and output", "a.jsonl", lines({"input": "a", "output": "b"}), "sft", "Alpaca", {"prompt": "input", "response": "output"}),
    ("prompt and completion in csv", "a.csv", b"prompt,completion\na,b\n", "sft", "Alpaca", {"prompt": "prompt", "response": "completion"}),
    ("ShareGPT", "a.json", array(talk(("human", "a"), ("gpt", "b"))), "sft", "ShareGPT", {"messages": "conversations"}),
    ("ChatML", "a.jsonl", lines(chat(("system", "s"), ("user", "a"), ("assistant", "b"))), "sft", "ChatML messages", {"messages": "messages"}),
    ("pairs", "a.jsonl", lines(pair()), "rm", "preference pairs", {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}),
    ("pairs of messages", "a.jsonl", lines(chat(("user", "a"), chosen={"role": "assistant", "content": "b"}, rejected={"role": "assistant", "content": "c"})),
     "rm", "ChatML messages", {"messages": "messages", "chosen": "chosen", "rejected": "rejected"}),
    ("KTO", "a.jsonl", lines(alpaca(label=True), alpaca(label=False)), "kto", "KTO", KTO_COLUMNS),
    ("KTO messages", "a.jsonl", lines(*[chat(("user", "a"), ("assistant", "b"), label=label) for label in (True, False)]),
     "kto", "ChatML messages", {"messages": "messages", "kto_tag": "label"}),
    ("plain text", "a.txt", b"one\ntwo\n", "pt", "plain text", {"prompt": "text"}),
    ("text rows", "a.jsonl", lines({"text": "a", "id": 1}), "pt", "plain text", {"prompt": "text"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "body", "stage", "format_", "columns"), ADDED, ids=[row[0] for row in ADDED])
def test_a_file_of_each_format_is_registered_and_then_checks_clean(
    name: str, file: str, body: bytes, stage: str, format_: str, columns: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / file).write_bytes(body)
    added = add(tmp_path / file, tmp_path / "data")
    assert (added.source.name, added.found.format.name, added.found.format.stage, added.entry["columns"]) == (
        "a",
        format_,
        stage,
        columns,
    )
    (source,), problems = dataset.check_registered("a", tmp_path / "data", stage, RECIPE)
    report = dataset.check_rows(source, dataset.Options(stage))
    assert (problems, report.problems, report.dropped) == ([], (), 0)


def test_tool_calls_are_registered_with_the_formatting_that_reads_them(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    rows = {
        "messages": [
            {"role": "user", "content": "a"},
            call,
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "b"},
        ]
    }
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    added = add(tmp_path / "a.jsonl", tmp_path)
    assert added.entry["formatting"] == "openai" and added.entry["tags"]["observation_tag"] == "tool"
    assert set(added.entry["tags"]) == {
        f"{tag}_tag" for tag in ("role", "content", "user", "assistant", "system", "observation", "function")
    }


def test_adding_leaves_every_other_letter_of_the_registry_alone(tmp_path: Path) -> None:
    before = '{\n    "旧": {"file_name": "x.json"}, "b" :\n {"hf_hub_url":"x/y"}\n\n}\n'
    (tmp_path / "dataset_info.json").write_text(before, "utf-8")
    (tmp_path / "新 闻.json").write_bytes(array(GOOD))
    added = add(tmp_path / "新 闻.json", tmp_path)
    after = (tmp_path / "dataset_info.json").read_text("utf-8")
    assert after.startswith(before.rstrip().rstrip("}").rstrip())
    assert list(json.loads(after)) == ["旧", "b", "新_闻"] and added.source.name == "新_闻"
    assert after[len(before.rstrip()) - 3 :].isascii() and list(tmp_path.glob("tmp*")) == []


def test_a_file_inside_the_data_folder_is_relative_one_elsewhere_absolute_and_a_copy_is_inside(tmp_path: Path) -> None:
    data = register(tmp_path / "data", {})
    for folder, name in ((data, "inside"), (tmp_path, "outside"), (tmp_path, "copied")):
        (folder / f"{name}.json").write_bytes(array(GOOD))
    assert add(data / "inside.json", data).entry["file_name"] == "inside.json"
    assert add(tmp_path / "outside.json", data).entry["file_name"] == str(tmp_path / "outside.json")
    assert add(tmp_path / "copied.json", data, copy=True).entry["file_name"] == "copied.json"
    assert (data / "copied.json").read_bytes() == array(GOOD)
    sources, problems = dataset.check_registered("mine,inside,outside,copied", data, "sft", RECIPE)
    assert len(sources) == 4 and problems == []


def test_a_file_that_is_registered_and_was_edited_needs_nothing(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(array(GOOD))
    add(tmp_path / "rows.json", tmp_path)
    with pytest.raises(ProblemsFound) as refused:
        add(tmp_path / "rows.json", tmp_path)
    assert refused.value.problems[0].fix.startswith("nothing need be done: this very file is read anew")


@pytest.mark.parametrize(
    ("file", "body", "what", "fix"),
    [
        ("a.json", array({"foo": "a", "bar": "b"}), "the columns are: foo, bar", "instruction and output"),
        ("a.json", array(), "holds no rows", "JSON object"),
        ("a.json", b"[{]", "not valid JSON", "mend"),
        ("a.xlsx", b"PK", "'.xlsx' files cannot be read", ".csv"),
        ("a.json", array(alpaca(1)), "no valid sample", "answer"),
        ("a.json", array(TALK, {"conversations": True}), "not a list of messages", "give the row its messages"),
        ("mine.json", array(GOOD), "registered already", "--name"),
        ("a.csv", b"", "holds no rows", "a line of column names"),
        ("a.txt", b"", "holds no rows", "a text a line"),
        ("a.json", array(alpaca(1)), "another kind: number", "as text"),
        ("a.json", array(alpaca(True)), "another kind: true or false", "as text"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_nothing_is_written(
    file: str, body: bytes, what: str, fix: str, tmp_path: Path
) -> None:
    data = register(tmp_path / "data", {})
    before = (data / "dataset_info.json").read_bytes()
    (tmp_path / file).write_bytes(body)
    with pytest.raises(ProblemsFound) as refused:
        add(tmp_path / file, data, copy=True)
    (problem,) = [each for each in refused.value.problems if what in each.what]
    assert fix in problem.fix and refused.value.exit_code == 2
    assert (data / "dataset_info.json").read_bytes() == before and not (data / file).exists()


def test_a_copy_never_replaces_a_file_of_the_data_folder(tmp_path: Path) -> None:
    data = register(tmp_path / "data", {}, name="a.jsonl")
    (tmp_path / "a.jsonl").write_bytes(lines(alpaca("another")))
    with pytest.raises(ProblemsFound, match="there already"):
        add(tmp_path / "a.jsonl", data, copy=True)
    assert (data / "a.jsonl").read_bytes() == lines(GOOD)


def test_a_folder_a_file_that_is_not_there_and_a_name_with_a_comma_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemsFound, match="is not there"):
        add(tmp_path / "a.json", tmp_path)
    (tmp_path / "rows.jsonl").touch()
    for misspelt in ("rwos.jsonl", "Rows.JSONL", "rows.json"):
        with pytest.raises(ProblemsFound, match="is not there") as refused:
            add(tmp_path / misspelt, tmp_path)
        assert refused.value.problems[0].fix == "did you mean 'rows.jsonl'?"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProblemsFound, match="is a folder without data files") as refused:
        add(tmp_path / "empty", tmp_path)
    assert "a folder of .arrow, " in refused.value.problems[0].fix and refused.value.exit_code == 2
    (tmp_path / "a.json").write_bytes(array(GOOD))
    with pytest.raises(ProblemsFound, match="cannot name"):
        add(tmp_path / "a.json", tmp_path, name="a,b")


def test_names_of_columns_may_have_capitals_and_spaces_around_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Question, Answer\na,b\n")
    assert add(tmp_path / "a.csv", tmp_path).entry["columns"] == {"prompt": "Question", "response": " Answer"}


def test_rows_count_the_data_and_lines_the_file(tmp_path: Path) -> None:
    head = b'instruction,input,output\n\n"a\nb",,c\n'  # the first row ends on line 4
    for name, last, row, line in (
        ("data.csv", b"d,e,f,g\n", "row 2", 5),
        ("data.csv", b"d,e,\n", "row 2", None),
    ):
        (source,), _ = dataset.check_registered("mine", register(tmp_path, {}, head + last, name), "sft", RECIPE)
        (problem,) = dataset.check_rows(source, dataset.Options("sft")).problems
        assert (problem.where.key, problem.where.line) == (row, line) and f"({row} below the header)" in problem.what
    body = lines(GOOD) + b"\n" + lines(alpaca(None))
    (source,), _ = dataset.check_registered("mine", register(tmp_path, {}, body), "sft", RECIPE)
    (problem,) = dataset.check_rows(source, dataset.Options("sft")).problems
    assert (problem.where.key, problem.where.line) == ("row 2", 3)


def test_an_object_nested_too_deeply_is_a_fault_of_its_row(tmp_path: Path) -> None:
    body = lines(GOOD) + b'{"instruction":' * 100_000 + b"1" + b"}" * 100_000
    for text in (body, body[len(lines(GOOD)) :]):
        (source,), _ = dataset.check_registered("mine", register(tmp_path, {}, text), "sft", RECIPE)
        assert any(
            "nested too deeply" in each.what for each in dataset.check_rows(source, dataset.Options("sft")).problems
        )


def test_plain_text_for_a_stage_with_answers_is_called_plain_text(tmp_path: Path) -> None:
    _, (problem,) = dataset.check_registered("mine", register(tmp_path, {"columns": {"prompt": "text"}}), "sft", RECIPE)
    assert "plain text" in problem.what and problem.fix.startswith("stage: pt; or")


@pytest.mark.parametrize("limit", [None, 4000])
def test_progress_is_the_share_of_what_will_be_read(limit: int | None, tmp_path: Path) -> None:
    folder = register(tmp_path, {"file_name": "many"})
    (folder / "many").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (folder / "many" / name).write_bytes(lines(*[GOOD] * 5000))
    (source,), _ = dataset.check_registered("mine", folder, "sft", RECIPE)
    seen: list[float] = []
    dataset.check_rows(source, dataset.Options("sft", limit=limit), progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 1.0
    assert len(seen) == (2 if limit else 5) and seen[0] < 0.6
    assert dataset.count_rows(source) == 10_000


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def template(name: str = "qwen") -> Template:
    found = find_template(name)
    assert found
    return found


# Template qwen: the system text between 2 special words, the question's frame with 3; one and a newline after the answer.
AROUND = 2 + len("system\n\n") + len("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
AROUND += 3 + len("user\n\nassistant\n")
AFTER = 2


@pytest.mark.parametrize(
    ("question", "answer", "cutoff", "kind"),
    [
        (50, 50, AROUND + 50 + 50 + AFTER, None),
        (50, 50, AROUND + 50 + 50 + AFTER - 1, "prompt_cut"),
        (500, 50, 300, "prompt_cut"),
        (10, 900, 300, "answer_shortened"),
        (100_000, 160, 300, "answer_lost"),
    ],
)
def test_what_is_lost_follows_llamafactorys_rule(
    question: int, answer: int, cutoff: int, kind: str | None, tokenizer: Path, tmp_path: Path
) -> None:
    rows = register(tmp_path, {}, lines(alpaca("b" * answer, "a" * question)))
    (source,), _ = dataset.check_registered("mine", rows, "sft", RECIPE)
    options = dataset.Options("sft", template=template(), cutoff_len=cutoff)
    report = dataset.check_rows(source, options, tokenizer).truncation
    assert report.counts == ({kind: 1} if kind else {})
    assert len(report.problems) == (kind is not None)
    if kind:
        assert f"cutoff_len: {AROUND + question + answer + AFTER} keeps every row whole" in report.problems[0].fix
        assert report.problems[0].severity == ("error" if kind == "answer_lost" else "warning")


def test_only_rows_that_could_be_too_long_are_tokenised(tokenizer: Path, tmp_path: Path) -> None:
    rows = register(tmp_path, {}, lines(*[GOOD] * 7, alpaca("b" * 400), alpaca("文" * 100), alpaca(None)))
    (source,), _ = dataset.check_registered("mine", rows, "sft", RECIPE)
    options = dataset.Options("sft", template=template(), cutoff_len=400)
    reading = dataset.check_rows(source, options, tokenizer)
    assert (reading.kept, reading.truncation.tokenised) == (9, 2)


def test_later_turns_that_are_lost_are_told_from_answers_cut_short(tokenizer: Path, tmp_path: Path) -> None:
    first = [("human", "a" * 20), ("gpt", "b" * 20)]
    cut_short = talk(*first, ("human", "a" * 20), ("gpt", "b" * 200))
    for row, left, kind in ((talk(*first * 6), 0, "turns_lost"), (cut_short, 100, "answer_shortened")):
        rows = register(tmp_path, {"formatting": "sharegpt"}, lines(row))
        (source,), _ = dataset.check_registered("mine", rows, "sft", RECIPE)
        options = dataset.Options("sft", template=template(), cutoff_len=AROUND + 40 + AFTER + left)
        assert dataset.check_rows(source, options, tokenizer).truncation.counts == {kind: 1}


def test_a_pair_is_cut_by_its_longer_answer(tokenizer: Path, tmp_path: Path) -> None:
    columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    rows = register(tmp_path, {"ranking": True, "columns": columns}, lines(pair("good", "b" * 900)))
    (source,), _ = dataset.check_registered("mine", rows, "dpo", RECIPE)
    options = dataset.Options("dpo", template=template(), cutoff_len=300)
    assert dataset.check_rows(source, options, tokenizer).truncation.counts == {"answer_shortened": 1}


def test_texts_that_fill_no_block_are_an_error_and_long_ones_are_cut_without_packing(
    tokenizer: Path, tmp_path: Path
) -> None:
    rows = register(tmp_path, {"columns": {"prompt": "text"}}, lines(*[{"text": "a" * 30}] * 4))
    (source,), _ = dataset.check_registered("mine", rows, "pt", RECIPE)
    for cutoff, packing, found in ((124, True, 0), (125, True, 1), (31, False, 0), (30, False, 1)):
        options = dataset.Options("pt", template=template(), cutoff_len=cutoff, packing=packing)
        assert len(dataset.check_rows(source, options, tokenizer).truncation.problems) == found, cutoff


def test_whatever_the_bytes_a_check_ends_with_problems_and_no_trace(tmp_path: Path) -> None:
    random.seed(7)
    seeds = [array(GOOD, GOOD), lines(GOOD, talk(("human", "a"), ("gpt", "b"))), b"instruction,input,output\na,b,c\n"]
    for number in range(150):
        body = bytearray(random.choice(seeds))
        for _ in range(random.randrange(1, 8)):
            body[random.randrange(len(body))] = random.randrange(256)
        suffix = random.choice([".json", ".jsonl", ".csv", ".txt", ".parquet", ".arrow"])
        folder = register(tmp_path, {"formatting": random.choice(["alpaca", "sharegpt"])}, bytes(body), f"data{suffix}")
        sources, _ = dataset.check_registered("mine", folder, "sft", RECIPE)
        assert dataset.check_rows(sources[0], dataset.Options("sft")).rows >= 0, number

"""Files as people have them: each kind is registered, its rows are those that were meant, the original stays."""
# ruff: noqa: E501 - a table reads best with one case a line

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import advice
import pytest
from conftest import Command
from dataset_cases import GOOD, lines, pair
from hub_server import Hub

from iis_finetune import dataset
from iis_finetune.dataset.faults import Fault
from iis_finetune.errors import Place, Problem, ProblemsFound
from iis_finetune.hub import read_manifest
from iis_finetune.tables import read as read_table

GERMAN = [
    ("Wie heißt du?", "Ich heiße Jörg Müller, schöne Grüße!"),
    ("Was ist eine Tür?", "Eine Öffnung, größer als ein Fenster."),
    ("Über die Brücke?", "Ja, für fünf Euro."),
]
CHINESE = [
    ("请总结这篇新闻的要点。", "今天北京天气晴朗，气温二十度。"),
    ("什么是微调？", "人工智能技术发展迅速，许多公司都在研究大语言模型的微调方法。"),
]
FRENCH = [
    ("Où se trouve la bibliothèque ?", "Elle est située à côté de l'hôtel de ville, près du marché."),
    ("Écrivez une phrase.", "Ça va très bien, merci beaucoup, et vous-même ?"),
]
POLISH = [
    ("Gdzie jest szkoła?", "Szkoła znajduje się obok kościoła, niedaleko rynku."),
    ("Co jesz?", "Żółty ser, gęś."),
]
RUSSIAN = [
    ("Как дела?", "Хорошо, спасибо большое вам за помощь."),
    ("Где школа?", "Она рядом с площадью, недалеко отсюда."),
]


def table(rows: list[tuple[str, str]], mark: str = ",", names: tuple[str, str] = ("question", "answer")) -> str:
    return "".join(mark.join(f'"{cell}"' for cell in row) + "\r\n" for row in [names, *rows])


def objects(rows: list[tuple[str, str]]) -> str:
    dumped = [json.dumps({"question": q, "answer": a}, ensure_ascii=False) for q, a in rows]
    return "\n".join(dumped) + "\n"


def add(file: Path, data_dir: Path, **options: Any) -> dataset.Added:
    return dataset.add(dataset.OwnFile(path=file, **options), data_dir)


def refused(file: Path, **options: Any) -> Problem:
    """The one problem of a file that is refused, before which nothing was written."""
    before = sorted(file.parent.rglob("*"))
    with pytest.raises(ProblemsFound) as found:
        add(file, file.parent / "data", **options)
    assert found.value.exit_code == 2 and sorted(file.parent.rglob("*")) == before
    return found.value.problems[0]


def read(added: dataset.Added) -> list[tuple[str, str]]:
    """Question and answer of each row, as they are read by the entry that was written."""
    (source,), problems = dataset.check_registered(added.source.name, added.registry.parent, "sft", Place())
    report = dataset.check_rows(source, dataset.Options("sft"))
    assert (problems, report.problems) == ([], ()) and report.complete
    (file,), columns = source.files, source.layout.columns
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [(row[columns["prompt"]], row[columns["response"]]) for row in rows]


@pytest.mark.parametrize(
    ("name", "body", "rows", "says"),
    [
        ("a.csv", table(GERMAN, ";").encode("utf-8-sig"), GERMAN, "UTF-8 with a byte order mark, cells separated by ';'"),
        ("a.csv", table(GERMAN, ";").encode("cp1252"), GERMAN, "csv in CP1252, cells separated by ';'"),
        ("a.txt.CSV", table(GERMAN).encode(), GERMAN, "csv in UTF-8"),
        ("a.tsv", table(GERMAN, "\t").encode("utf-16"), GERMAN, "csv in UTF-16, cells separated by '\\t'"),
        ("a.csv", table(GERMAN, "|").encode("cp1252"), GERMAN, "csv in CP1252, cells separated by '|'"),
        ("a.jsonl", objects(RUSSIAN).encode("cp1251"), RUSSIAN, "json in CP1251"),
        ("a.jsonl", objects(RUSSIAN).encode("koi8_r"), RUSSIAN, "json in KOI8_R"),
        ("a.jsonl", objects(CHINESE).encode("gb18030"), CHINESE, "json in GB18030"),
        ("a.json", json.dumps([{"question": q, "answer": a} for q, a in CHINESE], ensure_ascii=False).encode("gbk"), CHINESE, "json in GB18030"),
        ("a.csv", table(CHINESE).encode("gbk"), CHINESE, "csv in GB18030"),
        ("a.jsonl.gz", gzip.compress(objects(GERMAN).encode()), GERMAN, "packed json in UTF-8"),
        ("a.csv.gz", gzip.compress(table(CHINESE, ";").encode("gbk")), CHINESE, "packed csv in GB18030"),
        ("a.ndjson", objects(GERMAN).encode(), GERMAN, "json in UTF-8"),
        ("a.jsonl", objects(GERMAN).encode() + b'{"question": "Was", "ans', GERMAN, "json in UTF-8; line 4, the last, is broken off"),
    ],
)  # fmt: skip
def test_what_llamafactory_cannot_read_is_written_once_beside_the_original(
    name: str, body: bytes, rows: list[tuple[str, str]], says: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(body)
    added = add(tmp_path / name, tmp_path / "data")
    assert says in str(added.found.forms[0]) and not added.found.usable
    assert read(added) == rows
    assert (tmp_path / name).read_bytes() == body
    assert added.source.files[0].parent == tmp_path and added.source.files[0].name.endswith(".utf8.jsonl")
    again = add(tmp_path / name, tmp_path / "data", name="again")  # the same rows: nothing is written twice
    copied = add(tmp_path / name, tmp_path / "data", name="copied", copy=True)
    assert again.entry == added.entry and Path(copied.entry["file_name"]).parent == Path()
    assert read(copied) == rows and not list(tmp_path.rglob(".*"))


def test_utf8_with_commas_and_a_mark_from_excel_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(table(GERMAN).encode("utf-8-sig"))
    added = add(tmp_path / "a.csv", tmp_path / "data")
    assert added.found.usable and added.entry["file_name"] == str(tmp_path / "a.csv") and added.reading.kept == 3


STRAY = [("say", "yes"), ('"begun', "maybe"), ("next", "no"), ('TV 42"', "wide"), ("last", "end")]


@pytest.mark.parametrize("mark", ["\t", ";", "|", ","])
def test_a_quote_that_closes_no_cell_swallows_no_rows(mark: str, tmp_path: Path) -> None:
    for number, rows in enumerate((STRAY, STRAY[:3], [('"Hello" he said', "yes"), ("ask", "no")])):
        body = "".join(f"{mark.join(row)}\n" for row in [("question", "answer"), *rows])
        (tmp_path / f"{number}.csv").write_text(body)
        added = add(tmp_path / f"{number}.csv", tmp_path / "data")
        assert read(added) == rows and "quotes are letters" in str(added.found.forms[0])


def test_quotes_that_hold_cells_together_go_on_doing_so(tmp_path: Path) -> None:
    rows = [("a;b\nc", 'say "no"'), ("d", "e")]
    (tmp_path / "a.csv").write_text('question;answer\n"a;b\nc";"say ""no"""\nd;e\n')
    assert read(add(tmp_path / "a.csv", tmp_path / "data")) == rows


def test_texts_that_look_like_numbers_stay_texts(tmp_path: Path) -> None:
    """pandas makes numbers of them, and LLaMA-Factory drops rows whose answer is a number."""
    for number, rows in enumerate(([("good?", "1"), ("bad?", "0")], [("007", "true"), ("1e3", "false")])):
        (tmp_path / f"{number}.csv").write_text(table(rows), "utf-8")
        added = add(tmp_path / f"{number}.csv", tmp_path / "data")
        assert read(added) == rows and "texts that look like numbers" in str(added.found.forms[0])


def test_what_excel_saves_as_unicode_text_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("question\tanswer\r\nWo?\tÜberall\r\n".encode("utf-16"))
    assert read(add(tmp_path / "a.txt", tmp_path / "data")) == [("Wo?", "Überall")]
    (tmp_path / "b.txt").write_bytes("ein Text\nnoch einer\n".encode("utf-16"))
    assert add(tmp_path / "b.txt", tmp_path / "data").found.format.name == "plain text"


def test_rows_written_from_a_file_that_changed_are_noticed_and_written_anew(quick: Command, project: Path) -> None:
    (project / "a.csv").write_text(table(GERMAN, ";"), "utf-8")
    assert (
        quick("data", "add", "a.csv", "--name", "mine", "--columns", "output=answer,instruction=question").returncode
        == 0
    )
    (project / "a.csv").write_text(table(FRENCH, ";"), "utf-8")
    later = (project / "a.csv.utf8.jsonl").stat().st_mtime + 60
    os.utime(project / "a.csv", (later, later))
    for verb in (("data", "check", "mine"), ("check", "tiny", "dataset=mine")):
        noticed = quick(*verb)
        assert "a.csv has changed since these rows were written from it" in noticed.stderr
    (command,) = re.findall("write them anew: iis-finetune (.*)", noticed.stderr)
    before = (project / "data" / "dataset_info.json").read_bytes()
    anew = quick(*shlex.split(command))
    assert anew.returncode == 0 and "2 usable rows" in anew.stdout, anew.stderr
    rows = (project / "a.csv.utf8.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(row)["question"] for row in rows] == [question for question, _ in FRENCH]
    assert (project / "a.csv.utf8.jsonl.old").read_text("utf-8").count("\n") == len(GERMAN)
    assert (project / "data" / "dataset_info.json").read_bytes() == before
    assert "has changed" not in quick("data", "check", "mine").stderr


def test_rows_of_a_file_whose_columns_were_renamed_are_written_anew_with_their_entry(
    quick: Command, project: Path
) -> None:
    (project / "a.csv").write_text(table(GERMAN, ";"), "utf-8")
    assert quick("data", "add", "a.csv", "--name", "mine").returncode == 0
    (project / "a.csv.utf8.jsonl.old").write_text("mine")
    registry = project / "data" / "dataset_info.json"
    entries = json.loads(registry.read_text("utf-8"))
    entries["mine"]["num_samples"] = 1
    entries["last"] = entries["mine"]
    registry.write_text(json.dumps(entries), "utf-8")
    (project / "a.csv").write_text(table(FRENCH, ";", ("frage", "antwort")), "utf-8")
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    plain = quick("data", "add", "a.csv", "--name", "mine")
    assert plain.returncode == 2 and "there is no column 'question'" in plain.stderr
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before
    anew = quick("data", "add", "a.csv", "--name", "mine", "--columns", "instruction=frage,output=antwort")
    assert anew.returncode == 0, anew.stderr
    entries["mine"] = {**entries["mine"], "columns": {"prompt": "frage", "response": "antwort"}}
    assert json.loads(registry.read_text("utf-8")) == entries
    assert (project / "a.csv.utf8.jsonl.old").read_text() == "mine"
    assert (project / "a.csv.utf8.jsonl.old2").read_text("utf-8") == objects(GERMAN).replace('": "', '":"').replace(
        ', "', ',"'
    )
    assert "mine: 2 rows, 2 usable" in quick("data", "check", "mine").stdout


def test_a_changed_file_of_a_folder_is_noticed(quick: Command, project: Path) -> None:
    inside = project / "rows" / "more"
    inside.mkdir(parents=True)
    (inside / "b.csv").write_text(table(GERMAN, ";"), "utf-8")
    (project / "rows" / "a.csv").write_text(table(FRENCH, ";"), "utf-8")
    (project / "rows" / "notes.md").touch()
    assert quick("data", "add", "rows").returncode == 0
    later = (project / "rows.utf8.jsonl").stat().st_mtime + 60
    os.utime(project / "rows" / "notes.md", (later, later))
    assert "has changed" not in quick("data", "check", "rows").stderr
    (inside / "b.csv").write_text(table(CHINESE, ";"), "utf-8")
    os.utime(inside / "b.csv", (later, later))
    for verb in (("data", "check", "rows"), ("check", "tiny", "dataset=rows")):
        assert "rows has changed since these rows were written from it" in quick(*verb).stderr
    assert quick("data", "add", "rows", "--name", "rows").returncode == 0
    assert "has changed" not in quick("data", "check", "rows").stderr


@pytest.mark.parametrize(("first", "second"), [("q.csv", "q.tsv"), ("q.json", "q.jsonl"), ("q.csv", "q.csv.gz")])
def test_two_files_of_one_stem_are_two(first: str, second: str, quick: Command, project: Path) -> None:
    for name, rows in ((first, CHINESE), (second, CHINESE[:1])):
        mark = "\t" if name == "q.tsv" else ","
        body = (objects(rows) if "json" in name else table(rows, mark)).encode("gb18030")
        (project / name).write_bytes(gzip.compress(body) if name.endswith(".gz") else body)
    assert quick("data", "add", first).returncode == 0
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    taken = quick("data", "add", second)
    assert taken.returncode == 2 and "a data set 'q' is registered already" in taken.stderr
    assert "--name NAME" in taken.stderr
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before
    assert "1 usable row" in quick("data", "add", second, "--name", "other").stdout
    assert "q: 2 rows, 2 usable" in quick("data", "check", "q").stdout


def test_a_folder_is_read_without_the_rows_that_were_written_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.csv").write_text(table(GERMAN, ";"), "utf-8")
    (tmp_path / "rows" / "others.utf8.jsonl").write_text(objects(FRENCH), "utf-8")
    (tmp_path / "rows" / "others.yaml").touch()
    add(tmp_path / "rows" / "a.csv", tmp_path / "data")
    assert read(add(tmp_path / "rows", tmp_path / "data")) == [*GERMAN, *FRENCH]


def test_a_data_folder_that_cannot_be_written_is_the_machines(quick: Command, project: Path) -> None:
    (project / "a.csv").write_text(table(GERMAN, ";"), "utf-8")
    (project / "data").rename(project / "kept")
    (project / "data").symlink_to("/sys/kernel")  # where root cannot write either
    done = quick("data", "add", "a.csv", "--copy")
    assert done.returncode == 3 and re.search("data: (permission denied|operation not permitted)", done.stderr), (
        done.stderr
    )
    assert "--copy" not in done.stderr
    assert "see to the rights" in done.stderr


@pytest.mark.parametrize(("mark", "rows"), [(";", GERMAN), (",", CHINESE)])
def test_an_uncertain_encoding_is_told_with_two_readings_and_can_be_stated(
    mark: str, rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    short, name = (("Wo?", "Im Café."), "cp1252") if rows is GERMAN else (("你好", "你好"), "gb18030")
    (tmp_path / "a.csv").write_bytes(table([short], mark).encode(name))
    problem = refused(tmp_path / "a.csv")
    assert "is not certain" in problem.what and problem.where.line == 2 and problem.what.count("' in ") >= 2
    assert short[1] in problem.what and f"data add {tmp_path}/a.csv --encoding {name}` (or" in problem.fix
    assert read(add(tmp_path / "a.csv", tmp_path / "data", encoding=name)) == [short]


def test_latin_letters_are_never_read_as_chinese(tmp_path: Path) -> None:
    for rows in (GERMAN, FRENCH, POLISH, RUSSIAN):
        code = {id(GERMAN): "cp1252", id(FRENCH): "cp1252", id(POLISH): "cp1250", id(RUSSIAN): "cp1251"}[id(rows)]
        for count in range(1, len(rows) + 1):
            (tmp_path / "a.jsonl").write_bytes(objects(rows[:count]).encode(code))
            try:
                added = add(tmp_path / "a.jsonl", tmp_path / "data", name=f"{code}-{rows[0][0][:2]}-{count}")
            except ProblemsFound as found:
                assert "is not certain" in found.problems[0].what
            else:
                assert read(added) == rows[:count]
            (tmp_path / "a.jsonl.utf8.jsonl").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("name", "body", "what", "line"),
    [
        ("a.jsonl", objects(CHINESE).encode() * 4 + objects(GERMAN).encode("cp1252"), "two encodings in one file", 9),
        ("a.csv", b"", "holds no rows", None),
        ("a.jsonl.gz", gzip.compress(b""), "holds no rows", None),
        ("a.jsonl.gz", gzip.compress(objects(GERMAN).encode())[:-20], "the packed file is damaged", None),
        ("a.csv.gz", b"no archive", "the packed file is damaged", None),
        ("a.csv", table(GERMAN, ";").encode() + b"one;two;three\n", "3 cells for 2 columns", 5),
        ("a.csv", b'question;answer\n"a; b";"c\nd"\n"say;no\nask;yes\n', "no quote ends it", 4),
        ("a.csv", b"question,answer,answer\na,b,c\n", "several columns are named 'answer'", 1),
        ("a.csv", b"question;answer;answer\na;b;c\n", "several columns are named 'answer'", 1),
        ("a.csv", b"question~answer\na~b\n", "the format is not recognised; the columns are: question~answer", None),
        ("a.jsonl", objects(GERMAN).encode() + b"{broken\n" + objects(GERMAN).encode(), "not valid JSON", 4),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_sentence_with_its_line(
    name: str, body: bytes, what: str, line: int | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(body)
    problem = refused(tmp_path / name)
    assert what in problem.what and problem.where == Place(str(tmp_path / name), line, problem.where.key)


def test_a_line_that_the_stated_encoding_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(objects(CHINESE).encode("gbk") * 9 + "Ä ö\n".encode("cp1252"))
    assert "not certain" in refused(tmp_path / "a.jsonl").what
    problem = refused(tmp_path / "a.jsonl", encoding="gb18030")
    assert "two encodings in one file" in problem.what and problem.where.line == 19
    assert "cannot be read as utf-16" in refused(tmp_path / "a.jsonl", encoding="utf-16").what
    assert "unknown encoding: gbkk" in refused(tmp_path / "a.jsonl", encoding="gbkk").what


def test_a_folder_is_used_as_it_is_or_written_as_one_file(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    (rows / "more").mkdir(parents=True)
    refusal = refused(rows)
    assert "is a folder without data files" in refusal.what
    for name in ("a.jsonl", "b.jsonl"):
        (rows / name).write_text(objects(GERMAN), "utf-8")
    (rows / "more").rmdir()
    assert add(rows, tmp_path / "data").entry["file_name"] == str(rows)
    (rows / "c.csv").write_text(table(CHINESE), "utf-8")
    (rows / "README.md").touch()
    (rows / "dataset_info.json").write_text("{}")
    added = add(rows, tmp_path / "data", name="all")
    assert added.source.files == (tmp_path / "rows.utf8.jsonl",)
    assert sorted(read(added)) == sorted([*GERMAN, *GERMAN, *CHINESE])


def test_a_file_that_was_there_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(table(GERMAN, ";"), "utf-8")
    (tmp_path / "a.csv.utf8.jsonl").write_text("mine")
    assert "a.csv.utf8.jsonl is there already" in refused(tmp_path / "a.csv").what
    assert (tmp_path / "a.csv.utf8.jsonl").read_text() == "mine"


def test_columns_are_said_when_they_cannot_be_guessed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"q": "Wie?", "a": "So.", "id": "1"}))
    problem = refused(tmp_path / "a.jsonl")
    assert "the columns are: q, a, id" in problem.what and "--columns instruction=q,output=a" in problem.fix
    assert read(add(tmp_path / "a.jsonl", tmp_path / "data", columns={"prompt": "q", "response": "a"})) == [
        ("Wie?", "So.")
    ]
    (tmp_path / "b.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert "there is no column 'aa'" in refused(tmp_path / "b.jsonl", columns={"prompt": "q", "response": "aa"}).what


def test_of_two_columns_that_may_be_the_answer_none_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"question": "Wie?", "answer": "So.", "summary": "S"}))
    problem = refused(tmp_path / "a.jsonl")
    assert "not certain which column is the output: answer, summary" in problem.what
    assert "--columns instruction=question,output=answer" in problem.fix
    (tmp_path / "b.jsonl").write_bytes(lines({**GOOD, "answer": "b"}))
    assert add(tmp_path / "b.jsonl", tmp_path / "data").entry["columns"]["response"] == "output"


def test_a_parquet_with_nested_columns_names_them_and_takes_them(tmp_path: Path) -> None:
    from pyarrow import Table
    from pyarrow.parquet import write_table

    write_table(Table.from_pylist([{"id": 1, "data": {"q": q, "a": a}} for q, a in GERMAN]), tmp_path / "a.parquet")
    problem = refused(tmp_path / "a.parquet")
    assert "the columns are: id, data; inside them: data.q, data.a" in problem.what
    added = add(tmp_path / "a.parquet", tmp_path / "data", columns={"prompt": "data.q", "response": "data.a"})
    assert read(added) == GERMAN and not added.found.usable


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"id": 1, "data": {"question": "a", "answer": "b"}}, "instruction=data.question,output=data.answer"),
        ({"id": 1, "data": {"q": "a", "a": "b"}}, "instruction=data.q,output=data.a"),
        ({"tags": ["x"], "frage": {"text": "a"}, "antwort": "b"}, "instruction=antwort,output=frage.text"),
        ({"id": 1, "turns": [{"speaker": "x", "text": "y"}]}, None),
    ],
)
def test_the_columns_that_are_proposed_hold_texts(row: dict[str, Any], columns: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(row, row))
    fix = refused(tmp_path / "a.jsonl").fix
    assert fix.endswith(f"--columns {columns}") if columns else "--columns" not in fix


def test_a_command_in_the_fix_of_a_row_can_be_pasted() -> None:
    fixes = {case: Fault(case, "x").sentence("my rows.csv")[1] for case in read_table("row_faults.toml")}
    commands = {case: advice.verdict("fix", fix) for case, fix in fixes.items() if "iis-finetune" in fix}
    assert commands.keys() >= {"encoding", "bom", "delimiter", "answer_kind"}
    assert all(kind.startswith("a command") and not wrong for kind, wrong in commands.values()), commands


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Two hubs in one, each with data sets; both are reached by their own ways."""
    many = tmp_path / "served" / "datasets" / "org" / "many"
    (many / "data").mkdir(parents=True)
    for name, rows in (("train-0", GERMAN), ("train-1", CHINESE), ("test-0", RUSSIAN)):
        (many / "data" / f"{name}.jsonl").write_text(objects(rows), "utf-8")
    for name in ("README.md", ".gitattributes", "dataset_infos.json"):
        (many / name).write_text("{}")
    one = tmp_path / "served" / "datasets" / "org" / "one.rows"
    one.mkdir()
    (one / "a.csv").write_bytes(table(GERMAN, ";").encode("cp1252"))
    (tmp_path / "served" / "datasets" / "org" / "none").mkdir()
    with Hub(tmp_path / "served") as server:
        for name, value in {**server.environment, "HOME": str(tmp_path / "home")}.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_hubs_data_set_is_fetched_verified_and_registered(
    source: str, hub: Hub, quick: Command, project: Path
) -> None:
    done = quick("data", "add", "org/many", "--source", source)
    assert done.returncode == 0, done.stderr
    folder = project / "data" / "org--many" / "data"
    assert sorted(path.name for path in folder.iterdir()) == ["train-0.jsonl", "train-1.jsonl"]
    manifest = read_manifest(project / "data" / "org--many")
    assert manifest and manifest.source == source and manifest.verified and all(f.sha256 for f in manifest.files)
    registry = json.loads((project / "data" / "dataset_info.json").read_text())
    assert registry["many"]["file_name"] == "org--many/data"
    assert "many: 5 rows, 5 usable" in quick("data", "check", "many").stdout
    asked = len(hub.behaviour.requests)
    assert "not checked" not in quick("check", "tiny", "dataset=org/many").stderr  # known by its id, read from the disk
    assert quick("data", "add", "org/one.rows", "--source", source).returncode == 0
    assert (
        read_manifest(project / "data" / "org--one.rows") and (project / "data" / "org--one.rows.utf8.jsonl").is_file()
    )
    assert all("one.rows" in each for each in hub.behaviour.requests[asked:])


def test_what_a_hub_does_not_have_is_said_and_nothing_is_registered(hub: Hub, quick: Command, project: Path) -> None:
    before = (project / "data" / "dataset_info.json").read_bytes()
    for hub_id, what in (
        ("org/mistyped", "there is no data set org/mistyped on"),
        ("org/none", "no files to train on"),
    ):
        done = quick("data", "add", hub_id)
        assert done.returncode == 3 and what in done.stderr, done.stderr
    assert (project / "data" / "dataset_info.json").read_bytes() == before


def test_train_fetches_a_data_set_where_the_recipe_says_and_then_reads_its_rows(
    hub: Hub, quick: Command, project: Path
) -> None:
    pairs = hub.folder / "datasets" / "org" / "pairs"
    pairs.mkdir()
    (pairs / "train.jsonl").write_bytes(lines(*[pair()] * 9))
    done = quick("train", "tiny", "dataset=org/pairs", "kit.source=modelscope")
    assert "the rows of 'pairs' are not on this disk" in done.stderr
    assert "registered org/pairs as 'pairs'" in done.stdout
    assert (
        done.returncode == 2 and "a ranked data set cannot train stage sft" in done.stderr
    )  # which only the rows tell
    manifest = read_manifest(project / "data" / "org--pairs")
    assert manifest and manifest.source == "modelscope" and not (project / "runs").exists()


def test_long_cells_are_read_and_line_ends_of_an_old_mac_are_a_sentence(quick: Command, project: Path) -> None:
    long = "word " * 40_000
    (project / "long.csv").write_text(f"instruction;output\nsay it;{long}\n")
    added = quick("data", "add", "long.csv")
    assert added.returncode == 0 and "1 usable row" in added.stdout, added.stderr
    (project / "old.csv").write_bytes(b"instruction,output\rsay,yes\rask,no\r")
    refused = quick("data", "add", "old.csv")
    assert refused.returncode == 2 and "save it with line ends of LF or CRLF" in refused.stderr
    assert "universal-newline" not in refused.stderr
    page = quick("data", "preview", "tiny", "--html", "nowhere/page.html")
    assert page.returncode == 2 and "there is no folder nowhere" in page.stderr

"""The command line: what a mistake gets, what is documented of exit codes and JSON."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import RECIPE, Command

from iis_finetune import cli, dataset, preflight, runs

ROOT = Path(__file__).parent.parent

BAD_FILES = {
    "not YAML": ("a: [1, 2\nb: 3\n", "not YAML", None),
    "empty": ("", "this file is empty", 1),
    "binary": (b"\x7fELF\x00\xff\xfe", "UTF-8", None),
    "a tab": (RECIPE.replace("lora_rank", "\tlora_rank"), "tab", 11),
    "a duplicate key": (RECIPE + "lora_rank: 9\n", "duplicate key", 18),
    "an unknown key": (RECIPE.replace("lora_rank", "lora_rnak"), "did you mean 'lora_rank'?", 11),
    "a data set that is not registered": (RECIPE.replace("little", "litle"), "litle", 8),
    "a choice that there is not": (RECIPE.replace("type: lora", "type: lara"), "lora", 10),
}


def test_plan_prints_the_tables_advice_without_following_it(quick: Command) -> None:
    said = quick("plan", "tiny", "--on", "mi50").stdout
    assert "advice, not followed by itself" in said and "fp16 with sdpa" in said and "(unconfirmed)" in said
    assert "  IIS_PRECISION=fp32" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("check", "tiny", "——on", "mi50"), "fix:   type '--on'"),
        (("check", "tiny", "--lora_rank", "8"), "fix:   without dashes: lora_rank=VALUE"),
        (("check", "tiny", "--backgroud"), "see `iis-finetune check --help`"),
        (("trian", "tiny"), "Did you mean 'train'?\n"),
        (("trian", "tiny"), "\n1 error. Nothing was started."),
        (("check",), "\n1 error. Nothing was started."),
        (("check", "tiny", "lora_rank=16", "lora_rnak=8"), "leave out that word: 'lora_rank' is there as well"),
        (("check", "tiny.yaml"), "did you mean 'tiny'?"),
        (("check", "tiny", "lora_rank=4", "lora_rank=8"), "lora_rank is given twice"),
        (("check", "tiny", "kit.devices=two"), "\n1 error"),
        (("check", "tiny", f"adapter_name_or_path={'x' * 300}"), "is too long for the name of a file"),
        (("check", "x" * 300), "is too long for the name of a file"),
        (("check", "tiny", "kitt=1"), "did you mean 'kit'?"),
    ],
    ids=str,
)
def test_a_slip_of_the_finger_gets_the_word_that_was_meant(quick: Command, words: tuple[str, ...], said: str) -> None:
    done = quick(*words)
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_memory_figure_says_for_which_device_and_whether_it_is_all(quick: Command) -> None:
    said = quick("plan", "tiny", "additional_target=embed_tokens", "--on", "mi50").stdout
    assert "memory of each device of 1x AMD Instinct MI50 (gfx906, 31.98 GiB), GiB" in said
    assert "at least so much; not counted: the modules of additional_target" in said
    said = quick("plan", "tiny", "use_unsloth=true", "--on", "h200").stdout
    assert "unknown: Unsloth replaces the layers" in said
    assert "memory GiB: of each device of CPU" in quick("recipes").stdout


def test_spaces_around_an_equals_sign_are_taken_for_what_they_mean(quick: Command) -> None:
    made = json.loads(quick("plan", "tiny", "lora_rank", "=", "4", "max_steps=2", "--json").stdout)
    assert (made["arguments"]["lora_rank"], made["arguments"]["max_steps"]) == (4, 2)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_recipes_that_stand_on_each_other_are_told_so(quick: Command, project: Path, method: str) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        text = RECIPE.replace("kit:\n", f"kit:\n  base: {other}\n").replace("model_name_or_path: models/tiny\n", "")
        (project / "recipes" / f"{name}.yaml").write_text(text.replace("type: lora", f"type: {method}"))
    done = quick("check", "one")
    assert done.returncode == 2 and "forms a cycle" in done.stderr, done.stderr


def test_a_method_that_cannot_go_on_from_an_adapter_is_refused_before_the_adapter_is_made(
    quick: Command, project: Path
) -> None:
    text = RECIPE.replace("kit:\n", "kit:\n  base: tiny\n").replace("model_name_or_path: models/tiny\n", "")
    (project / "recipes" / "after.yaml").write_text(text)
    assert quick("check", "after").returncode == 0
    done = quick("check", "after", "finetuning_type=full", "lora_rank=null", "lora_target=null")
    assert done.returncode == 2 and "an adapter is loaded with finetuning_type lora only" in done.stderr, done.stderr


@pytest.mark.parametrize(("content", "words", "line"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_recipe_is_a_problem_with_file_and_line_and_nothing_is_started(
    quick: Command, project: Path, content: str | bytes, words: str, line: int | None
) -> None:
    file = project / "recipes" / "bad.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = quick("train", "bad")
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    where = f"recipes/bad.yaml:{line}" if line else "recipes/bad.yaml"
    assert where in done.stderr and "Nothing was started" in done.stderr
    assert not (project / "runs").exists()


BAD_WORDS = {
    ("train", "tyny"): "did you mean 'tiny'?",
    ("train", "recipes/none.yaml"): "does not exist",
    ("check", "tiny", "lora_rank"): "lora_rank=value",
    ("check", "tiny", "lora_rank=eight"): "lora_rank",
    ("check", "tiny", "kit.precision=fp23"): "did you mean 'fp32'?",
    ("check", "tiny", "model_name_or_path=models/none"): "does not exist",
    ("plan", "tiny", "--on", "mi51"): "did you mean 'mi50'",
    ("status", "9"): "no run '9'",
    ("nonsense",): "No such command",
    ("train",): "RECIPE",
}


@pytest.mark.parametrize(("words", "said"), BAD_WORDS.items(), ids=" ".join)
def test_a_bad_word_on_the_command_line_is_a_sentence_and_exit_code_2(
    quick: Command, project: Path, words: tuple[str, ...], said: str
) -> None:
    done = quick(*words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "fix:" in done.stderr and "Traceback" not in done.stderr
    assert not (project / "runs").exists()


def test_a_data_file_that_is_missing_is_named(quick: Command, project: Path) -> None:
    (project / "data" / "little.json").unlink()
    done = quick("check", "tiny", "--json")
    problems = json.loads(done.stdout)["problems"]
    assert done.returncode == 2
    assert any(each["kind"] == "missing" and "little.json" in each["what"] for each in problems)


def test_ten_problems_are_ten_problems_in_file_order(quick: Command, project: Path) -> None:
    wrong = ["lora_rnak: 8", "flash_attn: eagr", "learning_rate: fast", "max_steps: '2x'", "lr: 1", "bf16: maybe"]
    wrong += ["optim: adamw_hf", "evaluation_strategy: steps", "lora_dropout: 2.0", "dataset: nowhere"]
    head = [
        line for line in RECIPE.splitlines() if not line.startswith(("dataset", "learning", "max_steps", "lora_rank"))
    ]
    (project / "recipes" / "ten.yaml").write_text("\n".join([*head, *wrong]) + "\n")
    done = quick("check", "ten", "--json")
    found = [each["line"] for each in json.loads(done.stdout)["problems"] if each["severity"] == "error"]
    first = len(head) + 1
    assert found == sorted(found) and set(range(first, first + 10)) <= set(found)


def test_check_of_a_good_recipe_is_fine_and_names_the_next_command(quick: Command) -> None:
    done = quick("check", "tiny")
    assert done.returncode == 0, done.stderr
    assert "next: iis-finetune train tiny" in done.stdout


def test_a_hub_model_that_is_not_here_is_a_warning(quick: Command) -> None:
    done = quick("check", "tiny", "model_name_or_path=Qwen/Qwen2.5-0.5B-Instruct", "--json")
    problems = json.loads(done.stdout)["problems"]
    assert done.returncode == 0, problems
    assert [each["kind"] for each in problems if "not on disk" in each["what"]] == ["missing"]


def test_json_documents_have_their_documented_keys(quick: Command) -> None:
    keys = {
        ("plan", "tiny"): {
            "recipe",
            "machine",
            "arguments",
            "environment",
            "command",
            "decisions",
            "memory",
            "problems",
            "steps",
        },
        ("check", "tiny"): {"recipe", "machine", "problems"},
        ("recipes",): {"recipes"},
        ("runs",): {"runs", "starts"},
    }
    for words, expected in keys.items():
        assert set(json.loads(quick(*words, "--json").stdout)) == expected
    problem = json.loads(quick("check", "tiny", "lora_rnak=1", "--json").stdout)["problems"][0]
    assert set(problem) == {"severity", "kind", "what", "where", "file", "line", "key", "fix"}
    nothing = json.loads(quick("check", "nosuch", "--json").stdout)
    assert set(nothing) == {"recipe", "machine", "problems"} and nothing["problems"]


def test_planning_for_another_machine_ignores_this_one(quick: Command) -> None:
    made = json.loads(quick("plan", "tiny", "--on", "mi50x2", "--json").stdout)
    assert made["machine"] == "mi50x2" and made["environment"]["NPROC_PER_NODE"] == "2"


def test_a_recipe_is_copied_and_never_over_another(quick: Command, project: Path) -> None:
    assert quick("recipes", "--copy", "tiny", "mine").returncode == 0
    assert (project / "recipes" / "mine.yaml").read_text() == RECIPE
    (project / "recipes" / "mine.yaml").write_text("a: 1\n")
    done = quick("recipes", "--copy", "tiny", "mine")
    assert done.returncode == 2 and "exists already" in done.stderr
    assert (project / "recipes" / "mine.yaml").read_text() == "a: 1\n"


def test_own_data_is_registered_and_trains_by_its_name(quick: Command, project: Path) -> None:
    (project / "mine.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": "d"}\n')
    added = quick("data", "add", "mine.jsonl")
    assert added.returncode == 0, added.stderr
    assert set(json.loads((project / "data" / "dataset_info.json").read_text())) == {"little", "mine"}
    assert quick("check", "tiny", "dataset=mine").returncode == 0


@pytest.mark.parametrize("words", [("check", "tiny", "dataset=many"), ("data", "check", "many")], ids=" ".join)
@pytest.mark.parametrize("terminal", [True, False])
def test_full_reads_every_row_and_progress_is_shown_when_that_takes_long(
    words: tuple[str, ...],
    terminal: bool,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = ['{"instruction": "a", "input": "", "output": "b"}'] * 4001 + ['{"instruction": "a", "input": ""}']
    (project / "data" / "many.jsonl").write_text("\n".join(rows))
    (project / "data" / "dataset_info.json").write_text('{"many": {"file_name": "many.jsonl"}}')
    monkeypatch.chdir(project)
    monkeypatch.setattr("iis_finetune.dataset.LIMIT", 4001)
    monkeypatch.setattr("iis_finetune.cli.show.METER_AFTER_SECONDS", -1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    said = []
    for full in ((), ("--full",)):
        monkeypatch.setattr(sys, "argv", ["iis-finetune", *words, *full])
        assert cli.run() == 0
        said.append(capsys.readouterr().err)
    assert ["1 of 4002 rows are dropped" in each for each in said] == [False, True]
    assert ["reading rows" in each for each in said] == [True, True]
    assert [" left" in each for each in said] == [not terminal, not terminal]  # a bar shows the time by itself


def test_any_llamafactory_yaml_anywhere_is_a_recipe(
    quick: Command, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = [line for line in RECIPE.splitlines() if not line.startswith(("kit", " "))]
    foreign = tmp_path_factory.mktemp("elsewhere") / "some where.yaml"
    foreign.write_text("\n".join([*lines, "output_dir: saves/x", "overwrite_output_dir: true"]) + "\n")
    done = quick("plan", str(foreign), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["arguments"]["output_dir"] == "{run}/output"
    assert quick("check", str(project / "recipes" / "tiny.yaml")).returncode == 0


def test_verbs_before_training_import_nothing_heavy(project: Path) -> None:
    code = (
        "import sys\nfrom iis_finetune import cli\nsys.argv = ['x', *sys.argv[1:]]\ncode = cli.run()\n"
        "heavy = {'torch', 'transformers', 'llamafactory', 'datasets', 'numpy', 'pandas'} & set(sys.modules)\n"
        "print(sorted(heavy), code, file=sys.stderr)"
    )
    for words in (["--help"], ["recipes"], ["check", "tiny"], ["plan", "tiny"], ["runs"]):
        command = [sys.executable, "-c", code, *words]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == "[] 0"


def test_a_bug_of_ours_is_one_sentence_and_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_asked: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(cli, "application", broken)
    assert cli.run() == 70
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    log = Path(re.search(r"\S+\.log", said)[0])  # type: ignore[index]
    assert "planted" in log.read_text()
    log.unlink()


def test_a_closed_pipe_is_no_error(project: Path) -> None:
    command = [sys.executable, "-m", "iis_finetune", "schema"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=project, env=environment, **pipes) as child:  # type: ignore[call-overload]
        assert child.stdout.read(1) == b"{"
        child.stdout.close()
        said = child.stderr.read()
    assert child.returncode == 0 and said == b""


STREAMS = {
    "{0} runs >&-": (0, ""),
    "{0} runs 2>&-": (0, ""),
    "{0} runs >/dev/full": (0, "error: not all could be printed: No space left on device\n"),
    "{0} --help >/dev/full": (0, "error: not all could be printed: No space left on device\n"),
    "{0} check nosuch 2>/dev/full": (2, ""),
    "{0} check nosuch --json >/dev/full 2>&1 <&-": (2, ""),
    "{0} runs >&- 2>&- <&-": (0, ""),
    "{0} nosuch >&- 2>&- <&-": (2, ""),
    "set -o pipefail; {0} check nosuch --json 2>&- | true": (2, ""),
}


def test_streams_that_are_closed_full_or_broken_leave_the_work_its_own_code(project: Path) -> None:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    for words, (code, said) in STREAMS.items():
        command = ["bash", "-c", words.format(f"{sys.executable} -m iis_finetune")]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (code, said), words


FOLDERS = {
    "a file": ("/etc/passwd", ("runs",), "/etc/passwd cannot be used: it is not a folder"),
    "below a file": ("/etc/passwd/x", ("check", "tiny"), "not a directory"),
    "nobody's": ("~nosuchuser/x", ("runs",), "home directory"),
    "where nobody can write": ("/proc/x", ("train", "tiny", "--background"), "/proc/x cannot be written"),
    "too long": ("/" + "x" * 300, ("runs",), "too long"),
}


@pytest.mark.parametrize(("folder", "words", "said"), FOLDERS.values(), ids=FOLDERS.keys())
@pytest.mark.parametrize("variable", ["IIS_RUNS", "IIS_MODELS"])
def test_a_folder_that_cannot_be_used_is_named_before_anything_starts(
    quick: Command, monkeypatch: pytest.MonkeyPatch, variable: str, folder: str, words: tuple[str, ...], said: str
) -> None:
    if (variable, folder) == ("IIS_MODELS", "/proc/x"):
        words = (*words, "model_name_or_path=Qwen/Qwen2.5-0.5B-Instruct")
    monkeypatch.setenv(variable, folder)
    done = quick(*words)
    assert done.returncode == 3 and said in done.stderr and variable in done.stderr, done.stderr


def test_models_are_read_from_a_folder_that_cannot_be_written(
    quick: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IIS_MODELS", "/proc/x")
    done = quick("check", "tiny", f"model_name_or_path={project / 'models' / 'tiny'}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_what_the_system_refuses_is_the_machines_and_no_bug(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(_asked: object) -> None:
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setattr(cli, "application", refused)
    assert cli.run() == 3
    assert f"/some/file: {os.strerror(number).lower()}" in capsys.readouterr().err


def test_a_current_folder_that_is_gone_is_a_sentence(project: Path) -> None:
    gone = project / "gone"
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    for words in ("recipes", "check tiny", "runs"):
        gone.mkdir()
        command = ["bash", "-c", f"rmdir ../gone; {sys.executable} -m iis_finetune {words}"]
        done = subprocess.run(command, cwd=gone, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and "the current folder does not exist any more" in done.stderr, done.stderr


def test_one_bad_file_is_one_line_of_the_recipes(quick: Command, project: Path) -> None:
    os.mkfifo(project / "recipes" / "pipe.yaml")
    (project / "recipes" / "folder.yaml").mkdir()
    names = "abcdefghi"
    laughs = "a: &a [" + "x, " * 10 + "]\n"
    laughs += "".join(f"{n}: &{n} [{f'*{b}, ' * 10}]\n" for b, n in pairwise(names))
    for name, text in {"laughs": laughs, "self": "&r {kit: *r}", "secret": "kit: {env: {A_KEY: 1}}\na: 1"}.items():
        (project / "recipes" / f"{name}.yaml").write_text(text)
    listed = json.loads(quick("recipes", "--json").stdout)["recipes"]
    rows = {row["recipe"]: row for row in listed if not row["shipped"]}
    assert set(rows) == {"folder", "laughs", "pipe", "secret", "self", "tiny"}
    assert all("cannot be read" in rows[name]["description"] for name in ("folder", "laughs", "pipe", "self"))
    assert rows["tiny"]["stage"] == "sft"


ODD_NAMES = ("\x1b]0;x\x07", "\x9b31m", "\u202e", "\x7f", "\udcff")


def test_escape_sequences_are_shown_escaped_in_every_message(quick: Command, project: Path) -> None:
    for odd in ODD_NAMES:
        written = f"\\u{ord(odd[0]):04x}"
        for words in (("check", odd), ("status", odd), ("check", "tiny", f"a{odd}=1"), (odd,), ("data", "check", odd)):
            for more in ((), ("--json",)):
                done = quick(*words, *more)
                assert done.returncode == 2 and odd[0] not in done.stdout + done.stderr, words
                assert written in done.stdout + done.stderr or repr(odd)[1:-1] in done.stderr, words
                assert not more or not done.stdout or json.loads(done.stdout)
    text = RECIPE.replace("a few steps", '"\\e[31m').replace("tiny model", 'tiny"').replace("lora_rank", '"\\e[1m"')
    (project / "recipes" / "odd\x1b[31m.yaml").write_text(text)
    listed = quick("recipes")
    assert "odd\\u001b[31m" in listed.stdout and "\x1b" not in listed.stdout
    done = quick("check", "odd\x1b[31m")
    assert "'\\u001b[1m'" in done.stderr and "\x1b" not in done.stderr + done.stdout


def test_a_secret_in_a_file_of_another_verb_is_refused_too(quick: Command, project: Path) -> None:
    (project / "chat.yaml").write_text("model_name_or_path: models/tiny\ntemplate: qwen\nhf_hub_token: abc\n")
    for verb in ("chat", "serve", "export", "check"):
        done = quick(verb, "chat.yaml")
        assert done.returncode == 2 and "set it in the shell; it is passed on" in done.stderr, done.stderr
        assert "abc" not in done.stderr + done.stdout


def test_a_number_of_many_digits_is_no_run(quick: Command, project: Path) -> None:
    (project / "runs" / "0001-a").mkdir(parents=True)
    done = quick("status", "9" * 5000)
    assert done.returncode == 2 and "no run '999" in done.stderr and len(done.stderr) < 500
    assert quick("plan", "tiny", "--nodes", "9" * 11).returncode == 2


def test_a_relative_path_still_leads_there_from_the_run_folder(quick: Command, project: Path) -> None:
    (project / "zero.json").write_text("{}")
    made = json.loads(quick("plan", "tiny", "deepspeed=zero.json", "dataset_dir=data", "--json").stdout)
    assert made["arguments"]["deepspeed"] == str(project / "zero.json")
    assert made["arguments"]["dataset_dir"] == str(project / "data")


def test_keys_of_the_verbs_after_training_do_not_reach_it(quick: Command) -> None:
    made = json.loads(quick("plan", "tiny", "infer_backend=vllm", "export_size=2", "--json").stdout)
    assert not {"infer_backend", "export_size"} & set(made["arguments"])


def test_check_and_plan_look_at_a_path_or_a_hub_id_and_write_nothing(quick: Command, project: Path) -> None:
    (project / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n' * 9)
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    words = ("dataset=little,./rows.jsonl", "eval_dataset=rows.jsonl", "do_eval=true")
    for verb in ("check", "plan"):
        done = quick(verb, "tiny", *words)
        assert done.returncode == 0, done.stderr
        assert "./rows.jsonl is not registered; it is looked at as 'rows'" in done.stderr
    shown = quick("data", "preview", "tiny", "dataset=./rows.jsonl")
    assert shown.returncode == 2 and "fix:   iis-finetune data add ./rows.jsonl" in shown.stderr
    assert quick("data", "stats", "tiny", "dataset=./rows.jsonl").returncode == 0
    (project / "wrong.jsonl").write_text('{"question": "a", "answer": 1}\n')
    for verb in ("check", "train"):  # its rows are read
        wrong = quick(verb, "tiny", "dataset=./wrong.jsonl")
        assert wrong.returncode == 2 and "no valid sample" in wrong.stderr
    (project / "wrong.jsonl").unlink()
    for hub_id in ("someone/some.rows", "mistyped/name"):
        done = quick("check", "tiny", f"dataset={hub_id}")
        name = hub_id.partition("/")[2].replace(".", "_")
        assert done.returncode == 0 and f"the rows of '{name}' are not on this disk" in done.stderr, done.stderr
        assert f"iis-finetune data add {hub_id}" in done.stderr
    (project / "more").mkdir()
    (project / "more" / "rows.jsonl").write_text('{"question": "c", "answer": "d"}\n')
    both = quick("check", "tiny", "dataset=rows.jsonl,more/rows.jsonl")
    assert both.returncode == 2 and "'rows' is registered already" in both.stderr
    shutil.rmtree(project / "more")
    assert quick("check", "tiny", "dataset=" + "long/" * 2000 + "a.json").returncode == 2
    wrong = quick("check", "tiny", "dataset=./row.jsonl")
    assert wrong.returncode == 2 and "did you mean 'rows.jsonl'?" in wrong.stderr
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before
    (project / "little").write_text("a file that has the name of a data set")
    assert quick("check", "tiny", "dataset=little").returncode == 0
    (project / "recipes" / "own.yaml").write_text(RECIPE.replace("dataset: little", "dataset: rows.jsonl"))
    assert "iis-finetune data add 'rows.jsonl'" in quick("check", "own").stderr


def test_a_file_that_llamafactory_cannot_read_is_refused_with_the_command_that_writes_it(
    quick: Command, project: Path
) -> None:
    answer = "Jörg Müller, schöne Grüße, fünf Bäume, größer, schöner, süßer, übermütig!"
    (project / "my rows.csv").write_bytes(f"Frage;Antwort\nWie heißt du?;{answer}\n".encode("cp1252"))
    columns = "instruction=Frage,output=Antwort"
    done = quick("data", "add", "my rows.csv")
    assert done.returncode == 2 and f"iis-finetune data add 'my rows.csv' --columns {columns}" in done.stderr
    assert quick("data", "add", "my rows.csv", "--columns", "instrution=Frage").returncode == 2
    added = quick("data", "add", "my rows.csv", "--columns", columns)
    assert added.returncode == 0, added.stderr
    assert "my rows.csv: csv in CP1252, cells separated by ';'" in added.stdout
    assert "the rows are written to my rows.csv.utf8.jsonl, in UTF-8" in added.stdout
    assert "Alpaca format, 1 usable rows" in added.stdout and "instruction=Frage, output=Antwort;" in added.stdout
    assert quick("check", "tiny", "dataset=./my rows.csv").returncode == 0  # it is known by its file
    (project / "other.csv").write_text("question;answer\na;b\n")
    done = quick("check", "tiny", "dataset=./other.csv")
    assert done.returncode == 2 and "fix:   run: iis-finetune data add ./other.csv" in done.stderr


def test_data_add_says_what_part_was_read_where_the_file_stays_and_the_stage(
    quick: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "notes.txt").write_text("a line\n" * 30)
    added = quick("data", "add", "notes.txt")
    assert "with --copy it is put into" in added.stdout
    assert added.stdout.endswith("dataset=notes stage=pt\nnext: iis-finetune recipes\n")
    assert "plain text" in quick("check", "tiny", "dataset=notes").stderr
    monkeypatch.setattr(sys.modules["iis_finetune.dataset.add"], "Options", partial(dataset.Options, limit=20))
    monkeypatch.setattr(dataset, "LIMIT", 20)
    added = quick("data", "add", "notes.txt", "--name", "part")
    assert "first 20 of 30 rows read; all are read by: iis-finetune data check part --full" in added.stdout
    assert "(first 20 of 30 rows read; --full reads all)" in quick("data", "check", "part").stdout


def test_a_smoke_run_reads_a_sample_of_the_rows(project: Path) -> None:
    (project / "data" / "little.json").write_text(json.dumps([{"instruction": "a", "input": "", "output": "b"}] * 1500))
    workspace = runs.Workspace(project, project / "models", project / "runs")
    asked = preflight.Question("tiny", (), workspace, dict(os.environ), smoke=True)
    preflight.examine(asked)
    assert [reading.rows for reading in asked.readings.rows.values()] == [dataset.SAMPLE]


def test_a_machine_named_to_train_is_answered_with_the_verbs_that_take_one(quick: Command) -> None:
    done = quick("train", "tiny", "--on", "mi50")
    assert done.returncode == 2 and "fix:   iis-finetune plan RECIPE --on MACHINE, or check" in done.stderr


@pytest.mark.parametrize("verb", ["status", "watch", "logs"])
def test_a_verb_that_only_looks_means_the_last_run_when_none_is_named(quick: Command, verb: str) -> None:
    done = quick(verb)
    assert done.returncode == 2 and "there is no run yet" in done.stderr

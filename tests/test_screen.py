"""What a person at a terminal sees: progress at every width, commands that can be pasted, completion."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from conftest import RECIPE, ROOT, Command, run
from rich.cells import cell_len

from iis_finetune import runs
from iis_finetune.cli import attach, show
from iis_finetune.cli.meter import curve, sentence
from iis_finetune.cli.words import workspace
from iis_finetune.observe import Signs
from iis_finetune.process import Identity

NOW = Signs(120, 300, 2.1134, 0.8123, 1.0e-5, 0.4, 1240.0, 250.0, 1.4)
REDRAWN = re.compile(r"\x1b\[\d*[AK]")  # up a line, and wiped
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def screen_of(words: list[str], folder: Path, columns: int) -> list[str]:
    """The lines that a command leaves on a terminal of so many columns and 40 rows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "iis_finetune", *words]
    child = subprocess.Popen(command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # a terminal without its last program
            break
        if not part:
            break
        said += part
    os.close(ours)
    child.wait(60)
    lines = REDRAWN.sub("\n", said.decode()).replace("\r", "").split("\n")
    return [ESCAPES.sub("", line).rstrip() for line in lines]


@pytest.fixture
def trained(project: Path) -> Path:
    """A project with a run that has logged 120 of 300 steps, and whose training is over."""
    output = project / "runs" / "0001-a-recipe-of-mine" / "output"
    output.mkdir(parents=True)
    lines = [
        {
            "current_steps": step,
            "total_steps": 300,
            "loss": 4.0 - step / 60,
            "lr": 1.0e-5,
            "elapsed_time": f"0:{step // 60:02}:{step % 60:02}",
            "total_tokens": step * 1240,
        }
        for step in range(1, 121)
    ]
    (output / "trainer_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (output.parent / "train.log").write_text("{'loss': 2.0, 'grad_norm': 0.8123, 'learning_rate': 1e-05}\n")
    return project


@pytest.mark.parametrize("columns", [60, 80, 100, 140])
def test_step_loss_and_time_left_have_room_on_every_terminal(trained: Path, columns: int) -> None:
    lines = screen_of(["watch", "1"], trained, columns)
    assert max(map(cell_len, lines)) <= columns
    (told,) = {line for line in lines if "step 120/300" in line}
    assert "loss 2" in told and "3 min 00 s left" in told
    assert ("grad norm" in told) == (columns >= 80)
    assert ("learning rate" in told) == (columns >= 100)
    assert ("0001-a-recipe-of-mine" in told) == (columns >= 140)
    assert any("█" in line for line in lines), "the loss as a curve"


def test_a_curve_is_as_wide_as_its_room_and_falls_where_the_loss_does() -> None:
    rows = curve([3.0 - step / 1000 for step in range(2000)], 40)
    assert len(rows) == 5 and {cell_len(row) for row in rows} == {40}
    assert rows[0].startswith("3 █▆") and rows[-1].startswith("1 █") and rows[-1].endswith("▄▃▂")
    assert curve([2.0, 2.0], 80)[-1].split()[-1] == "▁▁", "a loss that stays is a flat line"


def test_a_sentence_keeps_step_loss_and_time_left_to_the_last() -> None:
    assert sentence(NOW).split("  ")[2:4] == ["grad norm 0.8123", "learning rate 1e-05"]
    assert sentence(NOW, 20) == "step 120/300  loss 2.113  4 min 10 s left"
    assert sentence(Signs(1, 2), 80) == "step 1/2  - left"


def test_a_meter_says_nothing_of_what_has_not_begun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show, "METER_AFTER_SECONDS", 0.0)
    with show.meter("reading rows") as move:
        move(0.0)
        assert capsys.readouterr().err == ""
        move(0.5)
        assert capsys.readouterr().err == "reading rows: 50%, 0 s left\n"


def test_a_verb_below_the_project_works_in_the_project_and_says_so(trained: Path) -> None:
    below = trained / "notes" / "deeper"
    below.mkdir(parents=True)
    for words in (["check", "tiny"], ["status", "1"], ["check", "../../recipes/tiny.yaml"]):
        done = run(words, below)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(f"project: {trained}\n") and done.stderr.count("project:") == 1
    assert run(["runs"], trained).stderr == ""
    (below / "rows.json").write_text((trained / "data" / "little.json").read_text())
    assert run(["data", "add", "rows.json", "--copy"], below).returncode == 0
    assert "rows" in json.loads((trained / "data" / "dataset_info.json").read_text())
    (below / "recipes").mkdir()
    assert run(["status", "1"], below).returncode == 2, "a folder with recipes is a project of its own"


def next_commands(said: str) -> list[str]:
    return re.findall(r"^next: (.+)$", said, re.MULTILINE)


def test_every_next_command_can_be_pasted(quick: Command, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Words that a shell splits are quoted, overrides are kept, a file that is no recipe here goes by its path."""
    mine = trained / "my recipes" / "mine & yours.yaml"
    mine.parent.mkdir()
    mine.write_text(RECIPE)
    asked = [
        ["recipes"],
        ["recipes", "--copy", "tiny", "other"],
        ["recipes", "--copy", "tiny", "my recipes/copied"],
        ["check", "tiny", "lora_rank=4", "kit.description=two words"],
        ["check", str(mine.relative_to(trained)), "lora_rank=4"],
        ["check", "tiny", "--on", "mi50x2"],
    ]
    said = [(words, quick(*words).stdout) for words in asked]
    for recipe in (mine, trained / "recipes" / "tiny.yaml"):
        words = ["lora_rank=4", "kit.description=two words"]
        request = runs.new_request(workspace(), {"recipe": str(recipe), "overrides": words})
        request.tell(smoked="0001-it-smoke")
        request.tell(exit=0)
        assert attach.to_request(request, Identity(2**22 + 1, 0, "")) == 0
        said.append((words, capsys.readouterr().out))
    for words, text in said:
        (command,) = next_commands(text)
        program, verb, *rest = shlex.split(command)
        assert program == "iis-finetune"
        done = quick(verb if verb != "train" else "plan", *rest)
        assert done.returncode in (0, 3), (command, done.stderr)
        overrides = [word for word in words if "=" in word]
        assert [word for word in rest if "=" in word] == overrides


def test_a_shell_completes_verbs_options_recipes_and_runs(trained: Path) -> None:
    cases = {
        "iis-finetune ev": ["evaluate"],
        "iis-finetune data a": ["add"],
        "iis-finetune train ti": ["tiny"],
        "iis-finetune export 0": ["0001-a-recipe-of-mine"],
        "iis-finetune train --sm": ["--smoke"],
    }
    for line, expected in cases.items():
        asked = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_IIS_FINETUNE_COMPLETE": "complete_bash"}
        program = ROOT / ".venv" / "bin" / "iis-finetune"
        done = subprocess.run(
            [program], cwd=trained, env={**os.environ, **asked}, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == expected, (line, done.stderr)


def test_a_verb_of_several_typed_alone_shows_them_and_is_no_error(quick: Command) -> None:
    done = quick("data")
    assert done.returncode == 0 and done.stderr == "" and "add" in done.stdout


@pytest.mark.parametrize(
    ("typed", "meant"), [("0001-a-recipe-of-mien", "0001-a-recipe"), ("a-recip-of-mine", "0001-a")]
)
def test_a_slip_in_the_name_of_a_run_gets_the_run_that_was_meant(
    quick: Command, trained: Path, typed: str, meant: str
) -> None:
    done = quick("status", typed)
    assert done.returncode == 2 and f"did you mean '{meant}" in done.stderr, trained


def test_a_hub_that_is_out_of_reach_is_told_in_the_words_of_the_verb(project: Path) -> None:
    recipe = (project / "recipes" / "tiny.yaml").read_text().replace("models/tiny", "Qwen/Qwen2.5-0.5B-Instruct")
    (project / "recipes" / "far.yaml").write_text(recipe)
    address = "http://127.0.0.1:9"
    for words, fix, other in (
        (["train", "far"], "kit.source=", "--source"),
        (["download", "far"], "--source ", "kit.source"),
    ):
        done = run(words, project, HF_ENDPOINT=address, MODELSCOPE_DOMAIN=address, NO_PROXY="127.0.0.1")
        assert done.returncode == 3 and fix in done.stderr and other not in done.stderr, done.stderr

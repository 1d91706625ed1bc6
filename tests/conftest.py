"""What several test files share: a tiny model, a project folder, the command line as a whole process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import advice
import pytest

from iis_finetune import cli, runs
from iis_finetune.plan import after
from iis_finetune.runs import Run

ROOT = Path(__file__).parent.parent
LONGEST = 1200.0  # seconds a command with real training may take, on a machine that is busy with other work
TINY = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
RECIPE = """\
kit:
  description: a few steps on a tiny model
  global_batch_size: 4
model_name_or_path: models/tiny
template: qwen
stage: sft
do_train: true
dataset: little
cutoff_len: 128
finetuning_type: lora
lora_rank: 8
lora_target: all
learning_rate: 1.0e-3
per_device_train_batch_size: 2
max_steps: 4
logging_steps: 1
save_steps: 2
"""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight Qwen2 of 0.1 M parameters with its tokenizer; made once a session, never changed."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    text = folder.parent / "text.txt"
    text.write_text("a few plain words, and 一些中文字。 0123456789 {}[]\n" * 50, encoding="utf-8")
    tokenizer = {"train_on": [str(text)], "vocab_size": 400}
    spec = folder.parent / "spec.json"
    spec.write_text(json.dumps({"config": TINY, "tokenizer": tokenizer, "seed": 1, "to": str(folder)}))
    command = [sys.executable, "-m", "iis_finetune.probe.scratch", str(spec)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return folder


def make_project(folder: Path, tiny_model: Path) -> Path:
    """Fill a folder with one recipe, one data set and the tiny model."""
    for name in ("recipes", "data", "models"):
        (folder / name).mkdir()
    (folder / "recipes" / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "models" / "tiny").symlink_to(tiny_model)
    rows = [{"instruction": f"say {n}", "input": "", "output": f"it is {n * 7}"} for n in range(32)]
    (folder / "data" / "little.json").write_text(json.dumps(rows), encoding="utf-8")
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    registry = {"little": {"file_name": "little.json", "columns": columns}}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(registry), encoding="utf-8")
    return folder


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Path:
    """A project folder of this test's own."""
    return make_project(tmp_path, tiny_model)


FAKE = Path(__file__).parent / "fake_training.py"


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with all of this one's packages, beside which another `llamafactory-cli` stands."""
    folder = tmp_path_factory.mktemp("environment")
    (folder / "bin").mkdir()
    real = Path(sys.executable).resolve()
    (folder / "pyvenv.cfg").write_text(f"home = {real.parent}\ninclude-system-site-packages = false\n")
    (folder / "bin" / "python").symlink_to(real)
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    program = folder / "bin" / "llamafactory-cli"
    program.write_text(f'#!/bin/sh\nexec "{real}" -S "{FAKE}" "$@"\n')
    program.chmod(0o755)
    (folder / "bin" / "torchrun").symlink_to(program)  # only looked for: the program above starts its own workers
    return folder / "bin" / "python"


@pytest.fixture(scope="session")
def evaluated_project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A project with one run, evaluated at its end on rows whose answers are JSON."""
    folder = make_project(tmp_path_factory.mktemp("evaluated"), tiny_model)
    training = RECIPE.split("model_name_or_path", 1)[1].replace("max_steps: 4", "max_steps: 30").replace("e-3", "e-2")
    recipe = f"kit:\n  evaluate_after: little\n  env: {{OMP_NUM_THREADS: 1}}\nmodel_name_or_path{training}"
    answers = [json.dumps({"UUID": f"A{n}", **({"mark": 3} if n % 3 else {})}) for n in range(24)]
    rows = [{"instruction": f"新闻 {n}", "input": "", "output": text} for n, text in enumerate(answers)]
    (folder / "recipes" / "tiny.yaml").write_text(recipe, encoding="utf-8")
    (folder / "data" / "little.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    done = run(["train", "tiny"], folder, LONGEST)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "evaluation on little, 24 rows" in done.stdout
    return folder


@pytest.fixture(scope="session")
def evaluated_run(evaluated_project: Path) -> Run:
    """The run of that project, finished and evaluated."""
    return runs.listed(runs.Workspace(evaluated_project, evaluated_project / "models", evaluated_project / "runs"))[-1]


@pytest.fixture(scope="session")
def children_environment(evaluated_run: Run) -> dict[str, str]:
    """The environment of what that run's verbs start."""
    chosen = json.loads(evaluated_run.decisions.read_text(encoding="utf-8"))["environment"]
    return after.one_process({**os.environ, **chosen})


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def iis(project: Path) -> Command:
    """Run `iis-finetune` as a user does, a whole process in the project folder."""
    return lambda *words, **options: run(words, options.pop("cwd", project), **options)


@pytest.fixture
def quick(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Like `iis`, in this very process: for what needs no process of its own."""

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(project)
        monkeypatch.setattr(sys, "argv", ["iis-finetune", *words])
        capsys.readouterr()
        code = cli.run()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, said.out, said.err)

    return call


def run(words: Sequence[str], folder: Path, timeout: float = 300, **extra: str) -> subprocess.CompletedProcess[str]:
    """One command in a folder, with a limit in seconds; `extra` are environment variables."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra}
    command = [sys.executable, "-m", "iis_finetune", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def marked(mark: Mapping[str, str]) -> list[str]:
    """The processes, by what /proc says of them, whose environment holds a variable that a test made up."""
    wanted = {f"{name}={value}".encode() for name, value in mark.items()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                found.append(f"{folder.name} {(folder / 'cmdline').read_bytes().decode(errors='replace')}")
        except OSError:  # it ended in between
            continue
    return found


def left_after(mark: Mapping[str, str], seconds: float) -> list[str]:
    """Those of these processes that are still there when the time is over."""
    until = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


HEARD = pytest.StashKey[advice.Ear]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="write the golden plans anew; read the diff")
    parser.addoption("--collect-advice", metavar="FILE", help="collect every next: and fix: line, and try each")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--collect-advice"):
        patch = pytest.MonkeyPatch()
        config.add_cleanup(patch.undo)
        config.stash[HEARD] = advice.collect(patch)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if HEARD in config.stash:
        heard = config.stash[HEARD].heard
        Path(config.getoption("--collect-advice")).write_text(
            "\n".join(sorted(map(": ".join, heard))), encoding="utf-8"
        )
        terminalreporter.section("advice")
        for line in advice.counted(heard):
            terminalreporter.write_line(line)

"""Several adapters on one base: who can share it, whose answer it is, what a person who compares them sees."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import LONGEST, ROOT
from test_after import free_port

from iis_finetune import cli
from iis_finetune.errors import Misused
from iis_finetune.plan.after import Trained, Weights
from iis_finetune.plan.together import for_vllm, together
from iis_finetune.probe import chat
from iis_finetune.runs import Run

# Before anything is loaded

LORA = {"model_name_or_path": "m", "template": "qwen", "finetuning_type": "lora", "stage": "sft"}


def made(name: str, weights: Weights | None = None, precision: str = "fp32", **arguments: Any) -> Trained:
    given = {key: value for key, value in {**LORA, **arguments}.items() if value is not None}
    return Trained(name, given, weights or Weights(given["model_name_or_path"], (f"{name}/output",)), precision)


def test_runs_that_differ_in_nothing_that_answers_share_their_base() -> None:
    first = made("a", lora_rank=8, learning_rate=1e-4, flash_attn="sdpa", do_sample=True, infer_backend="vllm")
    others = [made("b", lora_rank=64, gradient_accumulation_steps=2, disable_gradient_checkpointing=True)]
    others.append(made("c", stage="dpo", temperature=0.95))  # LLaMA-Factory's own
    base, adapters = together([first, *others], with_base=True)
    assert (base.name, base.weights) == ("a, b, c, base", Weights("m"))
    assert adapters == {"a": "a/output", "b": "b/output", "c": "c/output", "base": None}
    assert "infer_backend" not in base.arguments


def test_vllm_is_told_the_rank_that_holds_them_all() -> None:
    command = for_vllm([made("a", lora_rank=8), made("b", lora_rank=20)])
    assert command.endswith("--enable-lora --max-lora-rank 32 --lora-modules a=a/output b=b/output")


def test_adapters_on_the_same_one_below_share_that_too() -> None:
    both = [made(name, Weights("m", ("sft/output", f"{name}/output"))) for name in ("a", "b")]
    base, adapters = together(both, with_base=False)
    assert base.weights == Weights("m", ("sft/output",))
    assert adapters == {"a": "a/output", "b": "b/output"}


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        (made("b", model_name_or_path="n"), "the base model differs (m, n)"),
        (made("b", model_revision="v2"), "the model_revision differs (main, v2)"),
        (made("b", precision="bf16"), "the precision differs (float32, bfloat16)"),
        (made("b", quantization_bit=4), "the quantization_bit differs (None, 4)"),
        (made("b", template="llama3"), "the template differs (qwen, llama3)"),
        (made("b", default_system="Be short."), "the default_system differs (None, Be short.)"),
        (made("b", finetuning_type="oft"), "the method differs (lora, oft)"),
        (made("b", Weights("m", ("sft", "b"))), "the adapter below differs (none, sft)"),
        (
            made("b", precision="bf16", template="llama3"),
            "the precision differs (float32, bfloat16); the template differs (qwen, llama3)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_parts_two_runs_is_named(other: Trained, differing: str) -> None:
    with pytest.raises(Misused) as refused:
        together([made("a"), other], with_base=False)
    assert str(refused.value) == f"a and b cannot share one base in memory: {differing}"
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("alone", "why"),
    [
        (made("b", Weights("b/output"), finetuning_type="full"), "b is a whole model, not an adapter"),
        (made("b", Weights("m")), "b is a whole model, not an adapter"),
        (made("b", stage="rm"), "b is a reward model, which answers nothing"),
        (made("b", pissa_init=True), "b has a PiSSA adapter, which changes the base too"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_stands_alone_is_told_why(alone: Trained, why: str) -> None:
    with pytest.raises(Misused, match=f"{why}: it cannot share a base with others"):
        together([made("a"), alone], with_base=False)
    together([made("a"), made("b", pissa_init=True, pissa_convert=True)], with_base=False)


ANSWERS = {"0001-a": "first\n{[/x]}", "0002-b": "第二"}


@pytest.mark.parametrize(("columns", "lines"), [(80, 2), (60, 3)])
def test_answers_stand_side_by_side_where_there_is_room(
    columns: int, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"COLUMNS": str(columns), "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    chat.tell(ANSWERS)
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert len(said) == lines
    assert said[0].split() == ["0001-a:", "first", *(["0002-b:", "第二"] if lines == 2 else [])]
    assert said[1].strip() == "{[/x]}"


def test_answers_that_go_into_a_file_are_one_below_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    chat.tell({"a": "x" * 200, "b": "y"})
    assert capsys.readouterr().out == f"a: {'x' * 200}\nb: y\n"


# On real runs

QUESTIONS = ("新闻 1", "新闻 7", "say 3")
FIRST, SECOND = "0001-tiny", "0002-other.v2"  # no part of PEFT's own names may hold a dot


@pytest.fixture(scope="module")
def two(evaluated_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with that run, and another whose adapter says something else."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("two")
    for name in (FIRST, SECOND):
        copy = Run(Path(shutil.copytree(evaluated_run.folder, folder / name)))
        with copy.arguments.open("a", encoding="utf-8") as file:
            file.write("max_new_tokens: 24\n")
    weights = folder / SECOND / "output" / "adapter_model.safetensors"
    save_file({key: 8 * value if "lora_B" in key else value for key, value in load_file(weights).items()}, weights)
    return folder


@contextmanager
def serving(names: Sequence[str], project: Path, runs: Path) -> Iterator[str]:
    """The address of a server of these runs, perhaps not ready yet."""
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IIS_RUNS": str(runs), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "iis_finetune", "serve", *names, "--port", str(port)]
    log = runs / f"{port}.log"
    with log.open("wb") as stream:
        child = subprocess.Popen(
            words, cwd=project, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(child.pid, signal.SIGINT)
        child.wait(60)


def asked(address: str, model: str, question: str, stream: bool = False) -> str:
    """A greedy answer, as the OpenAI client gets it."""
    import openai

    client = openai.OpenAI(base_url=address, api_key="none", timeout=120, max_retries=0)
    given: Any = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}
    if stream:
        parts = client.chat.completions.create(**given, stream=True)
        return "".join(part.choices[0].delta.content or "" for part in parts)
    return str(client.chat.completions.create(**given).choices[0].message.content)


def ready(address: str) -> str:
    import requests

    until = time.monotonic() + LONGEST
    while time.monotonic() < until:
        try:
            requests.get(f"{address}/models", timeout=LONGEST).raise_for_status()  # it listens before it has loaded
        except requests.ConnectionError:
            time.sleep(0.2)
        else:
            return address
    raise TimeoutError(address)


@pytest.fixture(scope="module")
def servers(evaluated_project: Path, two: Path) -> Iterator[dict[str, str]]:
    """The addresses of both runs and the base on one base, and of each run alone."""
    with ExitStack() as stack:
        all_ = (f"{FIRST} {SECOND} base", FIRST, SECOND)
        found = {names: stack.enter_context(serving(names.split(), evaluated_project, two)) for names in all_}
        yield {"together" if " " in names else names: ready(address) for names, address in found.items()}


@pytest.fixture(scope="module")
def alone(servers: dict[str, str]) -> dict[tuple[str, str], str]:
    """What each run answers when it is served alone."""
    return {(name, each): asked(servers[name], name, each) for name in (FIRST, SECOND) for each in QUESTIONS}


@pytest.mark.slow
def test_each_name_answers_as_it_does_alone(servers: dict[str, str], alone: dict[tuple[str, str], str]) -> None:
    import openai

    address = servers["together"]
    client = openai.OpenAI(base_url=address, api_key="none", timeout=60)
    assert [model.id for model in client.models.list()] == [FIRST, SECOND, "base"]
    assert {key: asked(address, *key) for key in alone} == alone
    for each in QUESTIONS:
        assert alone[FIRST, each] != alone[SECOND, each] and alone[FIRST, each]
        assert asked(address, "base", each) not in (alone[FIRST, each], alone[SECOND, each])
    with pytest.raises(openai.NotFoundError, match=f"no model 'gpt-4' here; there are: {FIRST}, {SECOND}, base"):
        asked(address, "gpt-4", "x")


@pytest.mark.slow
def test_answers_to_many_at_once_do_not_mix(servers: dict[str, str], alone: dict[tuple[str, str], str]) -> None:
    wanted = [(*key, stream) for key in alone for stream in (False, True)] * 2
    with ThreadPoolExecutor(len(wanted)) as pool:
        found = list(pool.map(lambda each: asked(servers["together"], *each), wanted))
    bare = [re.sub(r"\s", "", text) for text in found]  # a streamed answer keeps other blanks
    assert bare == [re.sub(r"\s", "", alone[name, each]) for name, each, _ in wanted]


@pytest.mark.slow
def test_a_pipe_of_questions_is_answered_by_all(
    evaluated_project: Path, two: Path, alone: dict[tuple[str, str], str]
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IIS_RUNS": str(two), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "iis_finetune", "chat", "--compare", FIRST, SECOND, "base"],
        cwd=evaluated_project,
        env=environment,
        input="\n".join((*QUESTIONS, "", "exit", "never asked")),
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "never asked" not in done.stdout
    for each in QUESTIONS:
        told = done.stdout.partition(f"User: {each}\n")[2].partition("\nUser: ")[0]
        said = dict(zip((FIRST, SECOND, "base"), re.split(r"^\S+: ", told, flags=re.MULTILINE)[1:], strict=True))
        assert {name: said[name].rstrip("\n") for name in (FIRST, SECOND)} == {
            name: alone[name, each].rstrip("\n") for name in (FIRST, SECOND)
        }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["serve", "1", FIRST], f"{FIRST} is named twice"),
        (["serve", "base", "base"], "base is named twice"),
        (["serve", "1", "2", "--checkpoint", "2"], "--checkpoint goes with one run"),
        (["serve", "1", "2", "--host", "0.0.0.0"], "there is no API key"),
        (["serve", "1", "3"], "the template differs (qwen, llama3)"),
        (["chat", "--compare", "1", "4"], "trained on different files of the base model"),
        (["chat", "1", "2"], "fix:   iis-finetune chat --compare 1 2"),
        (["chat", "1", "--compare"], "fix:   iis-finetune chat --compare 1 base"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_share_is_refused_before_anything_is_loaded(
    words: list[str],
    told: str,
    evaluated_project: Path,
    two: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, file, was, becomes in (
        ("0003-template", "arguments.yaml", "template: qwen", "template: llama3"),
        ("0004-files", "provenance.json", '"model_fingerprint": "', '"model_fingerprint": "0'),
    ):
        if not (two / name).exists():
            changed = Path(shutil.copytree(two / FIRST, two / name)) / file
            text = changed.read_text(encoding="utf-8")
            assert was in text
            changed.write_text(text.replace(was, becomes), encoding="utf-8")
    monkeypatch.chdir(evaluated_project)
    monkeypatch.setenv("IIS_RUNS", str(two))
    monkeypatch.delenv("API_KEY", raising=False)
    monkeypatch.setattr(sys, "argv", ["iis-finetune", *words])
    assert cli.run() == 2
    said = capsys.readouterr().err
    assert told in said and "loading" not in said

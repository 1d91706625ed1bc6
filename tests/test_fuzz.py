"""Whatever recipes, overrides and run folders hold, a verb ends with sentences: no trace, no bug, within seconds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, make_project
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iis_finetune import cli, launch
from iis_finetune.arguments import frozen_table
from iis_finetune.recipe import KIT_KEYS, read

TABLE = frozen_table()
FEW, MANY = 200, 2_000
LONGEST_SECONDS = 5.0  # of one core
SEED = int(os.environ.get("FUZZ_SEED") or random.SystemRandom().randrange(10**9))
PATHS = ("model_name_or_path", "adapter_name_or_path", "dataset_dir", "tokenized_path", "deepspeed", "export_dir")
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 9),
    st.floats(),
    st.floats(0, 2),
    st.text(max_size=20),
    st.sampled_from(["~nobody/here", "x" * 300, "/" + "y/" * 3000, "z" * 9000]),  # no file can have such a name
    st.sampled_from(["", "auto", "none", "no", "all", "a,b", "models/tiny", "~", "${x}", "2e-4", "1:30", "0x1F", "\0"]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def own_value(key: str) -> st.SearchStrategy[Any]:
    """Anything, or one of the values that this argument takes."""
    argument = TABLE.get(key)
    known = list(argument.choices or ()) if argument else []
    return st.one_of(values, *([st.sampled_from(known)] if known else []))


real_keys = st.sampled_from(sorted(TABLE)) | st.sampled_from(PATHS)
kit_keys = st.sampled_from([name for name in KIT_KEYS if name != "base"])
lines = st.lists(real_keys.flatmap(lambda key: st.tuples(st.just(key), own_value(key))), min_size=1, max_size=6).map(
    dict
)
blocks = st.lists(st.tuples(kit_keys, values), max_size=3).map(dict)


def code_of(*words: str) -> tuple[int, str]:
    """The command line's own path, in this process: its exit code, and all it says."""
    said = io.StringIO()
    before, sys.argv = sys.argv, ["iis-finetune", *words]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = cli.run()
    finally:
        sys.argv = before
    return code, said.getvalue()


def check(file: Path, *words: str) -> None:
    told(["check", str(file), *words])


@dataclass(frozen=True)
class Took:
    """What one command cost: seconds of one core, its own children's too, which a busy computer does not change."""

    core_seconds: float
    wall_seconds: float
    words: str

    def __str__(self) -> str:
        return f"{self.core_seconds:.2f} s of a core, {self.wall_seconds:.2f} s by the clock: {self.words[:200]}"


@contextlib.contextmanager
def timed(words: list[str], took: list[Took]) -> Iterator[None]:
    """Add what happens in it to the list."""
    core, wall = core_seconds(), time.monotonic()
    yield
    took.append(Took(core_seconds() - core, time.monotonic() - wall, f"{words}"))
    assert took[-1].core_seconds < LONGEST_SECONDS, took[-1]


def core_seconds() -> float:
    """User and system time of this process and of the children that it has waited for."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in both)


def told(words: list[str], codes: tuple[int, ...] = (0, 2, 3)) -> Took:
    """What a verb cost; it ends in time and without a trace, with one of the codes that are documented."""
    took: list[Took] = []
    with timed(words, took):
        code, said = code_of(*words)
    assert code in codes and "Traceback" not in said, f"{words}: {trace(said)}"
    return took[0]


def show_slowest(took: list[Took]) -> None:
    """Print it: `pytest -s` shows how near to the limit it comes."""
    print(f"the slowest of {len(took)}: {max(took, key=lambda each: each.core_seconds)}")


def trace(said: str) -> str:
    log = re.search(r"/\S+\.log", said)
    return Path(log[0]).read_text(encoding="utf-8") if log else said


@pytest.fixture
def recipe(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project / "recipes" / "tiny.yaml"


def a_real_recipe_with_other_values(recipe: Path, given_lines: dict[str, Any], block: dict[str, Any]) -> None:
    document = launch.document_of(read(str(recipe))[0])
    document = {**document, **given_lines, **({"kit": block} if block else {})}
    file = recipe.with_name("fuzzed.yaml")
    file.write_text(launch.yaml_text(document), encoding="utf-8", errors="replace")
    check(file)


def any_yaml(recipe: Path, document: Any) -> None:
    file = recipe.with_name("fuzzed.yaml")
    file.write_text(launch.yaml_text({"a": document})[2:].lstrip(), encoding="utf-8", errors="replace")
    check(file, "--on", "cpu")


def any_bytes(recipe: Path, content: bytes) -> None:
    file = recipe.with_name("fuzzed.yaml")
    file.write_bytes(content)
    check(file, "--on", "cpu")


text = st.text(alphabet=st.sampled_from("abk: -[]{}#&*!|>'\"%@`,?\n\t0123456789.~\u00e9\u4e2d\u2028\0")).map(str.encode)


@settings(max_examples=FEW // 2, deadline=None, suppress_health_check=QUIET)
@given(lines, blocks)
def test_other_values_for_real_keys_are_sentences(recipe: Path, lines: dict[str, Any], block: dict[str, Any]) -> None:
    a_real_recipe_with_other_values(recipe, lines, block)


@settings(max_examples=FEW // 4, deadline=None, suppress_health_check=QUIET)
@given(values)
def test_any_yaml_is_a_sentence(recipe: Path, document: Any) -> None:
    any_yaml(recipe, document)


@settings(max_examples=FEW // 4, deadline=None, suppress_health_check=QUIET)
@given(st.binary(max_size=300) | text)
def test_any_bytes_are_a_sentence(recipe: Path, content: bytes) -> None:
    any_bytes(recipe, content)


@pytest.mark.extended
@settings(max_examples=MANY // 2, deadline=None, suppress_health_check=QUIET)
@given(lines, blocks)
def test_many_other_values_are_sentences(recipe: Path, lines: dict[str, Any], block: dict[str, Any]) -> None:
    a_real_recipe_with_other_values(recipe, lines, block)


@pytest.mark.extended
@settings(max_examples=MANY // 4, deadline=None, suppress_health_check=QUIET)
@given(values)
def test_many_yaml_files_are_sentences(recipe: Path, document: Any) -> None:
    any_yaml(recipe, document)


@pytest.mark.extended
@settings(max_examples=MANY // 4, deadline=None, suppress_health_check=QUIET)
@given(st.binary(max_size=300) | text)
def test_many_files_of_any_bytes_are_sentences(recipe: Path, content: bytes) -> None:
    any_bytes(recipe, content)


def seeded(number: int) -> Iterator[random.Random]:
    """So many generators; FUZZ_SEED=N has the same ones again."""
    for each in range(number):
        print(f"FUZZ_SEED={SEED + each}")  # the last one that a failing test prints is the one to try
        yield random.Random(SEED + each)


ODD = [
    *("0x" + "f" * 4500, "9" * 4500, "-" + "1:" * 900 + "1", "1e999", "-.inf", ".nan", "0o9", "0b", "1_0", "017"),
    *("2024-02-30", "~", "", "null", "no", "'1'", '"\\ud800"', '"\\0"', '"\\e[31m"', '"\\x9b"', "\u202e", "\U0001f600"),
    *("=", "<<", "!!int x", "!!binary eA==", "!!set {a}", "!x y", "!!python/name:os.system", "*a", "*no", "&a", "? a"),
    *("- - a", "{{run}}", "{models}", "${x}", "%s", "../" * 50, "/dev/zero", "/proc/self/mem", "x" * 5000, "a,,b"),
    *("[" * 99, "|", ">-"),
]
PLAIN = ["1", "0.5", "true", "lora", "*b"]
KEYS = [*sorted(TABLE), *(f"kit.{name}" for name in KIT_KEYS), "kit", "<<", "a\x07"]
BROKEN_TEXT: list[Callable[[random.Random, bytes], bytes]] = [
    lambda _, text: text,
    lambda rng, text: text[: rng.randrange(len(text) + 1)],
    lambda rng, text: text.decode("utf-8", "replace").encode(rng.choice(["utf-16", "latin-1", "utf-8-sig"]), "replace"),
    lambda rng, text: b"".join(rng.choice([b"\n", b"\t", b"\r", b"  ", b""]) + line for line in text.splitlines(True)),
    lambda rng, text: text.replace(b" ", rng.choice([b"\xa0", b"\t", b"\xff", b"\0"]), rng.randrange(4)),
]


def node(rng: random.Random, deep: int = 0) -> str:
    """A value in flow style, with anchors, aliases, tags and merges in it."""
    anchor = rng.choice(["", "", "", "&a ", "&b "])
    pick = rng.random()
    if pick < 0.5 or deep > 4:
        return anchor + rng.choice([*ODD, *PLAIN, repr(rng.random()), str(rng.randrange(-9, 99))])
    inner = [node(rng, deep + 1) for _ in range(rng.randrange(4))]
    if pick < 0.75:
        return f"{anchor}[{', '.join(inner)}]"
    names = [rng.choice(["<<", "a", "b", "HF_TOKEN", "A=B", "? [x]", rng.choice(KEYS)]) for _ in inner]
    return f"{anchor}{{{', '.join(f'{name}: {each}' for name, each in zip(names, inner, strict=True))}}}"


def recipe_text(rng: random.Random) -> bytes:
    lines = ["model_name_or_path: models/tiny", "template: qwen", "stage: sft", "do_train: true", "dataset: little"]
    for _ in range(rng.randrange(8)):
        key, value = rng.choice(KEYS), node(rng)
        lines.insert(rng.randrange(len(lines) + 1), f"{key}: {value}")
    if rng.random() < 0.2:
        lines.append("kit:\n" + "".join(f"  {rng.choice(sorted(KIT_KEYS))}: {node(rng)}\n" for _ in range(3)))
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    return rng.choice(BROKEN_TEXT)(rng, text)


def override(rng: random.Random) -> str:
    word = f"{rng.choice([*KEYS, '', '-', 'kit.', 'kit.env.A'])}{rng.choice(['=', '=', '=', ' = ', ''])}{node(rng)}"
    return word.replace("\0", "")


def odd_recipes_and_overrides(recipe: Path, number: int) -> None:
    file, took = recipe.with_name("fuzzed.yaml"), []
    for rng in seeded(number):
        file.write_bytes(recipe_text(rng))
        verb = rng.choice(["check", "check", "plan", "recipes"])
        more = ["--json"] * rng.randrange(2)
        on = ["fuzzed", "--on", rng.choice(["cpu", "mi50x2"])] if verb != "recipes" else []
        took.append(told([verb, *on, *more]))
        overrides = [override(rng) for _ in range(rng.randrange(1, 4))]
        took.append(told(["check", "tiny", "--on", "cpu", *overrides, *more]))
    show_slowest(took)


def whole_processes(recipe: Path, number: int) -> None:
    file = recipe.with_name("fuzzed.yaml")
    took: list[Took] = []
    for rng in seeded(number):
        file.write_bytes(recipe_text(rng))
        given = override(rng).encode("utf-8", "ignore").decode()
        command = [sys.executable, "-m", "iis_finetune", "check", "fuzzed", given]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": rng.choice(["C", "C.UTF-8", "POSIX"])}
        with timed(command[2:], took):
            done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
        said = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode in {0, 2, 3} and "Traceback" not in said, trace(said)
    show_slowest(took)


@pytest.fixture(scope="module")
def failed_project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, python: Path) -> Path:
    """A project with one run of the staged training, which crashed twice at the same step."""
    folder = make_project(tmp_path_factory.mktemp("failed"), tiny_model)
    crash = json.dumps([{"at": 5, "do": "crash"}] * 2)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FAKE": crash}
    command = [str(python), "-m", "iis_finetune", "train", "tiny"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return folder


WRONG: list[Any] = [
    *(None, True, -1, 10**30, 1e308, float("nan"), "", "x" * 5000, "\ud800", "\0", "../.."),
    *([], [[]], {}, {"a": {}}, ["x"]),
]
VERBS = [
    *(
        ["runs"],
        ["runs", "--json"],
        ["status", "1"],
        ["status", "1", "--json"],
        ["logs", "1"],
        ["logs", "1", "-n", "3"],
    ),
    *(["report", "1"], ["stop", "1"], ["watch", "1"], ["evaluate", "1"], ["export", "1"], ["chat", "1"]),
    *(["resume", "1", "lora_rnak=1"], ["status", "last"], ["serve", "1"]),
]


def wrong_types(rng: random.Random, value: Any) -> Any:
    """The same document with one value, at any depth, of another type."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        copied = value.copy()
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        copied[key] = wrong_types(rng, copied[key])
        return copied
    return rng.choice(WRONG)


def wrong_line(rng: random.Random, text: str) -> str:
    try:
        return json.dumps(wrong_types(rng, json.loads(text)), ensure_ascii=rng.random() < 0.9)
    except ValueError:
        return f"{text.partition(':')[0]}: {node(rng)}"


def damage(rng: random.Random, run: Path) -> None:
    """Do to one file of a run what crashes, other programs and other hands do."""
    path = rng.choice([each for each in run.rglob("*") if each.is_file() and not each.is_symlink()])
    content = path.read_bytes()
    how = rng.randrange(7)
    if how < 3:
        text = content.decode(errors="replace")
        lines = [text] if path.suffix == ".json" else text.splitlines()
        number = rng.randrange(len(lines)) if lines else 0
        lines[number : number + 1] = [wrong_line(rng, "".join(lines[number : number + 1]))]
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    elif how == 3:
        path.write_bytes(content[: rng.randrange(len(content) + 1)])
    elif how == 4:
        path.write_bytes(rng.randbytes(rng.randrange(200)))
    else:
        path.unlink()
        if how == 5:
            path.mkdir()
        elif rng.random() < 0.5:
            path.symlink_to(rng.choice([path.name, "/dev/null"]))


def damaged_runs(project: Path, scratch: Path, number: int) -> None:
    run, took = next((project / "runs").glob("0001-*")), []
    for rng in seeded(number):
        place = scratch / "runs" / run.name
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(run, place, symlinks=True)
        for _ in range(rng.randrange(1, 4)):
            damage(rng, place)
        os.environ["IIS_RUNS"] = str(scratch / "runs")
        took.append(told(rng.choice(VERBS), (0, 1, 2, 3)))
    show_slowest(took)


@pytest.fixture
def in_project(failed_project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(failed_project)
    monkeypatch.setenv("IIS_RUNS", "")  # set anew by each damaged run
    return failed_project


def test_odd_recipes_and_overrides_are_sentences(recipe: Path) -> None:
    odd_recipes_and_overrides(recipe, 60)


def test_whole_processes_of_odd_recipes_are_sentences(recipe: Path) -> None:
    whole_processes(recipe, 3)


def test_damaged_run_folders_are_sentences(in_project: Path, tmp_path: Path) -> None:
    damaged_runs(in_project, tmp_path, 100)


@pytest.mark.extended
def test_many_odd_recipes_and_overrides_are_sentences(recipe: Path) -> None:
    odd_recipes_and_overrides(recipe, 3_000)


@pytest.mark.extended
def test_many_whole_processes_of_odd_recipes_are_sentences(recipe: Path) -> None:
    whole_processes(recipe, 300)


@pytest.mark.extended
def test_many_damaged_run_folders_are_sentences(in_project: Path, tmp_path: Path) -> None:
    damaged_runs(in_project, tmp_path, 2_000)

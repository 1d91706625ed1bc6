"""Whatever a recipe holds, `check` ends with 0, 2 or 3 and sentences: never with a trace."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iis_finetune import cli, launch
from iis_finetune.arguments import frozen_table
from iis_finetune.recipe import Kit, read

TABLE = frozen_table()
FEW, MANY = 200, 2_000
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
kit_keys = st.sampled_from([name for name in Kit.model_fields if name != "base"])
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
    code, said = code_of("check", str(file), *words)
    assert code in {0, 2, 3}, trace(said)
    assert "Traceback" not in said


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

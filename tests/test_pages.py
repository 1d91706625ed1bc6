"""The commands of the pages: each verb is there, each recipe with its overrides passes the check."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from iis_finetune import preflight, recipe
from iis_finetune.cli import VERBS
from iis_finetune.errors import errors_of
from iis_finetune.preflight import Question
from iis_finetune.runs import Workspace

PAGES = ("README.md", "recipes/README.md", "docs/walkthrough.md")
BEFORE = ("check", "plan", "train", "download")  # verbs that take a recipe
THEIR_OWN = ("my.yaml", "dataset=my_rows")  # what a reader has, and this project has not
NOT_HERE = ("missing",)  # a model or a build that this machine lacks


def commands(page: str) -> list[list[str]]:
    """The words of every command: lines of `sh` blocks that are no output, and code in tables."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    found = [*blocks, *re.findall(r"`((?:\.venv/bin/)?iis-finetune [^`]+|make [^`]+)`", text)]
    return [shlex.split(line, comments=True) for line in found if line.split("#")[0].strip()]


ALL = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), ALL, ids=lambda each: " ".join(each) if isinstance(each, list) else each)
def test_a_command_exists_and_its_recipe_passes_the_check(page: str, words: list[str]) -> None:
    program, *rest = words
    if program == "make":
        target = re.search(rf"^{rest[0]}\b.*:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert target, f"{page}: make {rest[0]}"
        return
    assert Path(program).name == "iis-finetune" and rest[0] in {*VERBS, "--help", "--install-completion"}, (
        f"{page}: {words}"
    )
    if rest[0] not in BEFORE or {*rest} & {*THEIR_OWN}:
        return
    machine = rest[rest.index("--on") + 1] if "--on" in rest else "rtx4090"
    overrides = tuple(each for each in rest[2:] if "=" in each)
    nowhere = Workspace(ROOT, Path("/nowhere/models"), Path("/nowhere/runs"))
    found = preflight.examine(Question(rest[1], overrides, nowhere, {}, machine))
    assert [each for each in errors_of(found.problems) if each.kind not in NOT_HERE] == []
    assert found.plan.memory.per_device_gib


def test_every_recipe_is_on_the_page_and_every_row_is_a_recipe() -> None:
    text = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[?`(\w+)`", text.partition("## Overrides")[0], re.MULTILINE)
    assert sorted(rows) == sorted(recipe.registered(ROOT / "recipes"))


def test_both_pages_hold_commands() -> None:
    assert all(len(commands(page)) >= 5 for page in PAGES)


def test_the_chinese_page_has_the_english_pages_commands_and_names() -> None:
    """Explanations after # are translated, commands, keys and recipes are not."""
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    assert _commands(english) == _commands(chinese) and len(_commands(english)) > 20
    english = english.partition("## The tree")[0]  # the figures behind it stand on one page alone
    assert _keys(english) == [key.replace("、", ", ") for key in _keys(chinese)]


def _keys(page: str) -> list[str]:
    return re.findall(r"^\| (`.*?`)", page, re.MULTILINE)


def _commands(page: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    return [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]

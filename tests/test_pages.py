"""The pages: each command can be typed, each recipe passes the check as it is typed, both languages say the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from advice import wrong_with
from conftest import ROOT

from iis_finetune import preflight, recipe
from iis_finetune.errors import errors_of
from iis_finetune.preflight import Question
from iis_finetune.runs import Workspace

TWINS = {  # each page in English: the same in Chinese
    "README.md": "README.zh-CN.md",
    "recipes/README.md": "recipes/README.zh-CN.md",
    **{f"docs/{file.name}": f"docs/zh-CN/{file.name}" for file in sorted((ROOT / "docs").glob("*.md"))},
}
PAGES = [*TWINS, *TWINS.values()]
BEFORE = ("check", "plan", "train", "download")  # verbs that take a recipe
# What a reader has, and this project has not.
THEIR_OWN = ("my.yaml", "dataset=my_rows", "dataset=my_rows_clean_train")
SHELL = (
    "source .venv/bin/activate",
    "iis-finetune --install-completion",
    "export IIS_RUNS=",
    "conda env create",
    "vllm serve",
    "python3 -m venv",
    "pip install iis_finetune",
    "cd ",
)
NOT_HERE = ("missing",)  # a model or a build that this machine lacks
INLINE = r"`((?:\.venv/bin/)?iis-finetune [^`]+|make [^`]+)`"
ACTIVATED = "source .venv/bin/activate"


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str, kind: str) -> list[str]:
    return [body for found, body in re.findall(r"```(\w*)\n(.*?)```", text_of(page), re.DOTALL) if found == kind]


def commands(page: str) -> list[str]:
    """Every command: the lines of `sh` blocks without their explanations, then the code between the words."""
    lines = [line for block in blocks_of(page, "sh") for line in block.splitlines()]
    found = [line.partition(" > ")[0] for line in (*lines, *re.findall(INLINE, text_of(page)))]
    return [shlex.join(words) for line in found if (words := shlex.split(line, comments=True))]


ALL = {command: page for page in PAGES for command in commands(page)}


@pytest.mark.parametrize("command", ALL)
def test_a_command_can_be_typed_and_its_recipe_passes_the_check(command: str) -> None:
    if command.startswith(SHELL):
        return
    words = [each for each in shlex.split(command) if not re.match(r"[A-Z_]+=", each) or command.startswith("make")]
    assert wrong_with(words) is None, ALL[command]
    verb, *rest = words[1:]
    if words[0] == "make" or verb not in BEFORE or {*rest} & {*THEIR_OWN} or "--help" in rest:
        return
    machine = rest[rest.index("--on") + 1] if "--on" in rest else "mi50x2" if "--nodes" in rest else "rtx4090"
    overrides = tuple(each for each in rest[1:] if "=" in each)
    nowhere = Workspace(ROOT, Path("/nowhere/models"), Path("/nowhere/runs"))
    found = preflight.examine(Question(rest[0], overrides, nowhere, {}, machine))
    assert [each for each in errors_of(found.problems) if each.kind not in NOT_HERE] == []
    assert found.plan.memory.per_device_gib


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_types_was_made_reachable_before(page: str) -> None:
    """Without an active environment there is no `iis-finetune` in a new terminal."""
    typed = re.search(r"(?:^|`)iis-finetune \w", text_of(page), re.MULTILINE)
    assert typed is None or text_of(page).index(ACTIVATED) < typed.start()


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_every_link_leads_somewhere(page: str) -> None:
    links = [each for each in re.findall(r"\]\(([^)]+)\)", text_of(page)) if not each.startswith("http")]
    for link in links:
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in titles]


def test_the_first_screen_leads_through_the_first_hour_and_to_every_page() -> None:
    for page in (name for name in PAGES if name.startswith("README")):
        first = "\n".join(text_of(page).splitlines()[:40])
        words = ("make setup", ACTIVATED, "train quickstart", "data add", "--on", "my.yaml", "docs/")
        assert [each for each in words if each not in first] == []
    linked = set(re.findall(r"\]\(((?:docs|recipes)/[\w.-]+)", text_of("README.md")))
    assert linked == {*TWINS} - {"README.md"}


@pytest.mark.parametrize(("english", "chinese"), TWINS.items())
def test_both_languages_have_the_same_commands_outputs_and_names(english: str, chinese: str) -> None:
    """Explanations after # are translated; commands, outputs, keys and recipes are not."""
    assert sorted(commands(english)) == sorted(commands(chinese))
    for kind in ("", "python"):
        assert blocks_of(english, kind) == blocks_of(chinese, kind)
    assert names_in_tables(english) == names_in_tables(chinese)


def names_in_tables(page: str) -> list[list[str]]:
    rows = re.findall(r"^\|.+`.+$", text_of(page), re.MULTILINE)
    return [sorted(re.findall(r"`[^`]+`", row)) for row in rows]


def test_every_recipe_is_on_the_page_and_every_row_is_a_recipe() -> None:
    text = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[?`(\w+)`", text.partition("## Overrides")[0], re.MULTILINE)
    assert sorted(rows) == sorted(recipe.registered(ROOT / "recipes"))


@pytest.mark.parametrize("name", sorted(recipe.registered(ROOT / "recipes")))
def test_every_recipe_has_held_out_rows_but_those_of_reward_models(name: str) -> None:
    """A reward model gives no answers to compare; the test items themselves stand in no training file."""
    nowhere = Workspace(ROOT, Path("/nowhere/models"), Path("/nowhere/runs"))
    found = preflight.examine(Question(name, (), nowhere, {}, "rtx4090"))
    expected = {"rm": None, "pt": "quickstart_text_test"}.get(found.plan.settings["stage"], "intelligence_alpaca_test")
    assert found.recipe.kit.evaluate_after == expected
    assert found.recipe.kit.guard == ("general_test" if expected == "intelligence_alpaca_test" else None)
    assert [each for each in errors_of(found.problems) if each.kind not in NOT_HERE] == []

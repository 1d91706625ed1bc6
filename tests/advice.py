"""What the kit tells a user to type, tried as far as a machine can: commands by typer's own parser, lines of YAML by
the argument table.

`pytest --collect-advice FILE` collects the lines of a whole test run, and prints how many there are and how many work.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import typer

from iis_finetune import cli, recipe
from iis_finetune.arguments import settings_of, table
from iis_finetune.errors import Problem
from iis_finetune.recipe import KIT_KEYS

ROOT = Path(__file__).parent.parent
LINE = re.compile(r"^ *(next|fix): +(.+)$|; (next): (iis-finetune .+)$", re.MULTILINE)
TO_FILL_IN = re.compile(
    r"(?<![\w/.=-])(?:RECIPE|RUN|FILE|NAME|MACHINE|DIR|VERB)\b(?!=)|=(?:N|NAME|VALUE|value|FOLDER|\.\.\.)(?!\w)"
)
PROGRAM = r"(?:\.venv/bin/)?(?:iis-finetune|make) "
QUOTED = re.compile(rf"`({PROGRAM}[^`]+)`")
BARE = re.compile(rf"(?:^|: |, then |, and |or )({PROGRAM}[^;()`]+)")
SETTING = re.compile(r"(?<!remove )\b(?:kit\.)?[a-z][a-z0-9_]+(?:: ?|=)(?:\{[^}]*\}|\[[^\]]*\]|[^\s,;]+)")
ELSEWHERE = ("sbatch",)  # other programs that a next step may be for
KEY = re.compile(r"\bwrite '([a-z][a-z0-9_.]+)'")
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def wrong_with(words: list[str]) -> str | None:
    """Why a command line cannot be typed; None when typer, or make, would take it."""
    program, *rest = words
    if Path(program).name == "make":
        wrong = [each for each in rest if "=" not in each and each not in TARGETS]
        return f"no target {wrong}" if wrong else None
    if program in ELSEWHERE:
        return None
    if Path(program).name != "iis-finetune":
        return f"'{program}' is no command of the kit's"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _parse(rest)
    except typer.Exit:  # --help, --version
        return None
    except Exception as error:  # noqa: BLE001 - whatever the parser says is the answer
        return getattr(error, "format_message", error.__str__)() or repr(error)
    return None


def _parse(rest: list[str]) -> None:
    command: Any = typer.main.get_command(cli.application(rest[:1]))
    context = command.make_context("iis-finetune", rest)
    while hasattr(command, "resolve_command"):
        name, command, left = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, left, parent=context)


def commands_in(text: str) -> list[str]:
    """The commands in a sentence of advice: what stands in backquotes, else what follows a colon or begins the line."""
    bare = [each for each in BARE.findall(QUOTED.sub("", text)) if _is_meant(each)]
    found = QUOTED.findall(text) or bare
    return [re.split(r", | and | \(| or |: it |$", each.strip())[0].rstrip(".,") for each in found]


def _is_meant(command: str) -> bool:
    """`make room` is English."""
    program, following, *_ = [*command.split(), ""]
    return program != "make" or following.rstrip(",.:") in TARGETS or bool(re.match(r"make [a-z-]+ [A-Z]+=", command))


def settings_in(text: str) -> list[tuple[str, str]]:
    """`key: value` and `key=value` in a sentence, where the key is an argument's or the kit block's."""
    found = [re.split(r": ?|=", each, maxsplit=1) for each in SETTING.findall(re.sub(rf"{PROGRAM}.*", "", text))]
    return [(key, value.strip("'\"`.)")) for key, value in found if _is_key(key)]


def _is_key(key: str) -> bool:
    return key in table() or (key.startswith("kit.") and key.removeprefix("kit.") in KIT_KEYS)


def wrong_setting(key: str, value: str, folder: Path) -> str | None:
    """Why a recipe would refuse the line; the value is read as an override of the house recipe."""
    read, problems = recipe.read("qwen7b_lora", [f"{key}={value}"], folder)
    _, more = settings_of(read)
    wrong = [each.what for each in (*problems, *more) if each.severity == "error" and each.where.key == key]
    return wrong[0] if wrong else None


def verdict(kind: str, text: str) -> tuple[str, str]:
    """What kind of advice a line is, and what is wrong with it (empty: nothing)."""
    commands = [text.rpartition(" && ")[2]] if kind == "next" else commands_in(text)
    wrong: list[str] = []
    for each in commands:
        try:
            wrong += filter(None, [wrong_with(shlex.split(each))])
        except ValueError as error:  # quotes that do not close
            wrong.append(str(error))
    settings = settings_in(text) if kind == "fix" else []
    wrong += [said for key, value in settings if (said := _of_setting(key, value))]
    keys = KEY.findall(text) if kind == "fix" else []
    wrong += [f"no argument '{key}'" for key in keys if not _is_key(key)]
    what = "a command" if commands else "a line of YAML" if settings else "a key" if keys else "words"
    return f"{what}, a name to fill in" if TO_FILL_IN.search(text) and what != "words" else what, "; ".join(wrong)


def _of_setting(key: str, value: str) -> str | None:
    return None if TO_FILL_IN.search(f"{key}={value}") else wrong_setting(key, value, ROOT / "recipes")


def said_in(text: str) -> list[tuple[str, str]]:
    """The `next:` and `fix:` lines in what a command printed."""
    return [(a, b) if a else (c, d) for a, b, c, d in LINE.findall(text)]


class Ear:
    """Keeps each distinct line of advice, from the words or the results of the functions that it listens to."""

    def __init__(self) -> None:
        self.heard = set[tuple[str, str]]()

    def on(self, function: Callable[..., Any], result: bool = False) -> Callable[..., Any]:
        """The function, listened to: to its result, a pair of outputs, or to its first argument."""

        def call(*words: Any, **options: Any) -> Any:
            returned = function(*words, **options)
            for text in filter(None, returned if result else words[:1]):
                self.heard |= {*said_in(text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text))}
            return returned

        return call


def collect(patch: pytest.MonkeyPatch) -> Ear:
    """Hear what the verbs print, here and in child processes, and the fix of each Problem that is made."""
    ear, make = Ear(), Problem.__init__

    def made(problem: Problem, *words: Any, **options: Any) -> None:
        make(problem, *words, **options)
        ear.heard.add(("fix", problem.fix))

    patch.setattr(Problem, "__init__", made)
    patch.setattr(cli.show, "line", ear.on(cli.show.line))
    patch.setattr(cli.show, "aside", ear.on(cli.show.aside))
    patch.setattr(subprocess.Popen, "communicate", ear.on(subprocess.Popen.communicate, result=True))
    return ear


def counted(heard: Iterable[tuple[str, str]]) -> list[str]:
    """How many lines of advice there are of each kind and how many of them work; then those that do not."""
    counts: Counter[tuple[str, str, bool]] = Counter()
    refused = []
    for kind, text in sorted(heard):
        what, wrong = verdict(kind, text)
        counts[kind, what, not wrong] += 1
        refused += [f"{kind}: {text}\n    {wrong}"] if wrong else []
    kinds = sorted({key[:2] for key in counts})
    totals = [(*each, counts[(*each, True)], counts[(*each, False)]) for each in kinds]
    return [f"{kind}: {what}: {good + bad}, of which work {good}" for kind, what, good, bad in totals] + refused

"""Ask LLaMA-Factory's own parser, tokenizer and template about a plan, in a child process."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import arguments, process, rules
from ..errors import Place, Problem
from ..machine import Machine, dropped_variables
from ..plan import Plan
from ..recipe import Recipe
from ..rules import Case
from ..runs import KIT, Run, Workspace, fill

SECONDS = 300.0
COMMANDS: Mapping[str, arguments.Verb] = {"export": "export", "inference": "chat"}
# What torchrun gives its only process; LLaMA-Factory wants to see it where it would be started by torchrun.
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def ask(case: Case, plan: Plan, workspace: Workspace, environment: Mapping[str, str]) -> list[Problem]:
    """What LLaMA-Factory itself says to the plan's arguments; about 10 s, nearly all of it its imports."""
    given = arguments.for_verb(plan.arguments, COMMANDS.get(case.purpose, "train"), case.settings.table)
    command = "infer" if case.purpose in COMMANDS else "train"
    return heard(plan, (workspace, environment), "parser", {"command": command, "arguments": given})[0]


def heard(
    plan: Plan, around: tuple[Workspace, Mapping[str, str]], program: str, asked: Mapping[str, Any]
) -> tuple[list[Problem], dict[str, Any]]:
    """The problems that a program of probe/ met when it asked LLaMA-Factory, and what it found."""
    workspace, environment = around
    with process.scratch_folder() as folder:
        for name, content in plan.files.items():
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        run = Run(folder)
        chosen = _child_environment(plan.machine, environment, fill(plan.environment, run, workspace))
        own = chosen.get("VIRTUAL_ENV") if "VIRTUAL_ENV" in plan.environment else None
        python = str(Path(own) / "bin" / "python") if own else sys.executable
        words = [python, "-m", f"iis_finetune.probe.{program}", json.dumps(fill(asked, run, workspace))]
        done = process.capture(words, SECONDS, chosen)
    return _problems(plan.recipe, done)


def _child_environment(machine: Machine, environment: Mapping[str, str], chosen: Mapping[str, str]) -> dict[str, str]:
    """As at a launch, without the hook that watches a training, in one process."""
    dropped = {name for name, _ in dropped_variables(machine, environment)}
    kept = {name: value for name, value in environment.items() if name not in dropped}
    paths = [str(KIT.parent), *(path for path in chosen.get("PYTHONPATH", "").split(":") if Path(path).name != "hook")]
    alone = ALONE if "FORCE_TORCHRUN" in chosen else {}
    return {**kept, **chosen, **alone, "PYTHONPATH": ":".join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}


def _problems(recipe: Recipe, done: process.Completed | None) -> tuple[list[Problem], dict[str, Any]]:
    lines = done.stdout.strip().splitlines() if done else []
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except ValueError:
        answer = {}
    if not answer:
        said = done.stderr.strip().splitlines()[-1:] if done else []
        what = f"LLaMA-Factory could not be asked: {said[0] if said else 'it did not answer'}"
        return [Problem(what, "see `iis-finetune doctor`", Place(str(recipe.path)), kind="machine")], {}
    if answer["error"] is None:
        return [], answer["found"]
    message = " ".join(str(answer["message"]).split())
    known = rules.explain(message, Place(str(recipe.path)))
    what = f"LLaMA-Factory ends with {answer['error']} while {answer['stage']}: {message or 'no message'}"
    if re.search(r"No (module named|package metadata was found for) '?(llamafactory|torch)\b", message):
        return [rules.NO_LLAMAFACTORY], {}
    missing = answer["error"] in {"ImportError", "ModuleNotFoundError", "PackageNotFoundError"}
    fix = known.fix if known else "change what it names"
    return [Problem(what, fix, _place(recipe, message), kind="missing" if missing else "invalid")], {}


def _place(recipe: Recipe, message: str) -> Place:
    """The line of the first argument that the message names."""
    named = [word for word in re.findall(r"\w+", message) if word in recipe.entries]
    return recipe.place(named[0]) if named else Place(str(recipe.path))

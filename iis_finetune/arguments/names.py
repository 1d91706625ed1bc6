"""Keys that LLaMA-Factory does not have: what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Any

from ..errors import Place, Problem
from .table import TABLES

LONGEST_KEY = 80
GONE = {
    "never": "LLaMA-Factory never had an argument '{}'",
    "later": "LLaMA-Factory 0.9.5 does not have the argument '{}' yet",
    "eval": "'{}' belonged to `llamafactory-cli eval`, which no longer works",
    "older": "transformers 5 no longer has the argument '{}'",
}


def unknown(key: str, known: Collection[str], kit_keys: Collection[str], place: Place) -> Problem:
    """The Problem for a key that is not in the table: a name of the past, of another tool, or a slip."""
    name = key.strip().lstrip("-").replace("-", "_").lower()[:LONGEST_KEY]
    what = f"unknown argument '{key[:LONGEST_KEY]}'"
    if name in known:
        return Problem(what, f"did you mean '{name}'?", place)
    if name in kit_keys:
        return Problem(f"{what}: it is a key of the kit block", f"write 'kit: {{{name}: ...}}'", place)
    return _gone(name, place) or _foreign(what, name, place) or _slip(what, name, {*known, *kit_keys}, place)


def _gone(name: str, place: Place) -> Problem | None:
    packages = _toml("removed")
    versions = [*packages["llamafactory"].items(), *packages["transformers"].items()]
    for version, names in versions:
        if name in names:
            last = f"LLaMA-Factory {version} was the last with the argument '{{}}'"
            return Problem(GONE.get(version, last).format(name), _answer(names[name]), place)
    return None


def _foreign(what: str, name: str, place: Place) -> Problem | None:
    tools = [tool for tool in _toml("aliases")["tool"] if name in tool["names"]]
    if not tools:
        return None
    callers = " and ".join(tool["name"] for tool in tools[:3])
    answers: Iterable[str] = dict.fromkeys(_answer(tool["names"][name]) for tool in tools)
    return Problem(f"{what}: a name from {callers}", ", or ".join(answers), place)


def _slip(what: str, name: str, known: Collection[str], place: Place) -> Problem:
    near = difflib.get_close_matches(name, sorted({*known, "kit"}), n=1, cutoff=0.7)
    if near:
        return Problem(what, f"did you mean '{near[0]}'?", place)
    return Problem(what, "remove the line; `iis-finetune schema` lists every argument", place)


def _answer(value: str) -> str:
    if " " in value:
        return value
    kit_key = value.removeprefix("kit.")
    return f"write '{value}'" if kit_key == value else f"write 'kit: {{{kit_key}: ...}}'"


def _toml(name: str) -> dict[str, Any]:
    import tomllib  # 10 ms that a recipe without a slip need not pay

    return tomllib.loads((TABLES / f"{name}.toml").read_text("utf-8"))

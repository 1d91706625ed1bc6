"""Every argument of a recipe against the table: names, types, choices, ranges, all problems together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import Problem
from ..recipe import Entry, Kit
from .limits import beyond
from .names import unknown
from .table import Table, frozen_table
from .values import NOT_GIVEN, Refused, convert


def check(entries: Iterable[Entry], table: Table) -> tuple[dict[str, Any], list[Problem]]:
    """The usable arguments in LLaMA-Factory's own types, and every problem; keys of the kit block are passed over."""
    own = [entry for entry in entries if not entry.key.startswith("kit.")]
    arguments: dict[str, Any] = {}
    problems: list[Problem] = []
    for entry in own:
        if entry.key in table:
            problems += _take(entry, table, arguments)
        elif entry.key in frozen_table():
            what = f"the LLaMA-Factory that stage ppo runs in (0.9.3) has no argument '{entry.key}'"
            problems.append(Problem(what, "remove the line", entry.place))
        else:
            problems.append(unknown(entry.key, table.keys(), Kit.model_fields.keys(), entry.place))
    for entry in own:
        if entry.key in arguments:
            problems += beyond(table[entry.key], arguments, entry.place)
    return arguments, problems


def _take(entry: Entry, table: Table, arguments: dict[str, Any]) -> list[Problem]:
    problems: list[Problem] = []

    def warn(what: str, fix: str) -> None:
        problems.append(Problem(what, fix, entry.place, "warning"))

    try:
        value = convert(entry, table[entry.key], warn)
    except Refused as refused:
        return [*problems, Problem(refused.what, refused.fix, entry.place)]
    if value is not NOT_GIVEN:
        arguments[entry.key] = value
    return problems

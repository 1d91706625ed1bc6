"""What a recipe states, line by line against the table: names, types, choices, ranges, all problems together."""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from ..errors import Place, Problem
from ..recipe import Entry, Kit
from .llamafactory import LLAMAFACTORY, TABLES, Argument, Limit, Table, frozen_table, version_of
from .values import NOT_GIVEN, Refused, convert

LONGEST_KEY = 80
GONE = {
    "never": "LLaMA-Factory never had an argument '{}'",
    "later": f"LLaMA-Factory {LLAMAFACTORY} does not have the argument '{{}}' yet",
    "eval": "'{}' belonged to `llamafactory-cli eval`, which no longer works",
    "older": "transformers 5 removed the argument '{}'",
}


def check(entries: Iterable[Entry], table: Table) -> tuple[dict[str, Any], list[Problem]]:
    """The usable arguments in LLaMA-Factory's own types, and every problem; keys of the kit block are passed over."""
    own = [entry for entry in entries if not entry.key.startswith("kit.")]
    arguments: dict[str, Any] = {}
    problems: list[Problem] = []
    for entry in own:
        if entry.key in table:
            problems += _take(entry, table, arguments)
        elif entry.key in frozen_table():
            problems.append(_of_another_version(entry, own))
        else:
            problems.append(_unknown(entry.key, table.keys(), Kit.model_fields.keys(), entry.place))
    for entry in own:
        if entry.key in arguments:
            problems += _beyond(table[entry.key], arguments, entry.place)
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


def _of_another_version(entry: Entry, entries: Iterable[Entry]) -> Problem:
    stage = next((each.value for each in entries if each.key == "stage"), None)
    version = version_of(stage)
    here = f"stage {stage} runs in LLaMA-Factory {version}, which"
    here = here if version != LLAMAFACTORY else f"the installed LLaMA-Factory is not {LLAMAFACTORY} and"
    return Problem(f"{here} has no argument '{entry.key}'", "remove the line", entry.place)


def _beyond(argument: Argument, given: Mapping[str, Any], place: Place) -> Iterator[Problem]:
    """A Problem for each limit that the given value of this argument breaks."""
    value = given.get(argument.name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    for limit in argument.limits:
        if not _holds(value, limit) and not _excused(limit, given):
            what = f"'{argument.name}' is {value}: {limit.why}"
            yield Problem(what, f"write {_wanted(limit)}", place, limit.severity)


def _excused(limit: Limit, given: Mapping[str, Any]) -> bool:
    if not limit.unless:
        return False
    name, *values = limit.unless
    value = given.get(name)
    return value in values if values else isinstance(value, int | float) and value > 0


def _holds(value: float, limit: Limit) -> bool:
    if value in limit.also:
        return True
    return (
        (limit.minimum is None or value >= limit.minimum)
        and (limit.maximum is None or value <= limit.maximum)
        and (limit.above is None or value > limit.above)
        and (limit.below is None or value < limit.below)
        and (limit.other_than is None or value != limit.other_than)
        and (limit.whole_from is None or value < limit.whole_from or float(value).is_integer())
    )


def _wanted(limit: Limit) -> str:
    bounds = [
        ("at least", limit.minimum),
        ("more than", limit.above),
        ("at most", limit.maximum),
        ("less than", limit.below),
        ("a number other than", limit.other_than),
    ]
    words = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
    if limit.whole_from is not None:
        return "a whole number"
    return " and ".join(words) + "".join(f", or {value:g}" for value in limit.also)


def _unknown(key: str, known: Collection[str], kit_keys: Collection[str], place: Place) -> Problem:
    """The Problem for a key that is not in the table: an old name, one of another tool, or a typing error."""
    name = key.strip().lstrip("-").replace("-", "_").lower()[:LONGEST_KEY]
    what = f"unknown argument '{key[:LONGEST_KEY]}'"
    if name in known:
        return Problem(what, f"did you mean '{name}'?", place)
    if name in kit_keys:
        return Problem(f"{what}: it is a key of the kit block", f"write 'kit: {{{name}: ...}}'", place)
    return _gone(name, place) or _foreign(what, name, place) or _typing_error(what, name, {*known, *kit_keys}, place)


def _gone(name: str, place: Place) -> Problem | None:
    packages = _toml("removed")
    versions = [*packages["llamafactory"].items(), *packages["transformers"].items()]
    for version, names in versions:
        if name in names:
            last = f"LLaMA-Factory removed the argument '{{}}' after version {version}"
            return Problem(GONE.get(version, last).format(name), _answer(names[name]), place)
    return None


def _foreign(what: str, name: str, place: Place) -> Problem | None:
    tools = [tool for tool in _toml("aliases")["tool"] if name in tool["names"]]
    if not tools:
        return None
    callers = " and ".join(tool["name"] for tool in tools[:3])
    answers: Iterable[str] = dict.fromkeys(_answer(tool["names"][name]) for tool in tools)
    return Problem(f"{what}: a name from {callers}", ", or ".join(answers), place)


def _typing_error(what: str, name: str, known: Collection[str], place: Place) -> Problem:
    near = difflib.get_close_matches(name, sorted({*known, "kit"}), n=1, cutoff=0.7)
    if near:
        return Problem(what, f"did you mean '{near[0]}'?", place)
    return Problem(what, "remove the line; `iis-finetune schema` lists every argument", place)


def _answer(value: str) -> str:
    if " " in value:
        return value
    kit_key = value.removeprefix("kit.")
    return f"write '{value}'" if kit_key == value else f"write 'kit: {{{kit_key}: ...}}'"


@cache
def _toml(name: str) -> dict[str, Any]:
    import tomllib  # 10 ms that a recipe without a slip need not pay

    return tomllib.loads((TABLES / f"{name}.toml").read_text("utf-8"))

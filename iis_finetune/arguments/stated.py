"""What a recipe states, line by line against the table: names, types, choices, ranges, all problems together."""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from ..errors import Place, Problem
from ..recipe import Entry, Kit
from .llamafactory import LLAMAFACTORY, TABLES, Argument, Limit, Table, frozen_table, version_of
from .values import NOT_GIVEN, Refused, convert

LONGEST_KEY = 80
CLOSE = 0.8  # below it a guess misleads: lvm_gamma is no simpo_gamma
LONGEST_SIDE = 4096  # a picture's side; what is larger counts its pixels
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
    foreign: list[Problem] = []
    of_values: list[tuple[Argument, Problem]] = []
    for entry in own:
        if entry.key in table:
            of_values += [(table[entry.key], each) for each in _take(entry, table, arguments)]
        elif entry.key in frozen_table():
            foreign.append(_of_another_version(entry, own))
        else:
            # What the command line says replaces the recipe's line of the same name.
            beside = {each.key for each in own if each.source == "override" or entry.source == "recipe"}
            foreign.append(_unknown(entry, table.keys(), beside))
    for entry in own:
        if entry.key in arguments:
            argument = table[entry.key]
            of_values += [(argument, each) for each in _beyond(argument, arguments, entry.place)]
    return arguments, [*foreign, *(_weighed(*each, arguments, table) for each in of_values)]


def _weighed(argument: Argument, problem: Problem, given: Mapping[str, Any], table: Table) -> Problem:
    """A value that nothing reads stops no training: LLaMA-Factory holds no value to its argument's type."""
    name, *_ = condition = argument.read_with or ("",)
    if problem.severity == "warning" or name in ("", argument.name):
        return problem
    value = given.get(name, table[name].default)
    if _met(condition, value):
        return problem
    without = f"with {name} {value}" if isinstance(value, str) else f"without {name}"
    what = f"'{argument.name}' is not read {without}; where it is: {problem.what}"
    return Problem(what, f"remove '{argument.name}'", problem.where, "warning")


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
        if not _holds(value, limit) and not (limit.unless and _met(limit.unless, given.get(limit.unless[0]))):
            what = f"'{argument.name}' is {value}: {limit.why}"
            yield Problem(what, f"write {_wanted(limit)}", place, limit.severity)


def _met(condition: Sequence[Any], value: Any) -> bool:
    """Whether the value of the argument that a condition names is one of its values, or above 0 where it has none."""
    _, *values = condition
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


def _unknown(entry: Entry, known: Collection[str], stated: Collection[str]) -> Problem:
    """The Problem for a key that is not in the table: an old name, one of another tool, or a typing error."""
    key, place = entry.key, entry.place
    name = key.strip().lstrip("-").replace("-", "_").lower()[:LONGEST_KEY]
    what = f"unknown argument '{key[:LONGEST_KEY]}'"
    if name in known:
        return Problem(what, _line_of(name, f"did you mean '{name}'?", stated), place)
    if name in Kit.model_fields:
        return Problem(f"{what}: it is a key of the kit block", f"write 'kit: {{{name}: ...}}'", place)
    return (
        _gone(name, entry, stated)
        or _foreign(what, name, entry, stated)
        or Problem(what, _typing_error(name, {*known, *Kit.model_fields}, stated), place)
    )


def _gone(name: str, entry: Entry, stated: Collection[str]) -> Problem | None:
    packages = toml("removed")
    versions = [*packages["llamafactory"].items(), *packages["transformers"].items()]
    for version, names in versions:
        if name in names:
            last = f"LLaMA-Factory removed the argument '{{}}' after version {version}"
            fix = _answer(names[name], entry, stated)
            return Problem(GONE.get(version, last).format(name), fix, entry.place)
    return None


def _foreign(what: str, name: str, entry: Entry, stated: Collection[str]) -> Problem | None:
    tools = [tool for tool in toml("aliases")["tool"] if name in tool["names"]]
    if not tools:
        return None
    callers = " and ".join(tool["name"] for tool in tools[:3])
    answers: Iterable[str] = dict.fromkeys(_answer(tool["names"][name], entry, stated) for tool in tools)
    return Problem(f"{what}: a name from {callers}", ", or ".join(answers), entry.place)


def _typing_error(name: str, known: Collection[str], stated: Collection[str]) -> str:
    near = difflib.get_close_matches(name, sorted({*known, "kit"}), n=1, cutoff=CLOSE)
    if near:
        return _line_of(near[0], f"did you mean '{near[0]}'?", stated)
    return "remove the line; `iis-finetune schema` lists every argument"


def _answer(row: str | Mapping[str, Any], entry: Entry, stated: Collection[str]) -> str:
    """What to write in place of a key; a row of several answers has one for each value."""
    if isinstance(row, str):
        return _line_of(row, row if " " in row else f"write '{row}'", stated)
    if "pixels" in row:
        value = entry.value if isinstance(entry.value, int) else 0
        return f"write '{row['pixels']}: {value * value if value <= LONGEST_SIDE else value}', which counts pixels"
    lines = row.get(str(entry.value).lower(), {})
    missing = [f"'{key}: {str(value).lower()}'" for key, value in lines.items() if key not in stated]
    return f"write {' and '.join(missing)} in its place" if missing else "remove the line"


def _line_of(name: str, fix: str, stated: Collection[str]) -> str:
    """The fix, unless the line that it asks for is there already."""
    if name in stated:
        return f"remove the line: '{name}' is there as well"
    kit_key = name.removeprefix("kit.")
    return fix if kit_key == name or " " in name else f"write 'kit: {{{kit_key}: ...}}'"


@cache
def toml(name: str) -> dict[str, Any]:
    """A table of the kit's own, read once."""
    import tomllib  # 10 ms that a recipe without a slip need not pay

    return tomllib.loads((TABLES / f"{name}.toml").read_text("utf-8"))

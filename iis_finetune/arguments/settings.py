"""What each argument of LLaMA-Factory will be, and who says so: the one place that knows a default.

What a recipe states is held to the table line by line: names, types, choices, ranges, all problems together.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from ..errors import Place, Problem
from ..recipe import KIT_KEYS, Entry, Recipe
from ..tables import read
from .llamafactory import LLAMAFACTORY, Argument, Limit, Table, frozen_table, table_problems, version_of
from .llamafactory import table as table_of
from .values import NOT_GIVEN, Refused, convert, plain

# What LLaMA-Factory's arguments say that a key of the kit block says as well.
SAME = {
    "global_batch_size": ("gradient_accumulation_steps",),
    "launcher": ("deepspeed", "fsdp"),
    "attention": ("flash_attn",),
    "precision": ("pure_bf16", "bf16", "fp16"),
}
LONGEST_KEY = 80
CLOSE = 0.8  # below it a guess misleads: lvm_gamma is no simpo_gamma
LONGEST_SIDE = 4096  # a picture's side; what is larger counts its pixels
Answer = str | Mapping[str, Any]
BOUNDS: Mapping[str, tuple[str, Callable[[float, float], bool]]] = {
    "minimum": ("at least", operator.ge),
    "above": ("more than", operator.gt),
    "maximum": ("at most", operator.le),
    "below": ("less than", operator.lt),
    "other_than": ("a number other than", operator.ne),
}


class Settings(Struct, frozen=True):
    """An argument is what the recipe states, else what the plan decided, else LLaMA-Factory's own default.

    Values are in LLaMA-Factory's types; null counts as not given. An argument that only another version has is None, a
    name that none has a KeyError.
    """

    table: Table
    stated: Mapping[str, Any] = field(default_factory=dict)
    decided: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        for given in (self.stated, self.decided):
            if given.get(name) is not None:
                return given[name]
        if name not in self.table and name not in frozen_table():
            raise KeyError(name)
        return self.table[name].default if name in self.table else None

    def states(self, *names: str) -> bool:
        """Whether the recipe or the command line gives one of the arguments a value."""
        return any(self.stated.get(name) is not None for name in names)

    def names(self, name: str) -> list[str]:
        """The names in an argument that takes several, as a list or with commas between them."""
        value = self[name]
        parts = value.split(",") if isinstance(value, str) else value or []
        return [text for part in parts if (text := str(part).strip())]

    def decide(self, **values: Any) -> Settings:
        """The same with more of it decided."""
        return replace(self, decided={**self.decided, **values})


def settings_of(recipe: Recipe, ppo: Path | None = None) -> tuple[Settings, list[Problem]]:
    """A recipe's settings before anything is decided, and the problems of its lines; `ppo`: stage ppo's environment."""
    stage = recipe.value("stage")
    known = table_of(stage, ppo)
    stated, problems = check(recipe.entries.values(), known)
    return Settings(known, stated), [*table_problems(stage, ppo), *problems]


def trained_with(arguments: Mapping[str, Any]) -> Settings:
    """The settings of a training that was given these arguments."""
    return Settings(table_of(arguments.get("stage")), arguments)


def check(entries: Iterable[Entry], table: Table) -> tuple[dict[str, Any], list[Problem]]:
    """The usable arguments in LLaMA-Factory's own types, and every problem; keys of the kit block are passed over."""
    own = [entry for entry in entries if not entry.key.startswith("kit.")]
    arguments: dict[str, Any] = {}
    foreign: list[Problem] = []
    of_values: list[tuple[Argument, Problem]] = []
    for entry in own:
        block = _block(entry, table)
        if entry.key in table and not block:
            said = _take(entry, table, arguments)
            of_values += [(table[entry.key], each) for each in said if entry.written is None]
        elif entry.key in frozen_table() and not block:
            foreign.append(_of_another_version(entry, own))
        else:
            # What the command line says replaces the recipe's line of the same name.
            written = (each for each in own if each.written is None and each is not entry)
            beside = {each.key for each in written if each.source == "override" or entry.source == "recipe"}
            foreign.append(_unknown(entry, table, beside))
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


def _bounds(limit: Limit) -> list[tuple[str, Callable[[float, float], bool], float]]:
    """Of each bound that a limit has: how it is said, what holds a value to it, and the number."""
    return [
        (words, within, bound)
        for name, (words, within) in BOUNDS.items()
        if (bound := getattr(limit, name)) is not None
    ]


def _holds(value: float, limit: Limit) -> bool:
    whole = limit.whole_from is None or value < limit.whole_from or float(value).is_integer()
    return value in limit.also or (whole and all(within(value, bound) for _, within, bound in _bounds(limit)))


def _wanted(limit: Limit) -> str:
    if limit.whole_from is not None:
        return "a whole number"
    words = " and ".join(f"{words} {bound:g}" for words, _, bound in _bounds(limit))
    return words + "".join(f", or {value:g}" for value in limit.also)


def _unknown(entry: Entry, known: Table, stated: Collection[str]) -> Problem:
    """The Problem for a key that is not in the table, or that holds a block of another tool's."""
    what, words, answers = _recognised(entry, known)
    fixes = dict.fromkeys(_fix(answer, words, entry, stated) for answer in answers)
    return Problem(what, ", or ".join(fixes), entry.place)


def as_meant(recipe: Recipe) -> Recipe:
    """A recipe with what its unknown keys can only mean beside them, so that all else is said of the recipe as mended.

    The unknown key stays, and is an error.
    """
    known = table_of(recipe.value("stage"))
    meant = {}
    for key, entry in recipe.entries.items():
        answers = [] if key in known and not _block(entry, known) else _recognised(entry, known)[2]
        lines, *others = [_lines(answer, entry.value) for answer in answers] or [{}]
        for name, value in lines.items() if all(each == lines for each in others) else ():
            if name in known and entry.stands_above(recipe.entries.get(name)):
                text = entry.text if value is entry.value else None
                meant[name] = replace(entry, key=name, value=value, text=text, written=key)
    return replace(recipe, entries={**recipe.entries, **meant})


def _of_tools(name: str) -> dict[str, Answer]:
    """What a name is answered, by the tools that have it."""
    return {tool["name"]: tool["names"][name] for tool in read("aliases.toml")["tool"] if name in tool["names"]}


def _lines(answer: Answer, value: object) -> Mapping[str, Any]:
    """Our lines for a value below a name that has this answer; none where the answer is a sentence."""
    if not isinstance(answer, str):
        answer = answer.get(str(bool(value) if value in (0, 1) else value).lower(), answer.get("always", {}))
    if isinstance(answer, str):
        return {} if " " in answer or value in (None, "") or isinstance(value, dict) else {answer: value}
    return answer


def _block(entry: Entry, known: Table) -> dict[str, Any]:
    """Our lines for a block of another tool's, or several such as Axolotl's data sets."""
    lines: dict[str, Any] = {}
    blocks = entry.value if isinstance(entry.value, list) else [entry.value]
    if not all(isinstance(each, dict) for each in blocks) or (entry.key in known and "dict" in known[entry.key].kinds):
        return lines
    for name, value in [pair for block in blocks for pair in block.items()]:
        tools = _of_tools(f"{entry.key}.{name}") or ({"": name} if name in known else _of_tools(name))
        for key, ours in _lines(next(iter(tools.values()), {}), value).items():
            lines[key] = f"{lines[key]},{ours}" if key in lines and len(blocks) > 1 else ours
    return lines


def _recognised(entry: Entry, known: Table) -> tuple[str, str, Sequence[Answer]]:
    """What is said of a key that is not in the table, how its answers are worded, and the answers.

    It is another spelling, a key of the kit, an old name, one of other tools (an answer each), or a typing error.
    """
    if lines := _block(entry, known):
        return f"'{entry.key}' holds a block; here each argument is a line of its own", "", [{"always": lines}]
    key = entry.key
    name = key.strip().lstrip("-").replace("-", "_").lower()[:LONGEST_KEY]
    what = f"unknown argument '{key[:LONGEST_KEY]}'"
    if name in known:
        return what, "did you mean '{}'?", [name]
    if name in KIT_KEYS:
        return f"{what}: it is a key of the kit block", "", [f"kit.{name}"]
    removed = read("removed.toml")
    for version, names in [*removed["llamafactory"].items(), *removed["transformers"].items()]:
        if name in names:
            said = removed["said"].get(version, removed["said"]["other"])
            return said.format(name=name, version=version, current=LLAMAFACTORY), "write '{}'", [names[name]]
    if tools := _of_tools(name):
        return f"{what}: a name from {' and '.join([*tools][:3])}", "write '{}'", [*tools.values()]
    near = difflib.get_close_matches(name, sorted({*known, *KIT_KEYS, "kit"}), n=1, cutoff=CLOSE)
    return what, "did you mean '{}'?", near or ["remove the line; `iis-finetune schema` lists every argument"]


def _fix(answer: Answer, words: str, entry: Entry, stated: Collection[str]) -> str:
    """What to write in place of a key: a name, a sentence, the lines for its value, or a number of pixels."""
    if isinstance(answer, str):
        if words == "write '{}'" and (isinstance(entry.value, dict) or entry.value in (None, "")):
            return "remove the line: it says nothing here"
        if answer in stated:
            return f"remove the line: '{answer}' is there as well"
        kit_key = answer.removeprefix("kit.")
        if " " in answer or kit_key == answer:
            return answer if " " in answer else words.format(answer)
        return f"write 'kit: {{{kit_key}: ...}}'"
    if "pixels" in answer:
        value = entry.value if isinstance(entry.value, int) else 0
        return f"write '{answer['pixels']}: {value * value if value <= LONGEST_SIDE else value}', which counts pixels"
    lines = _lines(answer, entry.value)
    missing = [f"'{key}: {plain(value)}'" for key, value in lines.items() if key not in stated]
    return f"write {' and '.join(missing)} in its place" if missing else "remove the line"

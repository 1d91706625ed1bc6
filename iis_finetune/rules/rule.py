"""One rule: when it applies, what LLaMA-Factory would really do, what to write instead, and who says so."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import Any, Literal

from msgspec import Struct

from ..arguments import SAME
from ..errors import Kind, Place, Problem, Severity
from ..tables import read
from . import conditions
from .case import TRAINING, Case, Purpose

OWN = 0  # the number of rules that are the kit's own advice
When = Mapping[str, Any]


class Rule(Struct, frozen=True):
    """`keys` are names with spaces between them, the one to blame first; in `what` and `fix`, `{c[key]}` is a value.

    `about` is the table's section. `number` groups rules of one kind in the benchmark's list. `source` is a file of the
    frozen LLaMA-Factory (or of the package it names) with the line that refuses, or where the effect is made; `date` is
    when it was looked at. What is wrong `by_launcher` is the machine's matter when the launcher was chosen for lack of
    memory.
    """

    keys: str
    when: Callable[[Case], object]
    what: str
    fix: str
    source: str
    date: str
    about: str
    number: int = OWN
    severity: Severity = "error"
    kind: Kind = "invalid"
    code: Literal[2, 3] | None = None
    purposes: tuple[Purpose, ...] = TRAINING
    by_launcher: bool = False

    def met(self, case: Case) -> bool:
        """Whether it applies; a value that was refused is no cause of another problem."""
        if case.purpose not in self.purposes or any(map(case.refused, self.keys.split())):
            return False
        return bool(self.when(case))

    def problem(self, case: Case) -> Problem:
        what, fix = self.what.format(c=case), alone(self.fix.format(c=case), case)
        kind = "machine" if self.by_launcher and case.launcher_is_automatic else self.kind
        return Problem(what, fix, self.place(case), self.severity, kind, self.code)

    def place(self, case: Case) -> Place:
        """The line of the first of the keys that the recipe states, else the recipe."""
        keys = self.keys.split()
        return case.recipe.place(next((key for key in keys if case.recipe.states(key)), keys[0]))


def alone(fix: str, case: Case) -> str:
    """A key of the kit goes with no line of LLaMA-Factory's about the same, so the fix takes that line away."""
    for name, keys in SAME.items():
        for key in keys:
            if case.states(key) and f"no {key} line" not in fix:
                fix = re.sub(rf"kit.{name}: \w+( or \w+)?", rf"\g<0> and no {key} line", fix)
    return fix


def rules_of_arguments() -> list[Rule]:
    """The rows of rules.json, in its order."""
    table = read("rules.json")
    return [
        Rule(**{**row, "when": partial(holds, row["when"]), "about": about, "date": table["date"]})
        for about, rows in table["rules"].items()
        for row in rows
    ]


def holds(when: When, case: Case) -> bool:
    """Whether a case meets every condition of a row.

    A condition is a name and what its value must be: true or false for any value that is or is not one, a value or a
    list of them, or a comparison. `any` lists conditions of which one is enough, `some` arguments of which one is
    switched on, `states` arguments of which the recipe gives one.
    """
    return all(_holds(name, wanted, case) for name, wanted in when.items())


def _holds(name: str, wanted: Any, case: Case) -> bool:
    match name, wanted:
        case "any", _:
            return any(holds(each, case) for each in wanted)
        case "some" | "states", _:
            return bool(getattr(case, name)(*wanted))
        case _, {"stated": value}:
            return case.says(name, value)
        case _, bool():
            return bool(value_of(name, case)) is wanted
        case _, dict():
            value = value_of(name, case)
            return all(_compared(value, sign, other, case) for sign, other in wanted.items())
    return value_of(name, case) in (wanted if isinstance(wanted, list) else [wanted])


def _compared(value: Any, sign: str, other: Any, case: Case) -> bool:
    """A comparison with a number, a list, or with the value that another name has."""
    other = value_of(other, case) if isinstance(other, str) else other
    match sign:
        case "not":
            return value not in other
        case "unlike":
            return bool(value != other)
        case "above":
            return value is not None and value > other
    return value is not None and value < other


def value_of(name: str, case: Case) -> Any:
    """A name is a function of conditions.py, a property of the case (`model.quantization`), else an argument."""
    if condition := getattr(conditions, name, None):
        return condition(case)
    first, *_ = name.split(".")
    if not hasattr(case, first):
        return case[name]
    try:
        return attrgetter(name)(case)
    except AttributeError:
        return None  # a model whose shapes are not known

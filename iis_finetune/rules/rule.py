"""One rule: when it applies, what LLaMA-Factory would really do, what to write instead, and who says so.

Rules come from rules.json and from the known faults of the machine table; failures.toml says what a log means.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from operator import attrgetter
from typing import Any, Literal

from msgspec import Struct

from ..arguments import SAME
from ..errors import Kind, Place, Problem, Severity
from ..machine import Row, applies, load, package_version
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
        for key in reversed(keys):  # each is written before the one that was written last
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


def rules_of_faults() -> list[Rule]:
    return [_rule_of(row) for row in load()["fault"]]


def _rule_of(row: Row) -> Rule:
    what, fix = (row[part].replace("{device}", "{c.machine.device}") for part in ("what", "fix"))
    what += "" if row["confirmed"] else " (unconfirmed)"
    return Rule(
        row["keys"], partial(_meets, row), what, fix, row["source"], row["date"].isoformat(), "faults",
        severity=row["severity"], kind=row.get("kind", "machine"),
    )  # fmt: skip


def _meets(row: Row, case: Case) -> bool:
    """Whether a case meets every condition of a row of `[[fault]]`."""
    wanted = row.get("settings", {})
    return (
        case.trains
        and row.get("unless_env") not in case.kit.env
        and applies(row, case.machine, case.processes)
        and case.precision in row.get("precision", [case.precision])
        and case.micro_batch * case["cutoff_len"] >= row.get("tokens_from", 0)
        and ("package" not in row or _version(row, case) in row["versions"])
        and all(any(fnmatchcase(_value(case, name), each) for each in wanted[name]) for name in wanted)
    )


def _value(case: Case, name: str) -> str:
    if name == "attention":
        return str(case["flash_attn"] if case.states("flash_attn") else case.kit.attention)
    return str(case[name]).lower()


def _version(row: Row, case: Case) -> str | None:
    """The installed version; for a named machine the one that the kit's constraints install."""
    return package_version(row["package"]) if case.machine.here else str(row["pinned"])


def known_failures(log: str) -> Iterator[tuple[Mapping[str, Any], re.Match[str]]]:
    """The rows whose words a log holds, each with where it says them; the table's order is that of their weight."""
    for row in read("failures.toml")["failure"]:
        match = re.search(row["pattern"], log, re.MULTILINE)
        if match:
            yield row, match


def explain(log: str, place: Place) -> Problem | None:
    """The known cause of a failure, from the text of its log; None when nobody has described it."""
    for row, match in known_failures(log):
        if "what" in row:
            kind: Kind = row.get("kind", "invalid")
            return Problem(row["what"].format(*match.groups()), row["fix"], place, kind=kind, code=row.get("code"))
    return None

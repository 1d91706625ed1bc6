"""One rule: when it applies, what LLaMA-Factory would really do, what to write instead, and who says so."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..errors import Kind, Place, Problem, Severity
from .case import Case, Purpose

DATE = "2026-11-21"
TRAINING: tuple[Purpose, ...] = ("train", "evaluate", "nothing")  # what `llamafactory-cli train` does
ANY: tuple[Purpose, ...] = (*TRAINING, "export", "inference")
TWICE = {
    "kit.launcher": ("deepspeed", "fsdp"),
    "kit.attention": ("flash_attn",),
    "kit.precision": ("fp16", "bf16", "pure_bf16"),
}
OWN = 0  # the number of rules that are the kit's own advice


@dataclass(frozen=True)
class Rule:
    """`keys` are names with spaces between them, the one to blame first; in `what` and `fix`, `{c[key]}` is a value.

    `number` groups rules of one kind in the benchmark's list. `source` is a file of the frozen LLaMA-Factory (or of the
    package it names) with the line that refuses, or where the effect is made; `date` is when it was looked at. What is
    wrong `by_launcher` is the machine's matter when the launcher was chosen for lack of memory.
    """

    number: int
    keys: str
    when: Callable[[Case], object]
    what: str
    fix: str
    source: str
    severity: Severity = "error"
    kind: Kind = "invalid"
    code: Literal[2, 3] | None = None
    purposes: tuple[Purpose, ...] = TRAINING
    by_launcher: bool = False
    date: str = DATE

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
    for kit_key, keys in TWICE.items():
        for key in keys:
            if case.states(key) and f"no {key} line" not in fix:
                fix = re.sub(rf"{kit_key}: \w+( or \w+)?", rf"\g<0> and no {key} line", fix)
    return fix


def warning(  # noqa: PLR0913, PLR0917 - the fields of a rule, in their order
    number: int, keys: str, when: Callable[[Case], object], what: str, fix: str, source: str
) -> Rule:
    """A rule for what works, but not as it seems."""
    return Rule(number, keys, when, what, fix, source, severity="warning")

"""Hold a recipe to every rule."""

from __future__ import annotations

from ..errors import Problem
from . import after, data, devices, evaluation, finetuning, known_faults, training
from .case import Case
from .rule import Rule

RULES: tuple[Rule, ...] = (
    *data.RULES,
    *training.RULES,
    *finetuning.RULES,
    *devices.RULES,
    *evaluation.RULES,
    *after.RULES,
    *known_faults.RULES,
)


def check(case: Case) -> list[Problem]:
    """Every problem of arguments that do not go together; one at a time they have been checked already."""
    return [rule.problem(case) for rule in RULES if case.purpose in rule.purposes and rule.when(case)]

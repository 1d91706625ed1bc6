"""Arguments that do not go together, as data: what LLaMA-Factory would really do, and what to write instead."""

from ..errors import Problem
from .case import Case
from .methods import method_of_another_tool
from .packages import ALWAYS, NO_LLAMAFACTORY, check_always, check_elsewhere, check_needs, check_packages, packages_of
from .rule import Rule, explain, known_failures, rules_of_arguments, rules_of_faults
from .sizes import (
    block_parameters,
    disk_bytes,
    low_rank_states,
    needs_reference,
    trained_at_once,
    trained_blocks,
    trained_layers,
    trained_parameters,
)

RULES: tuple[Rule, ...] = (*rules_of_arguments(), *rules_of_faults())


def check(case: Case) -> list[Problem]:
    """Every problem of arguments that do not go together; one at a time they have been checked already."""
    return [*method_of_another_tool(case), *(rule.problem(case) for rule in RULES if rule.met(case))]

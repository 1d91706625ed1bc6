"""Arguments that do not go together, as data: what LLaMA-Factory would really do, and what to write instead."""

from ..errors import Problem
from . import known_faults, of_data, of_devices, of_evaluation, of_exports, of_ignored, of_methods, of_training
from .case import Case
from .explain import explain, known_failures
from .of_methods import needs_reference
from .packages import ALWAYS, check_always, check_needs, check_packages, packages_of
from .rule import Rule
from .sharing import Sharing
from .sizes import (
    block_parameters,
    disk_bytes,
    low_rank_states,
    trained_at_once,
    trained_blocks,
    trained_layers,
    trained_parameters,
)

ABOUT = (of_data, of_training, of_methods, of_devices, of_evaluation, of_exports, of_ignored, known_faults)
RULES: tuple[Rule, ...] = tuple(rule for part in ABOUT for rule in part.RULES)


def check(case: Case) -> list[Problem]:
    """Every problem of arguments that do not go together; one at a time they have been checked already."""
    return [rule.problem(case) for rule in RULES if rule.met(case)]

"""Arguments that do not go together, as data: what LLaMA-Factory would really do, and what to write instead."""

from .case import Case
from .check import check
from .disk import checkpoint_bytes, disk_bytes
from .explain import explain, known_failures
from .finetuning import needs_reference
from .packages import check_needs, check_packages, packages_of

__all__ = [
    "Case",
    "check",
    "check_needs",
    "check_packages",
    "checkpoint_bytes",
    "disk_bytes",
    "explain",
    "known_failures",
    "needs_reference",
    "packages_of",
]

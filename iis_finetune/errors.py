"""Problems, the few error classes, and the exit codes they lead to."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Severity = Literal["error", "warning"]
Kind = Literal["invalid", "missing", "machine", "leak"]

# The marks of ASCII as full-width ones, and those that stand on the same keys of a Chinese keyboard.
FULL_WIDTH = {chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7F)}
FULL_WIDTH |= dict(zip("—、。“”‘’", "-,.\"\"''", strict=True))

FINE, RUN_FAILED, INPUT, MACHINE, INTERRUPTED, BUG = 0, 1, 2, 3, 130, 70


@dataclass(frozen=True)
class Place:
    """Where a problem is: a file (or `command line`), a line counted from 1, a dotted key."""

    file: str | None = None
    line: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        position = f"{self.file}:{self.line}" if self.file and self.line else self.file
        return "  ".join(part for part in (position, self.key) if part)


COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what, where, how to mend it.

    `kind` is what a reader filters by; an error's exit code follows from it (`invalid` 2, `machine` and `missing` 3)
    unless `code` says otherwise: a data set or a local path that is missing is for the user to change, so 2.
    `details` are more members of its JSON object.
    """

    what: str
    fix: str
    where: Place = field(default_factory=Place)
    severity: Severity = "error"
    kind: Kind = "invalid"
    code: Literal[2, 3] | None = None
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def exit_code(self) -> int:
        return self.code or (INPUT if self.kind == "invalid" else MACHINE)

    def as_json(self) -> dict[str, Any]:
        return {
            "severity": self.severity,
            "kind": self.kind,
            "what": self.what,
            "where": str(self.where) or None,
            "file": self.where.file,
            "line": self.where.line,
            "key": self.where.key,
            "fix": self.fix,
            **self.details,
        }


def in_file_order(problems: Iterable[Problem]) -> list[Problem]:
    """Sort by file and line; what has no line follows what has one, the command line comes last."""

    def position(problem: Problem) -> tuple[bool, str, float]:
        where = problem.where
        return (where.file == COMMAND_LINE, where.file or "", where.line or float("inf"))

    return sorted(dict.fromkeys(map(_as_words, problems)), key=position)


def _as_words(problem: Problem) -> Problem:
    """The command line has words where a file has lines: `key: value` is written `key=value` there."""
    if problem.where.file != COMMAND_LINE:
        return problem
    fix = re.sub(r"remove the( extra)? line", "leave out that word", problem.fix)
    fix = re.sub(r"'kit: \{(\w+): ([^{}']*)\}'", r"'kit.\1=\2'", fix)
    return replace(problem, fix=re.sub(r"'([\w.]+): ([^' ]*)'", r"'\1=\2'", fix))


def errors_of(problems: Iterable[Problem]) -> list[Problem]:
    return [problem for problem in problems if problem.severity == "error"]


def exit_code(problems: Iterable[Problem]) -> int:
    """0 without errors; 2 when input must change; 3 when only the machine is not ready."""
    return min((problem.exit_code for problem in errors_of(problems)), default=FINE)


def full_width(text: str) -> str | None:
    """The fix for a mark that a Chinese keyboard writes where a computer's is meant; None where there is none."""
    found = next((each for each in text if each in FULL_WIDTH), None)
    return found and f"a full-width '{found}'; type '{FULL_WIDTH[found]}'"


def did_you_mean(word: str, known: Iterable[str], otherwise: str, cutoff: float = 0.7) -> str:
    """The fix for a word that is not known: the known one most like it, capitals apart, else what to do `otherwise`."""
    if said := full_width(word):
        return said
    spelled = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), spelled, 1, cutoff)
    return f"did you mean '{spelled[near[0]]}'?" if near else otherwise


class KitError(Exception):
    """An ending that the user is told about in sentences, never with a trace."""

    exit_code = BUG


class ProblemsFound(KitError):
    """Stops a verb before it starts anything; carries every problem that was found."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = in_file_order(problems)
        super().__init__("; ".join(problem.what for problem in self.problems))

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return exit_code(self.problems) or INPUT


class Misused(ProblemsFound):
    """One word of the command line does not fit; `key` is its option, where it has one."""

    def __init__(self, what: str, fix: str, key: str | None = None):
        super().__init__([Problem(what, fix, Place(COMMAND_LINE, key=key))])


class RunFailed(KitError):
    """A program that was started did not do what it was started for."""

    exit_code = RUN_FAILED

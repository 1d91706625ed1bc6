"""What is looked at, and what was found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..errors import Problem, errors_of
from ..machine import Machine
from ..recipe import Recipe
from ..runs import Workspace


class Subject(Struct, frozen=True):
    """The machine, the environment and the folders to examine; `recipe` adds its `kit.env`.

    `root` is the file tree that the machine was detected in, `packages` the folders of installed packages (sys.path).
    """

    machine: Machine
    environment: Mapping[str, str]
    workspace: Workspace
    recipe: Recipe | None = None
    root: Path = Path("/")
    packages: Sequence[str] | None = None


class Check(Struct, frozen=True):
    """One thing that was looked at: its name, what was found in a few words, what is wrong with it."""

    name: str
    found: str
    problems: Sequence[Problem] = ()

    @property
    def state(self) -> str:
        """`fine`, `warning` or `error`."""
        return "error" if errors_of(self.problems) else "warning" if self.problems else "fine"

    def as_json(self) -> dict[str, Any]:
        problems = [problem.as_json() for problem in self.problems]
        return {"check": self.name, "state": self.state, "found": self.found, "problems": problems}

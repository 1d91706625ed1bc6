"""The page that the steps of planning write on: arguments, environment, decisions, problems."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..decision import Decision
from ..errors import Place, Problem
from ..recipe import Recipe


@dataclass
class Draft:
    """A plan in the making; only `plan.make` and its steps hold one."""

    recipe: Recipe
    arguments: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def stated(self, *keys: str) -> list[str]:
        """Those of the keys that the recipe or the command line gives a value that can be used."""
        return [key for key in keys if self.recipe.value(key) is not None and key in self.arguments]

    def choose(self, key: str, value: Any, reason: str) -> None:
        """Set an argument that the kit chooses, unless the recipe states it."""
        if not self.stated(key):
            self.arguments[key] = value
            self.decisions.append(Decision(key, value, "kit default", reason))

    def force(self, key: str, value: Any, reason: str) -> None:
        """Set an argument that is the kit's alone; a foreign value is replaced and that is said."""
        if self.stated(key) and self.recipe.value(key) != value:
            reason = f"{reason} (the recipe's {self.recipe.value(key)!r} is replaced)"
        self.arguments[key] = value
        self.decisions.append(Decision(key, value, "kit default", reason))

    def keep(self, name: str, value: Any, key: str) -> None:
        """Note that a value is as it is because the recipe or the command line states `key`."""
        entry = self.recipe.entries.get(key) or self.recipe.kit_entries[key]
        where = "the command line" if entry.source == "override" else f"line {entry.place.line}"
        self.decisions.append(Decision(name, value, entry.source, f"stated as {key} in {where}"))

    def take(self, decision: Decision, problems: list[Problem], key: str) -> None:
        """Take over a decision of the machine table, with its problems placed at the line that led to it."""
        if self.recipe.states(key):
            decision = replace(decision, source=self._source(key))
        self.decisions.append(decision)
        self.problems += [replace(each, where=self.recipe.place(key)) for each in problems]

    def _source(self, key: str) -> Any:
        entry = self.recipe.entries.get(key) or self.recipe.kit_entries[key]
        return entry.source

    def conflict(self, keys: list[str], kit_key: str) -> bool:
        """LLaMA-Factory's own key against a kit key that is not `auto`: an error that names both lines."""
        name = f"kit.{kit_key}"
        if not keys or getattr(self.recipe.kit, kit_key) in ("auto", None):
            return False
        there, here = self.recipe.place(name), self.recipe.place(keys[0])
        what = f"'{keys[0]}' and '{name}' ({_position(there)}) both say it"
        self.problems.append(
            Problem(what, f"keep one of them: {keys[0]} ({_position(here)}) or {name} ({_position(there)})", here)
        )
        return True

    def complain(self, problem: Problem) -> None:
        self.problems.append(problem)


def _position(place: Place) -> str:
    return f"{place.file}:{place.line}" if place.line else str(place.file)

"""The plan, and what it is made from: each step of planning takes a plan and returns the next one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from msgspec import Struct, field, to_builtins
from msgspec.structs import fields, replace

from ..arguments import Settings, for_verb
from ..decision import Decision
from ..errors import Problem
from ..machine import Machine
from ..models import Base, ModelFacts
from ..recipe import Entry, Recipe
from ..runs import Decided, Measured, Nodes, Workspace
from .memory import MemoryEstimate

SHOWN = ("recipe", "machine", "arguments", "environment", "command", "decisions", "memory", "problems")


class Inputs(Struct, frozen=True):
    """All that a plan is made from; two equal inputs give two equal plans, on any computer."""

    recipe: Recipe
    machine: Machine
    model: ModelFacts
    workspace: Workspace
    base: Base | None = None
    nodes: Nodes | None = None
    reward: Base | None = None
    measured: tuple[Measured, ...] | None = None  # None: not looked for
    applied: Measured | None = None  # the one of these whose settings the recipe has been given


class Launcher(Struct, frozen=True):
    """`here` of the `processes` are on this machine, as many as on each of the others."""

    name: str = "single"
    processes: int = 1
    here: int = 1


class Plan(Struct, frozen=True):
    """What would run, and why; never changed, each method returns another plan with more decided.

    Paths hold `{run}`, `{models}`, `{data}`, `{kit}` and `{ppo}`, filled in at launch. `settings` answers for every
    argument, also for those that LLaMA-Factory is not given; `view_of` is the model folder that a precision view is
    made of, `files` are written into the run folder beside the arguments.
    """

    command: ClassVar[tuple[str, ...]] = ("llamafactory-cli", "train", "arguments.yaml")

    inputs: Inputs
    settings: Settings
    precision: str = "as-saved"
    attention: str = "sdpa"
    launch: Launcher = Launcher()
    memory: MemoryEstimate = field(default_factory=MemoryEstimate)
    view_of: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def recipe(self) -> Recipe:
        return self.inputs.recipe

    @property
    def machine(self) -> Machine:
        return self.inputs.machine

    @property
    def nodes(self) -> Nodes | None:
        return self.inputs.nodes

    @property
    def launcher(self) -> str:
        return self.launch.name

    @property
    def processes(self) -> int:
        return self.launch.processes

    @property
    def arguments(self) -> dict[str, Any]:
        """What LLaMA-Factory is given: what the recipe states, and over it what was decided."""
        stated = for_verb(self.settings.stated, "train", self.settings.table)
        return {name: value for name, value in {**stated, **self.settings.decided}.items() if value is not None}

    def decided(self) -> Decided:
        """What a run folder keeps of it; its paths are still placeholders."""
        here = {"recipe": self.recipe.name, "machine": self.machine.name, "memory": self.memory.as_json()}
        problems = tuple(problem.as_json() for problem in self.problems)
        rest = {each.name: getattr(self, each.name) for each in fields(Decided) if each.name not in here}
        return Decided(**{**rest, **here, "problems": problems})

    def as_json(self) -> dict[str, Any]:
        """What `plan --json` shows."""
        written = to_builtins(self.decided())
        return {name: written[name] for name in SHOWN}

    def stated(self, *names: str) -> list[str]:
        """Those of the arguments that the recipe or the command line gives a value that can be used."""
        return [name for name in names if self.settings.states(name)]

    def write(self, **arguments: Any) -> Plan:
        return replace(self, settings=self.settings.decide(**arguments))

    def export(self, variables: Mapping[str, str]) -> Plan:
        """Set variables of the training's environment."""
        return replace(self, environment={**self.environment, **variables})

    def note(self, *decisions: Decision) -> Plan:
        return replace(self, decisions=(*self.decisions, *decisions))

    def complain(self, *problems: Problem) -> Plan:
        return replace(self, problems=(*self.problems, *problems))

    def choose(self, name: str, value: Any, reason: str) -> Plan:
        """Set an argument that the kit chooses, unless the recipe states it."""
        if self.settings.states(name):
            return self
        return self.write(**{name: value}).note(Decision(name, value, "kit default", reason))

    def force(self, name: str, value: Any, reason: str) -> Plan:
        """Set an argument that only the kit sets; a foreign value is replaced, and the reason says so."""
        if self.settings.states(name) and self.recipe.value(name) != value:
            reason = f"{reason} (the recipe's {self.recipe.value(name)!r} is replaced)"
        return self.write(**{name: value}).note(Decision(name, value, "kit default", reason))

    def keep(self, name: str, value: Any, key: str) -> Plan:
        """Note that a value is as it is because the recipe or the command line states `key`."""
        entry = self._entry(key)
        where = "the command line" if entry.source == "override" else f"line {entry.place.line}"
        return self.note(Decision(name, value, entry.source, f"stated as {key} in {where}"))

    def take(self, decision: Decision, problems: list[Problem], key: str) -> Plan:
        """Take over a decision of the machine table, with its problems placed at the line that led to it."""
        if decision.source == "recipe":  # asked for there; `auto` is a question, and the table's is the answer
            decision = dataclasses.replace(decision, source=self._entry(key).source)
        return self.note(decision).complain(
            *(dataclasses.replace(each, where=self.recipe.place(key)) for each in problems)
        )

    def heard(self, kit_name: str, *names: str) -> tuple[Plan, list[str]]:
        """Those of LLaMA-Factory's arguments that are stated; none, and an error, where a `kit:` key says it too."""
        stated = self.stated(*names)
        if not stated or getattr(self.recipe.kit, kit_name) == "auto":
            return self, stated
        name, key = stated[0], f"kit.{kit_name}"
        here, there = (dataclasses.replace(self.recipe.place(each), key=None) for each in (name, key))
        fix = f"keep one of them: {name} ({here}) or {key} ({there})"
        return self.complain(Problem(f"'{name}' and '{key}' ({there}) both say it", fix, self.recipe.place(name))), []

    def _entry(self, key: str) -> Entry:
        return self.recipe.entries.get(key) or self.recipe.kit_entries[key]

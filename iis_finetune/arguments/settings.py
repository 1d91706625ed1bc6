"""What each argument of LLaMA-Factory will be, and who says so: the one place that knows a default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from ..errors import Problem
from ..recipe import Recipe
from .llamafactory import Table, frozen_table, table, table_problems
from .stated import check

# What LLaMA-Factory's arguments say that a key of the kit block says as well.
SAME = {
    "global_batch_size": ("gradient_accumulation_steps",),
    "launcher": ("deepspeed", "fsdp"),
    "attention": ("flash_attn",),
    "precision": ("pure_bf16", "bf16", "fp16"),
}


class Settings(Struct, frozen=True):
    """An argument is what the recipe states, else what the plan decided, else LLaMA-Factory's own default.

    Values are in LLaMA-Factory's types; null counts as not given. An argument that only another version has is None, a
    name that none has a KeyError.
    """

    table: Table
    stated: Mapping[str, Any] = field(default_factory=dict)
    decided: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        for given in (self.stated, self.decided):
            if given.get(name) is not None:
                return given[name]
        if name not in self.table and name not in frozen_table():
            raise KeyError(name)
        return self.table[name].default if name in self.table else None

    def states(self, *names: str) -> bool:
        """Whether the recipe or the command line gives one of the arguments a value."""
        return any(self.stated.get(name) is not None for name in names)

    def names(self, name: str) -> list[str]:
        """The names in an argument that takes several, as a list or with commas between them."""
        value = self[name]
        parts = value.split(",") if isinstance(value, str) else value or []
        return [text for part in parts if (text := str(part).strip())]

    def decide(self, **values: Any) -> Settings:
        """The same with more of it decided."""
        return replace(self, decided={**self.decided, **values})


def settings_of(recipe: Recipe, ppo: Path | None = None) -> tuple[Settings, list[Problem]]:
    """A recipe's settings before anything is decided, and the problems of its lines; `ppo`: stage ppo's environment."""
    stage = recipe.value("stage")
    known = table(stage, ppo)
    stated, problems = check(recipe.entries.values(), known)
    return Settings(known, stated), [*table_problems(stage, ppo), *problems]


def trained_with(arguments: Mapping[str, Any]) -> Settings:
    """The settings of a training that was given these arguments."""
    return Settings(table(arguments.get("stage")), arguments)

"""What was found in the rows: each kind of fault once, with its count and its first rows."""

from __future__ import annotations

import tomllib
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from ..arguments import TABLES

SHOWN = 3  # rows that a sentence names


class Fault(Exception):
    """Why a row cannot be used: a case of tables/row_faults.toml, and the word that its sentence needs."""

    def __init__(self, case: str, detail: str = ""):
        super().__init__(case, detail)
        self.case, self.detail = case, detail

    @property
    def effect(self) -> str:
        """`stop`, `drop`, `keep` or `file`, as the table explains them."""
        return _table()[self.case]["effect"]

    def sentence(self, file: str) -> tuple[str, str]:
        """What is wrong, and what mends it."""
        words = {"detail": self.detail, "file": file}
        row = _table()[self.case]
        return row["what"].format(**words), row["fix"].format(**words)


@cache
def _table() -> dict[str, dict[str, str]]:
    return tomllib.loads((TABLES / "row_faults.toml").read_text("utf-8"))


class Row(NamedTuple):
    """A row, or the fault found in its place; `first_table` tells whether it takes part in fixing the columns."""

    number: int
    line: int | None
    value: Any
    first_table: bool = True


@dataclass
class Findings:
    """How often each thing was found, and the first rows that it was found in."""

    counts: Counter[Any] = field(default_factory=Counter)
    first: dict[Any, list[Row]] = field(default_factory=dict)

    def add(self, what: Any, row: Row) -> None:
        self.counts[what] += 1
        if self.counts[what] <= SHOWN:
            self.first.setdefault(what, []).append(row)

    def rows(self, what: Any) -> str:
        """`row 3, 5, 8, ...`."""
        more = ", ..." if self.counts[what] > SHOWN else ""
        return f"row {', '.join(str(row.number) for row in self.first[what])}{more}"

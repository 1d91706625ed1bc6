"""What can be wrong with rows: faults, how often each was found and where first, and the types that columns hold."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..tables import read

SHOWN = 3  # rows that a sentence names
KINDS = {bool: "true or false", int: "number", float: "number", str: "text", list: "list", dict: "object"}
# Strings that pyarrow's JSON reader takes for points in time when a column holds nothing else (26.0).
DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d(:\d\d(:\d\d(\.\d{1,9})?)?)?Z?)?")


class Fault(Exception):
    """Why a row cannot be used: a case of tables/row_faults.toml, and the word that its sentence needs."""

    def __init__(self, case: str, detail: str = ""):
        super().__init__(case, detail)
        self.case, self.detail = case, detail

    @property
    def effect(self) -> str:
        """`stop`, `drop`, `keep` or `file`, as the table explains them."""
        return str(read("row_faults.toml")[self.case]["effect"])

    def sentence(self, file: str) -> tuple[str, str]:
        """What is wrong, and what mends it."""
        words = {"detail": self.detail, "file": shlex.quote(file)}
        row = read("row_faults.toml")[self.case]
        return row["what"].format(**words), row["fix"].format(**words)


class Row(NamedTuple):
    """A row, or the fault found in its place.

    `number` counts the data from 1, without a header and blank lines; 0: only the line is known. `first_table`: it
    takes part in fixing the columns. `reads_dates`: texts that look like dates can become times.
    """

    number: int
    line: int | None
    value: Any
    first_table: bool = True
    reads_dates: bool = False
    file: str = ""

    @property
    def key(self) -> str | None:
        return f"row {self.number}" if self.number else None


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
        first, more = self.first[what], ", ..." if self.counts[what] > SHOWN else ""
        if first[0].number == 0:
            return f"line {first[0].line}"
        return f"row {', '.join(str(row.number) for row in first)}{more}"


@dataclass
class Column:
    """What a column, a member of its objects or the items of its lists held so far: `datasets` gives each one type."""

    name: str = ""
    kinds: dict[str, int] = field(default_factory=dict)
    members: dict[str, Column] = field(default_factory=dict)
    items: Column | None = None
    only_dates: bool = True

    def member(self, key: str) -> Column:
        return self.members.setdefault(key, Column(f"{self.name}.{key}" if self.name else key))


def kind_of(value: Any) -> str | None:
    """The word for a value's type; None for a value that is not there."""
    return None if value is None else KINDS.get(type(value)) or type(value).__name__


def note(column: Column, value: Any, row: Row) -> Iterator[Fault]:
    """Record a value, and give what `datasets` would stop at: a second type, or a first one that comes too late."""
    kind = kind_of(value)
    if kind is None:
        return
    if kind not in column.kinds:
        yield from _new_kind(column, kind, row)
    if kind == "text" and column.only_dates:
        column.only_dates = row.reads_dates and DATE.fullmatch(value) is not None
    elif kind == "object":
        for key, item in value.items():
            yield from note(column.members.get(key) or column.member(key), item, row)
    elif kind == "list":
        column.items = column.items or Column(f"{column.name}[]")
        for item in value:
            yield from note(column.items, item, row)


def _new_kind(column: Column, kind: str, row: Row) -> Iterator[Fault]:
    if not column.kinds and not row.first_table:
        yield Fault("late_column", column.name)
    if column.kinds:
        first, number = next(iter(column.kinds.items()))
        yield Fault("mixed", f"'{column.name}' holds {first} in row {number} and {kind}")
    column.kinds[kind] = row.number

"""The type of every place in the rows: `datasets` gives each column, member and list one type for the whole file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .findings import Fault, Row

KINDS = {bool: "true or false", int: "number", float: "number", str: "text", list: "list", dict: "object"}
# Strings that pyarrow's JSON reader takes for points in time when a column holds nothing else (26.0).
DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d(:\d\d(:\d\d(\.\d{1,9})?)?)?Z?)?")


@dataclass
class Column:
    """What one place (a column, a member of its objects, the items of its lists) was seen to hold so far."""

    name: str = ""
    kinds: dict[str, int] = field(default_factory=dict)
    members: dict[str, Column] = field(default_factory=dict)
    items: Column | None = None
    only_dates: bool = True

    def member(self, key: str) -> Column:
        return self.members.setdefault(key, Column(f"{self.name}.{key}" if self.name else key))


def note(column: Column, value: Any, row: Row) -> Iterator[Fault]:
    """Record a value at its place, and give what `datasets` would stop at: another type, or a type too late."""
    if value is None:
        return
    kind = KINDS.get(type(value)) or type(value).__name__
    if kind not in column.kinds:
        yield from _new_kind(column, kind, row)
    if kind == "text" and column.only_dates:
        column.only_dates = DATE.fullmatch(value) is not None
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

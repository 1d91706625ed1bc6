"""The known failures of LLaMA-Factory and its libraries, as data: what a log says, what it means, what helps."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import Kind, Place, Problem
from ..tables import read


def known_failures(log: str) -> Iterator[tuple[Mapping[str, Any], re.Match[str]]]:
    """The rows whose words a log holds, each with where it says them; the table's order is that of their weight."""
    for row in read("failures.toml")["failure"]:
        match = re.search(row["pattern"], log, re.MULTILINE)
        if match:
            yield row, match


def explain(log: str, place: Place) -> Problem | None:
    """The known cause of a failure, from the text of its log; None when nobody has described it."""
    for row, match in known_failures(log):
        if "what" in row:
            kind: Kind = row.get("kind", "invalid")
            return Problem(row["what"].format(*match.groups()), row["fix"], place, kind=kind, code=row.get("code"))
    return None

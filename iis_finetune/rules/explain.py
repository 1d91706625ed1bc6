"""The known failures of LLaMA-Factory and its libraries, as data: what a log says, what it means, what helps."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from ..errors import Kind, Place, Problem

FAILURES = Path(__file__).parent.parent / "tables" / "failures.toml"


def explain(log: str, place: Place) -> Problem | None:
    """The known cause of a failure, from the text of its log; None when nobody has described it."""
    for row in tomllib.loads(FAILURES.read_text(encoding="utf-8"))["failure"]:
        match = re.search(row["pattern"], log)
        if match:
            kind: Kind = row.get("kind", "invalid")
            return Problem(row["what"].format(*match.groups()), row["fix"], place, kind=kind, code=row.get("code"))
    return None

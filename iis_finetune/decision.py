"""A value that the kit chose or changed, who says so, and why."""

from dataclasses import dataclass
from typing import Any, Literal

Source = Literal["override", "recipe", "measured here", "reported", "machine table", "kit default"]  # strongest first


@dataclass(frozen=True)
class Decision:
    """`reason` is one sentence and never empty."""

    name: str
    value: Any
    source: Source
    reason: str

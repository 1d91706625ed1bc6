"""Whether a number lies where LLaMA-Factory can use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import Place, Problem
from .table import Argument, Limit


def beyond(argument: Argument, given: Mapping[str, Any], place: Place) -> Iterator[Problem]:
    """A Problem for each limit that the given value of this argument breaks."""
    value = given.get(argument.name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    for limit in argument.limits:
        if not _holds(value, limit) and not _excused(limit, given):
            what = f"'{argument.name}' is {value}: {limit.why}"
            yield Problem(what, f"write {_wanted(limit)}", place, limit.severity)


def _excused(limit: Limit, given: Mapping[str, Any]) -> bool:
    if not limit.unless:
        return False
    name, *values = limit.unless
    value = given.get(name)
    return value in values if values else isinstance(value, int | float) and value > 0


def _holds(value: float, limit: Limit) -> bool:
    if value in limit.also:
        return True
    return (
        (limit.minimum is None or value >= limit.minimum)
        and (limit.maximum is None or value <= limit.maximum)
        and (limit.above is None or value > limit.above)
        and (limit.below is None or value < limit.below)
        and (limit.other_than is None or value != limit.other_than)
        and (limit.whole_from is None or value < limit.whole_from or float(value).is_integer())
    )


def _wanted(limit: Limit) -> str:
    bounds = [
        ("at least", limit.minimum),
        ("more than", limit.above),
        ("at most", limit.maximum),
        ("less than", limit.below),
        ("a number other than", limit.other_than),
    ]
    words = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
    if limit.whole_from is not None:
        return "a whole number"
    return " and ".join(words) + "".join(f", or {value:g}" for value in limit.also)

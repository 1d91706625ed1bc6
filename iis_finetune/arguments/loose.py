"""Values of another type than the one wanted, taken for what they mean when that is beyond doubt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from .table import Kind

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def plain(value: object) -> str:
    """A value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def to_bool(value: object, _: str) -> bool:
    word = str(value).strip().lower()
    if isinstance(value, str | int) and word in TRUE + FALSE:
        return word in TRUE
    raise ValueError(word)


def to_int(value: object, text: str) -> int:
    number = to_float(value, text)
    if float(number).is_integer():
        return int(number)
    raise ValueError(text)


def to_float(value: object, text: str) -> int | float:
    """A number stays what it is: LLaMA-Factory reads `val_size: 1` as one row."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return float(value)
    raise ValueError(text)


def to_str(value: object, text: str) -> str:
    """What the person wrote, not what YAML made of it: `model_revision: 1.10` is no 1.1."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return text
    raise ValueError(text)


def to_list(value: object, text: str) -> list[str]:
    if isinstance(value, str):
        return [value]
    raise ValueError(text)


def to_dict(value: object, text: str) -> dict[str, Any]:
    read = json.loads(value) if isinstance(value, str) else None
    if isinstance(read, dict):
        return read
    raise ValueError(text)


LOOSE: Mapping[Kind, Callable[[object, str], Any]] = {
    "bool": to_bool,
    "int": to_int,
    "float": to_float,
    "str": to_str,
    "list": to_list,
    "dict": to_dict,
}

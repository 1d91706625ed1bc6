"""One value at a time: from what YAML made of a line to what LLaMA-Factory needs, or why it cannot be used."""

import contextlib
import datetime
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..errors import did_you_mean
from ..recipe import Entry, texts
from .llamafactory import Argument, Kind

NOT_GIVEN: Final = object()
LONGEST_LIST = 13  # more choices than this are counted, not listed
LARGEST = 2**63  # torch and numpy count in 64 bits
NULLS = ("none", "null", "~")
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
Warn = Callable[[str, str], None]
# The kinds of values in Python, and in words.
TYPES: Mapping[Kind, Any] = {"bool": bool, "int": int, "float": (int, float), "str": str, "list": list, "dict": dict}
WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "list": "a list",
    "dict": "a mapping",
}


class Refused(Exception):
    """The value cannot be used: a Problem's `what` and `fix`."""

    def __init__(self, what: str, fix: str):
        super().__init__(what)
        self.what, self.fix = what, fix


def convert(entry: Entry, argument: Argument, warn: Warn) -> Any:
    """The value in the type that LLaMA-Factory needs, or NOT_GIVEN when its default applies; `warn(what, fix)`.

    Raises Refused when LLaMA-Factory would fail on it or silently do something else.
    """
    value = _as_text(entry) if isinstance(entry.value, datetime.date) else entry.value
    _refuse_interpolation(value, argument)
    if _means_null(value, entry, argument):
        return _null(entry, argument, warn)
    if value is False and argument.nullable and "str" in argument.kinds and "bool" not in argument.kinds:
        warn(f"false is read as null: '{argument.name}' takes a text", f"write '{argument.name}: null'")
        return None
    _refuse_former(value, entry, argument)
    if argument.separator and not isinstance(value, bool | dict):
        return _several(value, argument, warn)
    if str(value).strip().lower().replace("-", "_") in argument.elsewhere:
        return NOT_GIVEN
    if argument.choices and not (isinstance(value, bool) and "bool" in argument.kinds):
        return _choice(value, entry, argument, warn)
    return _typed(value, entry, argument, warn)


def _as_text(entry: Entry) -> str:
    return entry.text if entry.text is not None else str(entry.value)


def _said(value: object) -> str:
    """A value as it may be shown: short, on one line, text in quotes."""
    flat = " ".join((f"'{value}'" if isinstance(value, str) else plain(value)).split())
    return flat if len(flat) <= 60 else f"{flat[:57]}..."


def _refuse_interpolation(value: object, argument: Argument) -> None:
    for text in texts(value):
        if "${" in text or text == "???":
            raise Refused(
                f"LLaMA-Factory does not fill in {_said(text)}: '{argument.name}' would be that very text",
                "write the value itself; on the command line the shell fills in variables",
            )


def _means_null(value: object, entry: Entry, argument: Argument) -> bool:
    if value is None:
        return True
    if not isinstance(value, str) or entry.quoted or value.lower() not in NULLS:
        return False
    known = {*(argument.choices or ()), *(argument.former or {})}
    return value.lower() not in known


def _null(entry: Entry, argument: Argument, warn: Warn) -> Any:
    if entry.value is not None:
        warn(f"YAML reads {_said(entry.value)} as a text; it is read as null", f"write '{argument.name}: null'")
    if argument.nullable:
        return None
    if entry.source == "recipe":
        warn(
            f"'{argument.name}' cannot be null; its default applies: {json.dumps(argument.default)}",
            "write a value or remove the line",
        )
    return NOT_GIVEN


def _several(value: object, argument: Argument, warn: Warn) -> Any:
    """Several values, as the one text that LLaMA-Factory splits, or as a list where it wants a list."""
    wants_list = "list" in argument.kinds
    items = value if isinstance(value, list) else str(value).split((argument.separator or "").strip() or None)
    for item in items:
        if isinstance(item, bool | list | dict) or item is None:
            raise Refused(f"'{argument.name}' lists names, not {_said(item)}", "write names with commas between them")
    names = [str(item).strip() for item in items]
    if value == "" and argument.separator == " ":
        return value
    if not names or "" in names:
        raise Refused(f"'{argument.name}' has an empty name in it", "remove the extra comma")
    for name in names if argument.choices else ():
        _one_of(name, argument)
    if not wants_list:
        return ",".join(names)
    if isinstance(value, str) and argument.separator == "," and len(names) > 1:
        warn(
            f"LLaMA-Factory would read {_said(value)} as one name; it is passed on as {len(names)} names",
            f"write '{argument.name}: [{', '.join(names)}]'",
        )
        return names
    return value if isinstance(value, str) else names


def _refuse_former(value: object, entry: Entry, argument: Argument) -> None:
    if not argument.former or isinstance(value, list | dict) or value in (argument.choices or ()):
        return
    spellings = [str(text).strip().lower() for text in (value, entry.text) if text is not None]
    for spelling in (*spellings, *(text.replace("-", "_") for text in spellings)):
        if new := argument.former.get(spelling):
            lines = {argument.name: new} if isinstance(new, str) else new
            wanted = " and ".join(f"'{key}: {plain(item)}'" for key, item in lines.items())
            wanted += "" if argument.name in lines else " in its place"
            raise Refused(f"'{argument.name}' cannot be {_said(entry.text or value)}", f"write {wanted}")


def _choice(value: object, entry: Entry, argument: Argument, warn: Warn) -> Any:
    if value is False and "no" in (argument.choices or ()):
        return "no"  # YAML 1.1 reads a bare no as false, which LLaMA-Factory then refuses
    if argument.kinds == ("int",):
        value = _typed(value, entry, argument, warn)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        value = _as_text(entry)
    return _one_of(value, argument)


def _one_of(value: object, argument: Argument) -> Any:
    choices = argument.choices or ()
    if value in choices and not isinstance(value, bool):
        return value
    listed = ", ".join(str(choice) for choice in choices[:LONGEST_LIST])
    rest = f" and {len(choices) - LONGEST_LIST} more" if len(choices) > LONGEST_LIST else ""
    fix = did_you_mean(str(value).strip()[:80], map(str, choices), f"write one of: {listed}{rest}")
    raise Refused(f"'{argument.name}' cannot be {_said(value)}", fix)


def _typed(value: object, entry: Entry, argument: Argument, warn: Warn) -> Any:
    if isinstance(value, str) and "bool" in argument.kinds and value.lower() in ("true", "false"):
        return _loose(value, entry, argument, warn)
    for kind in argument.kinds:
        if isinstance(value, TYPES[kind]) and (kind == "bool" or not isinstance(value, bool)):
            return _finite(value, argument)
    return _loose(value, entry, argument, warn)


def _loose(value: object, entry: Entry, argument: Argument, warn: Warn) -> Any:
    """A value of another type, read as what it can only mean."""
    for kind in argument.kinds:
        try:
            taken = _read(kind, value, _as_text(entry))
        except (ValueError, OverflowError):
            continue
        if entry.quoted and kind in {"bool", "int", "float"}:
            warn(
                f"'{argument.name}' is a text in quotes, {_said(value)}; it is read as {plain(taken)}",
                f"write '{argument.name}: {plain(taken)}'",
            )
        return _finite(taken, argument)
    raise _wrong_type(value, entry, argument)


def _wrong_type(value: object, entry: Entry, argument: Argument) -> Refused:
    if not argument.kinds:
        return Refused(f"'{argument.name}' cannot be given in a YAML", "remove the line")
    what = f"'{argument.name}' takes {' or '.join(WORDS[kind] for kind in argument.kinds)}, not {_said(value)}"
    if isinstance(value, bool) and "str" in argument.kinds:
        return Refused(what, f"put it in quotes: '{argument.name}: \"{_as_text(entry)}\"'")
    if argument.kinds == ("int",) and isinstance(value, float) and math.isfinite(value):
        return Refused(what, f"write {math.floor(value)} or {math.ceil(value)}")
    usual = f"correct the value, or remove the line: the default is {json.dumps(argument.default)}"
    return Refused(what, did_you_mean(str(value), TRUE + FALSE if "bool" in argument.kinds else (), usual))


def _finite(value: Any, argument: Argument) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if abs(value) == math.inf and argument.infinite:
        return value
    if not abs(value) < LARGEST:
        raise Refused(f"'{argument.name}' is {_said(value)}", "write a number that a training can use")
    return value


def plain(value: object) -> str:
    """A value as YAML writes it."""
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read(kind: Kind, value: object, text: str) -> Any:
    """A value of another type as this kind, where it can only mean that; raises ValueError where it cannot."""
    word = str(value).strip().lower()
    match kind, value:
        case "bool", str() | int() if word in TRUE + FALSE:
            return word in TRUE
        case "int", _ if float(number := _number(value)).is_integer():
            return int(number)
        case "float", _:
            return _number(value)
        case "str", int() | float() if not isinstance(value, bool):
            return text  # as it was written, not what YAML made of it: `model_revision: 1.10` is no 1.1
        case "list", str():
            return [value]
        case "dict", str() if isinstance(read := json.loads(value), dict):
            return read
    raise ValueError(text)


def _number(value: object) -> int | float:
    """A number stays what it is: LLaMA-Factory reads `val_size: 1` as one row."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return int(value)
        return float(value)
    raise ValueError(value)

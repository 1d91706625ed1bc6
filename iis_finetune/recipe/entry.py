"""One line of a recipe, and those lines that may not stand in one: secrets."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from ..errors import Place, Problem

# A run folder is copied, shared and reported with: what a recipe holds is in a dozen of its files.
ARGUMENTS = re.compile(r"(?:\w+_)?hub_token")
VARIABLES = re.compile(r"(?:\w*_)?(?:TOKEN|SECRET|PASSWORD|KEY)", re.IGNORECASE)
VALUES = re.compile(r"(?<![\w./-])(?:hf_[A-Za-z0-9]|ms-[\w-]|sk-[\w-])(?:[A-Za-z0-9]|[\w-]){19,}")


class Entry(Struct, frozen=True):
    """One `key: value`, of a recipe or of the command line; keys of the kit block are dotted (`kit.precision`).

    `text` is a one-line value as it was written, before YAML took `off` for a boolean or `1.10` for a number; `written`
    is the key as it was written, where this one is what that can only mean.
    """

    key: str
    value: Any
    place: Place
    quoted: bool = False
    source: Literal["recipe", "override"] = "recipe"
    text: str | None = None
    written: str | None = None

    def stands_above(self, other: "Entry | None") -> bool:
        """Whether it counts where both say the same key: the command line's word does over the recipe's line."""
        return other is None or (self.source == "override" and other.source == "recipe")


def without_secrets(entries: Mapping[str, Entry]) -> tuple[dict[str, Entry], list[Problem]]:
    """The entries that may be written into a run folder, and a Problem for each secret, which does not repeat it."""
    kept: dict[str, Entry] = {}
    problems: list[Problem] = []
    for key, entry in entries.items():
        if key == "kit.env" and isinstance(entry.value, dict):
            named = {name: f"kit.env.{name}" for name, value in entry.value.items() if _secret_variable(name, value)}
            rest = {name: value for name, value in entry.value.items() if name not in named}
            kept[key] = replace(entry, value=rest, text=None)
            problems += [_refused(each, entry) for each in named.values()]
        elif entry.value is not None and (ARGUMENTS.fullmatch(key) or _holds_secret(entry.value)):
            problems.append(_refused(key, entry))
        else:
            kept[key] = entry
    return kept, problems


def _secret_variable(name: str, value: Any) -> bool:
    return bool(VARIABLES.fullmatch(name)) or _holds_secret(value)


def _holds_secret(value: Any) -> bool:
    return any(VALUES.search(text) for text in texts(value))


def texts(value: Any) -> Iterator[str]:
    """Every text in a value, lists and mappings opened; each once, since YAML can make a list hold itself."""
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list | dict) and id(item) not in seen:
            seen.add(id(item))
            waiting += [*item, *item.values()] if isinstance(item, dict) else item


def _refused(key: str, entry: Entry) -> Problem:
    what = f"'{VALUES.sub('...', key)}' is a secret, and every file of a run may be shared"
    return Problem(what, "set it in the shell; it is passed on", dataclasses.replace(entry.place, key=None))

"""Which argument belongs to which verb: one recipe serves them all."""

from collections.abc import Mapping
from typing import Any, Literal

from ..tables import read
from .llamafactory import Argument, Table

Verb = Literal["train", "predict", "export", "chat", "serve"]


def for_verb(arguments: Mapping[str, Any], verb: Verb, table: Table) -> dict[str, Any]:
    """The arguments that the verb reads; what would make it fail or mean something else there is left out."""
    row = _row(verb)
    kept = {name: value for name, value in arguments.items() if name in table and _reads(row, table[name])}
    if kept.get("stage") not in row.get("stages", [kept.get("stage")]):
        kept.pop("stage", None)  # an inference file need not have one
    return kept


def _row(verb: Verb) -> Mapping[str, Any]:
    rows = read("verbs.json")["verbs"]
    row: Mapping[str, Any] = rows[verb]
    return rows[row["same_as"]] if "same_as" in row else row


def _reads(row: Mapping[str, Any], argument: Argument) -> bool:
    names = {argument.name, argument.owner}
    return (
        argument.group in row["groups"]
        and ("only" not in row or not names.isdisjoint(row["only"]))
        and names.isdisjoint(row.get("without", ()))
    )

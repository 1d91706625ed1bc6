"""The JSON schema of recipes, for editors: every argument, what it takes, and LLaMA-Factory's own words about it."""

from collections.abc import Mapping
from typing import Any

from .llamafactory import Argument, Kind, Table

TYPES = {"bool": "boolean", "int": "integer", "float": "number", "str": "string", "list": "array", "dict": "object"}
BOUNDS = {"minimum": "minimum", "maximum": "maximum", "above": "exclusiveMinimum", "below": "exclusiveMaximum"}


def schema(kit_schema: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """A JSON schema (draft 7) that allows no unknown key; `kit_schema` is that of the kit block, with its `$defs`."""
    kit = dict(kit_schema)
    definitions = kit.pop("$defs", {})
    arguments = {name: _property(argument) for name, argument in table.items()}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "iis_finetune recipe",
        "description": "A LLaMA-Factory YAML with an optional kit block.",
        "type": "object",
        "properties": {"kit": {"anyOf": [kit, {"type": "null"}]}, **arguments},
        "additionalProperties": False,
        "$defs": definitions,
    }


def _property(argument: Argument) -> dict[str, Any]:
    forms = [_form(kind, argument) for kind in argument.kinds]
    if argument.separator and "list" not in argument.kinds:
        forms.append({"type": "array", "items": {"type": ["string", "number"]}, "minItems": 1})
    if argument.choices and "no" in argument.choices and "bool" not in argument.kinds:
        forms.append({"const": False, "description": "a bare no in YAML 1.1"})
    if argument.nullable or not forms:
        forms.append({"type": "null"})
    shape = forms[0] if len(forms) == 1 else {"anyOf": forms}
    return {"description": argument.help, "default": argument.default, **shape}


def _form(kind: Kind, argument: Argument) -> dict[str, Any]:
    form: dict[str, Any] = {"type": TYPES[kind]}
    choices = list(argument.choices or ())
    if kind == "list":
        return {**form, "items": {"enum": choices} if choices else {"type": "string"}}
    if kind in {"str", "int"} and choices and not (kind == "str" and argument.separator):
        return {"enum": choices}
    return {**form, **_bounds(argument)} if kind in {"int", "float"} else form


def _bounds(argument: Argument) -> dict[str, float]:
    """The bounds whose breach is an error whatever else the recipe says."""
    firm = [limit for limit in argument.limits if limit.severity == "error" and not (limit.unless or limit.also)]
    pairs = [(word, getattr(limit, name)) for limit in firm for name, word in BOUNDS.items()]
    return {word: bound for word, bound in pairs if bound is not None}

"""LLaMA-Factory's arguments: names, types, choices, limits, models and templates, without importing it."""

from .catalogue import Model, Template, find_model, find_template
from .check import check
from .schema import schema
from .settings import Origin, Settings, settings_of, trained_with
from .table import Argument, Limit, Table, frozen_table, installed_table, table
from .verbs import Verb, for_verb, keys_for

__all__ = [
    "Argument",
    "Limit",
    "Model",
    "Origin",
    "Settings",
    "Table",
    "Template",
    "Verb",
    "check",
    "find_model",
    "find_template",
    "for_verb",
    "frozen_table",
    "installed_table",
    "keys_for",
    "schema",
    "settings_of",
    "table",
    "trained_with",
]

"""LLaMA-Factory's arguments: names, types, choices, limits, models and templates, without importing it."""

from .llamafactory import (
    LLAMAFACTORY,
    WHOLE,
    Table,
    Template,
    Verb,
    accepted_versions,
    find_model,
    find_template,
    for_verb,
    frozen,
    frozen_table,
    table,
    version_of,
)
from .schema import schema
from .settings import SAME, Settings, as_meant, check, settings_of, trained_with

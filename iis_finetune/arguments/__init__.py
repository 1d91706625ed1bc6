"""LLaMA-Factory's arguments: names, types, choices, limits, models and templates, without importing it."""

from .llamafactory import LLAMAFACTORY, WHOLE, Table, accepted_versions, frozen, frozen_table, table, version_of
from .registers import Template, find_model, find_template
from .schema import schema
from .settings import SAME, Settings, settings_of, trained_with
from .stated import as_meant, check
from .verbs import Verb, for_verb

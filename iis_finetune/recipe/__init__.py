"""Recipes: find one, read it within bounds and with its line numbers, put the command line's overrides on top."""

from .entry import Entry, texts
from .kit import KEYS as KIT_KEYS
from .kit import FromScratch, Kit, kit_schema
from .reading import REGISTRY, SUFFIXES, Recipe, find, own_recipes, read, registered, unknown

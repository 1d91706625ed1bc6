"""The model folder: what it says without torch, whether it is whole, and the folders that are made from it.

`look` gives the facts; the `check_*` functions return Problems; `precision_view` and `shrink` make other models of it.
"""

from ..arguments import WHOLE
from .base import Base, adapters_of, base_of, published
from .facts import ModelFacts, Shapes, find_folder, from_config, look
from .folder_check import added_tokens, check_folder
from .match import check_adapter, check_additional_target, check_targets, check_template
from .scratch import facts_of, scratch_spec
from .shrink import shrink, smoke_spec
from .view import DTYPES, needs_view, precision_view, view_path

__all__ = [
    "DTYPES",
    "WHOLE",
    "Base",
    "ModelFacts",
    "Shapes",
    "adapters_of",
    "added_tokens",
    "base_of",
    "check_adapter",
    "check_additional_target",
    "check_folder",
    "check_targets",
    "check_template",
    "facts_of",
    "find_folder",
    "from_config",
    "look",
    "needs_view",
    "precision_view",
    "published",
    "scratch_spec",
    "shrink",
    "smoke_spec",
    "view_path",
]

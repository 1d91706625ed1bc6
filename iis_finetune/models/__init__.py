"""The model folder: what it says without torch, whether it is whole, and the folders that are made from it."""

from .base import Base, base_of, stacked
from .facts import ModelFacts, Shapes, find_folder, from_config, layers_of, look
from .folder_check import check_folder, fingerprint
from .folders import (
    called,
    facts_of,
    needs_view,
    precision_view,
    scratch_spec,
    smoke_spec,
    view_path,
    with_layers,
    without_folders,
)
from .match import check_adapter, check_additional_target, check_targets, check_template

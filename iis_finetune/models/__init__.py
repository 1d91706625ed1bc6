"""The model folder: what it says without torch, whether it is whole, and the folders that are made from it."""

from .base import Base, base_of, stacked
from .facts import ModelFacts, Shapes, find_folder, from_config, layers_of, look
from .folder_check import check_folder, fingerprint
from .match import check_adapter, check_additional_target, check_targets, check_template
from .specs import facts_of, scratch_spec, smoke_spec, with_layers
from .view import called, needs_view, precision_view, view_path, without_folders

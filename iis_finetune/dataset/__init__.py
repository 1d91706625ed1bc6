"""Data sets: dataset_info.json, what the rows would do to LLaMA-Factory, what cutoff_len cuts, one's own files."""

from .add import Added, add
from .files import Progress, data_files_hash, read_rows
from .layout import REGISTRY_FILE, Layout, Source, stage_of
from .options import LIMIT, Options, options_of
from .registry import Registry, check_registered, read_registry
from .rows import RowReport, check_rows, usable_samples
from .truncation import TruncationReport, check_truncation

__all__ = [
    "LIMIT",
    "REGISTRY_FILE",
    "Added",
    "Layout",
    "Options",
    "Progress",
    "Registry",
    "RowReport",
    "Source",
    "TruncationReport",
    "add",
    "check_registered",
    "check_rows",
    "check_truncation",
    "data_files_hash",
    "options_of",
    "read_registry",
    "read_rows",
    "stage_of",
    "usable_samples",
]

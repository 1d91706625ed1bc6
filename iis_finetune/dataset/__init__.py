"""Data sets: dataset_info.json, what the rows would do to LLaMA-Factory, what cutoff_len cuts, one's own files."""

from .add import Added, add
from .files import Progress, data_files_hash
from .layout import Layout, Source, stage_of
from .registry import Registry, check_registered, read_registry
from .rows import RowOptions, RowReport, check_rows
from .truncation import TruncationOptions, TruncationReport, check_truncation

__all__ = [
    "Added",
    "Layout",
    "Progress",
    "Registry",
    "RowOptions",
    "RowReport",
    "Source",
    "TruncationOptions",
    "TruncationReport",
    "add",
    "check_registered",
    "check_rows",
    "check_truncation",
    "data_files_hash",
    "read_registry",
    "stage_of",
]

"""Data sets: dataset_info.json, what the rows would do to LLaMA-Factory, what cutoff_len cuts, one's own files."""

from .add import Added, add
from .reading import Reading, Readings
from .registry import check_registered, read_registry
from .rows import RowReport, check_rows, usable_samples
from .sources import LIMIT, REGISTRY_FILE, Options, Source, options_of, stage_of
from .streams import Progress, data_files_hash, read_rows
from .truncation import check_truncation

__all__ = [
    "LIMIT",
    "REGISTRY_FILE",
    "Added",
    "Options",
    "Progress",
    "Reading",
    "Readings",
    "RowReport",
    "Source",
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

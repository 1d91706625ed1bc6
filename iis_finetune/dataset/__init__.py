"""Data sets: dataset_info.json, what the rows would do to LLaMA-Factory, what cutoff_len cuts, one's own files."""

from .add import Added, add
from .readers import Progress, read_rows
from .readings import Readings, kept
from .registry import Registry, check_registered, read_registry
from .rows import Reading, check_rows
from .sources import LIMIT, REGISTRY_FILE, Options, Source, options_of, stage_of

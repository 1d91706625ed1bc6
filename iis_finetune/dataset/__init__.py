"""Data sets: dataset_info.json, what the rows would do to LLaMA-Factory, what cutoff_len cuts, one's own files."""

from .add import HUB_ID, Added, OwnFile, Unregistered, add, entries_of, register, unregistered
from .clean import Cleaned, Wash, clean
from .leaks import Leaks, Read, leaks_of, learnt
from .near import NEAR, TEMPLATE
from .readings import Readings, kept
from .registry import Registry, bring, check_registered, known, read_registry
from .rows import Progress, Reading, check_rows, count_rows
from .sources import COLUMNS, FIELDS, LIMIT, REGISTRY_FILE, SAMPLE, Options, Source, options_of, stage_of
from .split import Cut, Divided, split
from .stats import COUNTED, Stats, figures, measure, mixed

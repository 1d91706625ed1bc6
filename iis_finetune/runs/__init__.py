"""The run folder: its files by name, its state, its attempts and events, its checkpoints."""

from .attempts import Attempt, Ending, attempts, events, living, note, record
from .checkpoint import Contents, Skipped, contents, faults, newest_good, seal, sealed, weight_faults
from .claim import Claim, Holder, Work, claimed, held, holder, turn
from .decided import Decided, Nodes, Provenance, provenance_of, read_decided, write_decided
from .documents import even_on_a_full_disk, json_object, read_json, read_lines, typed, write, write_json
from .listing import (
    create,
    damage,
    delete,
    find,
    finished_run,
    listed,
    new_request,
    reached_last_step,
    reached_the_end,
    state,
    state_after_end,
    steps_done,
    weights,
)
from .measured import REPORTED, Key, Measured, Value, load, matching, save, share
from .run import KIT, PPO, Request, Run, Workspace, fill, step_of
from .starts import Detached, starts

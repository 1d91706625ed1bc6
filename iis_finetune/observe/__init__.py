"""Read the signs of a run from its files, its log and the computer; nothing here changes anything."""

from .held_out import HeldOut, held_out, losses_of, take
from .sensors import devices, killed_for_memory, named_in_kernel_log
from .signs import Signs, began, evaluating, number, signs
from .text import TAIL_BYTES, follow, last_lines, raised, size, tail
from .watch import Seen, StallLimits, Watcher

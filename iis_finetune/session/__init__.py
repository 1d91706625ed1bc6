"""What the detached process does from start to end: base, download, view, training, evaluation; smoke runs."""

from .detached import Order, carry_out, place
from .footing import check_devices, examine_run, refuse_changes
from .smoke import first_name
from .supervision import environment_of

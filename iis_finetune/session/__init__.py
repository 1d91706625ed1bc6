"""What the detached process does from start to end: base, download, view, training, evaluation; smoke runs."""

from .bringup import Order, carry_out, first_name, place
from .footing import check_devices, environment_of, examine_run, refuse_changes

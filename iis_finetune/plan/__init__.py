"""Recipe + machine + what the model folder says -> arguments, environment, command, decisions; pure."""

from msgspec.structs import replace

from ..arguments import settings_of
from ..errors import in_file_order
from .choices import accumulation, attention, environment, micro_batch, output, precision
from .fit import NO_TRAINING, fit, machine_problems
from .measured import global_batch, key_of, now_of, stated, tuned
from .processes import UNNAMED, launcher, several_nodes, several_processes
from .record import Inputs, Plan
from .starting_point import starting_point

STEPS = (
    *(precision, attention, starting_point, micro_batch, launcher, accumulation, output),
    *(several_processes, several_nodes, environment),
)


def make(inputs: Inputs) -> Plan:
    """Plan a training; the problems of the recipe's own lines are in it, found all together."""
    plan = tuned(inputs, lambda inputs: fit(_planned(inputs), _planned))
    return replace(plan, problems=tuple(in_file_order(plan.problems)))


def _planned(inputs: Inputs) -> Plan:
    """All that is decided before the memory is looked at."""
    settings, problems = settings_of(inputs.recipe, inputs.workspace.ppo)
    plan = Plan(inputs, settings, problems=tuple(problems))
    for step in STEPS:
        plan = step(plan)
    return plan

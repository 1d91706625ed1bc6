"""The machine: found without torch, described by a sourced table, and what it decides, each with its reason."""

from .computer import interface_to, package_version
from .decide import (
    advice,
    build_problems,
    compile_problems,
    decide_attention,
    decide_precision,
    emulates,
    fused_attention,
    offload_problems,
    quantization_problems,
)
from .detect import detect
from .drivers import amd_cards_on_bus, text_of
from .environment import decide_environment, dropped_variables, warned_variables
from .knowledge import Row, applies, architecture, load, rocm_version, version_numbers, wheel
from .profiles import profile, profiles
from .records import Device, Machine, trouble

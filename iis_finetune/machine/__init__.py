"""The machine: found without torch, described by a sourced table, and what it decides, each with its reason."""

from .decide import (
    advice,
    build_problems,
    decide_attention,
    decide_compile,
    decide_precision,
    decide_quantization,
    fused_attention,
    offload_problems,
)
from .detect import detect
from .environment import decide_environment, dropped_variables, warned_variables
from .host import package_version
from .network import interface_to
from .records import HERE, Accelerator, Device, Machine
from .table import Row, applies, architecture, load, profile, rocm_version, wheel

__all__ = [
    "HERE",
    "Accelerator",
    "Device",
    "Machine",
    "Row",
    "advice",
    "applies",
    "architecture",
    "build_problems",
    "decide_attention",
    "decide_compile",
    "decide_environment",
    "decide_precision",
    "decide_quantization",
    "detect",
    "dropped_variables",
    "fused_attention",
    "interface_to",
    "load",
    "offload_problems",
    "package_version",
    "profile",
    "rocm_version",
    "warned_variables",
    "wheel",
]

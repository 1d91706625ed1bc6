"""The machine: found without torch, described by a sourced table, and what it decides, each with its reason."""

from iis_finetune.machine.decide import (
    advice,
    build_problems,
    decide_attention,
    decide_compile,
    decide_precision,
    decide_quantization,
    offload_problems,
)
from iis_finetune.machine.detect import detect
from iis_finetune.machine.environment import decide_environment, dropped_variables, warned_variables
from iis_finetune.machine.host import package_version
from iis_finetune.machine.records import HERE, Accelerator, Decision, Device, Machine, Source
from iis_finetune.machine.table import architecture, profile, rocm_version, wheel

__all__ = [
    "HERE",
    "Accelerator",
    "Decision",
    "Device",
    "Machine",
    "Source",
    "advice",
    "architecture",
    "build_problems",
    "decide_attention",
    "decide_compile",
    "decide_environment",
    "decide_precision",
    "decide_quantization",
    "detect",
    "dropped_variables",
    "offload_problems",
    "package_version",
    "profile",
    "rocm_version",
    "warned_variables",
    "wheel",
]

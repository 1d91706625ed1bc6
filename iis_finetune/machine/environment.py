"""Environment variables: what the training processes get, what is taken from them, what the user is warned of."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from ..decision import Decision
from ..errors import Problem
from .knowledge import variables
from .records import Machine, trouble

GPU_THREADS = 8  # threads a GPU process finds work for: loading and collating; more only adds switching


def decide_environment(machine: Machine, processes: int = 1, everywhere: int | None = None) -> list[Decision]:
    """One Decision a variable, `environment.NAME`, for `processes` on this machine and `everywhere` on all nodes."""
    rows = variables("set", machine, everywhere or processes)
    table = [Decision(f"environment.{name}", row["value"], "machine table", row["reason"]) for name, row in rows]
    return [*_devices(machine, processes), *table, *_threads(machine, processes)]


def _devices(machine: Machine, processes: int) -> list[Decision]:
    used = machine.devices[:processes]
    chosen = ",".join(device.uuid or str(device.index) for device in used)
    if machine.accelerator == "cpu":
        return _hide(machine)
    name = "ROCR_VISIBLE_DEVICES" if machine.accelerator == "rocm" else "CUDA_VISIBLE_DEVICES"
    rest = len(machine.devices) - len(used)
    others = [device.name for device, _ in machine.left_out] + [f"{rest} more of the same"] * bool(rest)
    reason = f"the {len(used)} chosen: {machine.device}" + (f"; left out: {', '.join(others)}" if others else "")
    return [Decision(f"environment.{name}", chosen, "machine table", reason)]


def _hide(machine: Machine) -> list[Decision]:
    """Keep a CPU run on the CPU; HIP ignores an empty list, so it gets -1."""
    hidden = {device.vendor: device.name for device, _ in machine.left_out}
    names = {"amd": ("HIP_VISIBLE_DEVICES", "-1"), "nvidia": ("CUDA_VISIBLE_DEVICES", "")}
    return [
        Decision(f"environment.{names[vendor][0]}", names[vendor][1], "kit default", f"keeps the run off {device}")
        for vendor, device in sorted(hidden.items())
    ]


def _threads(machine: Machine, processes: int) -> list[Decision]:
    if processes < 2 and machine.accelerator != "cpu":
        return []
    share = max(1, machine.cpu_count // processes)
    threads = share if machine.accelerator == "cpu" else min(share, GPU_THREADS)
    reason = f"{machine.cpu_count} processor threads for {processes} training process{'es' * (processes > 1)}"
    if processes > 1:
        reason += "; torchrun would give each only one"
    return [Decision("environment.OMP_NUM_THREADS", str(threads), "kit default", reason)]


def dropped_variables(machine: Machine, environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Inherited variables that the training processes must not see, and why; what the plan sets comes after that."""
    rows = variables("drop", machine)
    found = ((name, next((row for pattern, row in rows if fnmatchcase(name, pattern)), None)) for name in environment)
    return sorted((name, row["reason"]) for name, row in found if row)


def warned_variables(machine: Machine, environment: Mapping[str, str]) -> list[Problem]:
    """Dead, useless or harmful variables that are set (in the shell, or in a recipe's `kit.env`), as warnings."""
    rows = [(name, row) for name, row in variables("warn", machine) if name in environment]
    return [
        trouble(f"{name}={environment[name]} {row['reason']}", f"unset {name}", key=name)
        for name, row in rows
        if fnmatchcase(environment[name], row.get("value", "*"))
    ]

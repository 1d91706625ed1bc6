"""What the computer says: who was killed for memory, how a device is doing; None where nothing tells."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import process

CGROUPS = Path("/sys/fs/cgroup")
TOOLS = (
    ["amd-smi", "metric", "--json"],
    ["rocm-smi", "--showtemp", "--showpower", "--showmeminfo", "vram", "--json"],
    ["nvidia-smi", "--query-gpu=memory.used,temperature.gpu,power.draw", "--format=csv,noheader,nounits"],
)


def killed_for_memory() -> int | None:
    """How often the kernel killed for memory in this process's control group (v2, else v1); None when not told."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    groups = [line.partition("::")[2].lstrip("/") for line in lines if line.startswith("0::")]
    files = [CGROUPS / group / "memory.events" for group in groups] + [CGROUPS / "memory.events"]
    files += [CGROUPS / "memory" / "memory.oom_control"]
    for file in files:
        try:
            match = re.search(r"^oom_kill (\d+)", file.read_text(), re.MULTILINE)
        except OSError:
            continue
        if match:
            return int(match[1])
    return None


def named_in_kernel_log(pids: Iterable[int]) -> bool:
    """Whether the kernel's log says that it killed one of these processes for memory; often it may not be read."""
    done = process.capture(["dmesg"], 10)
    text = done.stdout if done and done.returncode == 0 else ""
    killed = {int(pid) for pid in re.findall(r"Out of memory: Killed process (\d+)", text)}
    killed |= {int(pid) for pid in re.findall(r"oom-kill:.*?pid=(\d+)", text)}
    return bool(killed & set(pids))


def devices(environment: Mapping[str, str] | None = None) -> list[dict[str, Any]] | None:
    """Memory in use (GiB), temperature (degrees C) and power (W) of each device; None without a tool that tells."""
    for command, read in zip(TOOLS, (_amd, _rocm, _nvidia), strict=True):
        done = process.capture(command, 10, environment)
        if done and done.returncode == 0:
            try:
                found = read(done.stdout)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                continue
            if found:
                return found
    return None


def _amd(text: str) -> list[dict[str, Any]]:
    """amd-smi: a list (or `gpu_data`) of devices with nested `{value, unit}` pairs."""
    told = json.loads(text)
    rows = told.get("gpu_data", []) if isinstance(told, dict) else told
    return [
        _device(
            _value(row, "mem_usage", "used_vram", scale=1 / 1024),
            _value(row, "temperature", "hotspot") or _value(row, "temperature", "edge"),
            _value(row, "power", "socket_power"),
        )
        for row in rows
    ]


def _value(row: Any, *keys: str, scale: float = 1.0) -> float | None:
    for key in keys:
        row = row.get(key) if isinstance(row, dict) else None
    row = row.get("value") if isinstance(row, dict) else row
    return float(row) * scale if isinstance(row, int | float) else None


def _rocm(text: str) -> list[dict[str, Any]]:
    """rocm-smi: `card0`, `card1`, ... with sentences as keys and numbers as text."""
    found = []
    for card, row in sorted(json.loads(text).items()):
        if card.startswith("card"):
            memory = _first(row, "VRAM Total Used Memory")
            heat = _first(row, "junction") or _first(row, "edge")
            found.append(_device(memory and memory / 2**30, heat, _first(row, "Power")))
    return found


def _first(row: Mapping[str, str], part: str) -> float | None:
    for key, value in row.items():
        if part in key and re.fullmatch(r"\d+(\.\d+)?", str(value)):
            return float(value)
    return None


def _nvidia(text: str) -> list[dict[str, Any]]:
    found = []
    for line in text.strip().splitlines():
        memory, heat, power = (float(cell) if re.fullmatch(r"[\d.]+", cell) else None for cell in line.split(", "))
        found.append(_device(memory and memory / 1024, heat, power))
    return found


def _device(memory: float | None, heat: float | None, power: float | None) -> dict[str, Any]:
    return {"memory_used_gib": memory, "temperature_celsius": heat, "power_watts": power}

"""What the computer says: who was killed for memory, how a device is doing; None where nothing tells."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import process

CGROUPS = Path("/sys/fs/cgroup")
TOOLS = (
    ["amd-smi", "metric", "--json"],
    ["rocm-smi", "--showtemp", "--showpower", "--showmeminfo", "vram", "--json"],
    ["nvidia-smi", "--query-gpu=memory.used,temperature.gpu,power.draw", "--format=csv,noheader,nounits"],
)
MEASURED = ("memory_used_gib", "temperature_celsius", "power_watts")
Row = tuple[float | None, float | None, float | None]


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


def devices(environment: Mapping[str, str] | None = None) -> list[dict[str, float | None]] | None:
    """Memory in use (GiB), temperature (degrees C) and power (W) of each device; None without a tool that tells."""
    for command, read in zip(TOOLS, (_amd, _rocm, _nvidia), strict=True):
        done = process.capture(command, 10, environment)
        if done and done.returncode == 0:
            try:
                found = [dict(zip(MEASURED, row, strict=True)) for row in read(done.stdout)]
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                continue
            if found:
                return found
    return None


def _amd(text: str) -> Iterator[Row]:
    """amd-smi: a list (or `gpu_data`) of devices with nested `{value, unit}` pairs."""
    told = json.loads(text)
    for row in told.get("gpu_data", []) if isinstance(told, dict) else told:
        memory = _nested(row, "mem_usage", "used_vram")
        heat = _nested(row, "temperature", "hotspot") or _nested(row, "temperature", "edge")
        yield memory and memory / 1024, heat, _nested(row, "power", "socket_power")


def _nested(row: Any, part: str, key: str) -> float | None:
    found = (row.get(part) or {}).get(key)
    found = found.get("value") if isinstance(found, dict) else found
    return float(found) if isinstance(found, int | float) else None


def _rocm(text: str) -> Iterator[Row]:
    """rocm-smi: `card0`, `card1`, ... with sentences as keys and numbers as text."""
    for card, row in sorted(json.loads(text).items()):
        if card.startswith("card"):
            memory = _named(row, "VRAM Total Used Memory")
            yield memory and memory / 2**30, _named(row, "junction") or _named(row, "edge"), _named(row, "Power")


def _named(row: Mapping[str, str], part: str) -> float | None:
    numbers = (_number(str(cell)) for key, cell in row.items() if part in key)
    return next((number for number in numbers if number is not None), None)


def _nvidia(text: str) -> Iterator[Row]:
    for line in text.strip().splitlines():
        memory, heat, power = map(_number, line.split(", "))
        yield memory and memory / 1024, heat, power


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None

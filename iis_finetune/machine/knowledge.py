"""The knowledge table (`tables/machine.toml`): architectures, environment variables, faults, names of cards."""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from ..tables import read
from ..wheels import Wheels, read_table
from .records import Machine

Row = Mapping[str, Any]


def load() -> Mapping[str, list[Row]]:
    table: Mapping[str, list[Row]] = read("machine.toml")
    return table


def architecture(name: str) -> Row:
    """The row of an architecture (`gfx906`, `sm_90`, `cpu`); the catch-all rows make sure that there is one."""
    rows = load()["architecture"]
    row = next(row for row in rows if any(fnmatchcase(name, pattern) for pattern in row["names"]))
    return {**architecture(row["like"]), **row} if "like" in row else row


def cell(arch: str, column: str) -> Any:
    """The value of one cell; None when the row has no such cell."""
    return architecture(arch).get(column, {}).get("value")


def variables(verdict: str, machine: Machine, processes: int = 1) -> list[tuple[str, Row]]:
    """Names (or patterns of names) of a verdict and their rows, those whose every condition holds."""
    rows = load()["variable"]
    chosen = [row for row in rows if row["verdict"] == verdict and applies(row, machine, processes)]
    return [(name, filled(row, machine)) for row in chosen for name in row["name"].split(", ")]


def filled(row: Row, machine: Machine) -> Row:
    """A row or a cell with the device's name in its sentences."""
    return {k: v.replace("{device}", machine.device) if isinstance(v, str) else v for k, v in row.items()}


def applies(row: Row, machine: Machine, processes: int = 1) -> bool:
    """Whether a row's conditions of the machine hold."""
    rocm = rocm_version(machine)
    return (
        row.get("accelerator", machine.accelerator) == machine.accelerator
        and any(fnmatchcase(machine.arch, pattern) for pattern in row.get("architectures", ["*"]))
        and _below(rocm, row.get("rocm_below"))
        and ("rocm_from" not in row or (rocm is not None and rocm >= version_numbers(row["rocm_from"])))
        and _below(version_numbers(machine.driver or ""), row.get("driver_below"))
        and bool(re.search(row.get("torch_build", ""), machine.torch_build or ""))
        and processes >= row.get("processes_from", 1)
        and all(row.get("device_name", "") in device.name for device in machine.devices)
    )


def _below(version: tuple[int, ...] | None, limit: str | None) -> bool:
    return limit is None or (version is not None and () < version < version_numbers(limit))


def version_numbers(version: str) -> tuple[int, ...]:
    """A version to compare by: ROCm 7.14 is newer than 7.2."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def rocm_version(machine: Machine) -> tuple[int, ...] | None:
    """The ROCm that torch is or would be built for: the installed one's, else that of the wheel for the card."""
    build = machine.torch_build if machine.here else None
    if "+rocm" not in (build or "") and (published := wheel(machine)):
        build = published.torch
    found = re.search(r"\+rocm(\d+\.\d+)", build or "")
    return version_numbers(found[1]) if found else None


def card_name(device_id: int) -> str | None:
    rows = load()["card"]
    return next((row["name"] for row in rows if device_id in row.get("device_ids", ())), None)


def architecture_of(nvidia_name: str) -> str | None:
    """The architecture that an NVIDIA product name stands for, for drivers too old to say it."""
    rows = load()["card"]
    return next((row["architecture"] for row in rows if any(w in nvidia_name for w in row.get("words", ()))), None)


def wheel(machine: Machine) -> Wheels | None:
    """The torch, torchvision and torchaudio that fit a machine, and their index; None when no build is known."""
    return next((row for row in read_table() if row.serves(machine.accelerator, machine.arch, machine.driver)), None)

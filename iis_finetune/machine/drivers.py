"""AMD and NVIDIA devices, read from what their drivers publish, without torch."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import Problem
from . import knowledge
from .records import Device, trouble

AMD, AMD_PCI = 4098, "0x1002"
NVIDIA_SMI_SECONDS = 20  # without the persistence daemon the driver starts for each call, which takes seconds
NVIDIA_DRIVER = ("proc/driver/nvidia/version", "sys/module/nvidia/version", "usr/lib/wsl/lib/nvidia-smi")
FIELDS = ("index", "name", "memory.total", "compute_cap", "driver_version", "uuid", "pci.bus_id", "memory.reserved")
OLD_FIELDS = tuple(field for field in FIELDS if field not in ("compute_cap", "memory.reserved"))


def text_of(path: Path) -> str:
    """The stripped text of a small system file; empty when it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def number_in(path: Path) -> int:
    text = text_of(path)
    return int(text) if text.isdecimal() else 0


def gfx_name(version: int) -> str | None:
    """Decode KFD's `gfx_target_version`: 90010 is gfx90a; None for a number that is no architecture."""
    major, minor, step = version // 10000, version // 100 % 100, version % 100
    return f"gfx{major}{minor:x}{step:x}" if major and minor < 16 and step < 16 else None


def amd_devices(root: Path) -> list[Device]:
    """The GPU nodes of the KFD topology in driver order, integrated graphics included."""
    found: list[Device] = []
    for folder in _numbered(root / "sys/class/kfd/kfd/topology/nodes"):
        node = _pairs(text_of(folder / "properties"))
        arch = gfx_name(node.get("gfx_target_version", 0))
        # an NVIDIA driver can register nodes here too, with its own vendor id
        if node.get("simd_count", 0) > 0 and node.get("vendor_id") == AMD and arch:
            found.append(_amd_device(root, folder, (len(found), arch), node))
    return found


def _amd_device(root: Path, folder: Path, place: tuple[int, str], node: Mapping[str, int]) -> Device:
    index, arch = place
    minor, location = node.get("drm_render_minor", 0), node.get("location_id", 0)
    drm = root / f"sys/class/drm/renderD{minor}/device"
    integrated = knowledge.cell(arch, "integrated") is not None
    memory = number_in(drm / "mem_info_vram_total") or _largest_bank(folder)
    if integrated:  # the video memory of an APU is only its carve-out; it computes in the system's memory as well
        memory += number_in(drm / "mem_info_gtt_total")
    name = text_of(drm / "product_name") or knowledge.card_name(node.get("device_id", 0)) or f"AMD {arch}"
    return Device(
        index=index,
        name=name,
        vendor="amd",
        arch=arch,
        memory_gib=round(memory / 2**30, 2),
        uuid=_amd_uuid(node.get("unique_id", 0), text_of(drm / "unique_id")),
        pci=f"{node.get('domain', 0):04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}",
        render_node=f"renderD{minor}" if minor else None,
        integrated=integrated,
    )


def _amd_uuid(decimal: int, hexadecimal: str) -> str | None:
    """ROCr's name of a card; KFD prints the number in decimal, DRM in hexadecimal, 0 means that the card has none."""
    if not decimal:
        try:
            decimal = int(hexadecimal, 16)
        except ValueError:
            return None
    return f"GPU-{decimal:016x}" if decimal else None


def _largest_bank(folder: Path) -> int:
    banks = _numbered(folder / "mem_banks")
    return max((_pairs(text_of(bank / "properties")).get("size_in_bytes", 0) for bank in banks), default=0)


def _numbered(folder: Path) -> list[Path]:
    """Folders named by a number, by that number: 10 comes after 2."""
    try:
        return sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    except OSError:
        return []


def _pairs(text: str) -> dict[str, int]:
    words = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdecimal()}


def amd_cards_on_bus(root: Path) -> Iterator[str]:
    """PCI addresses of AMD graphics cards and accelerators, whether a driver serves them or not."""
    folder = root / "sys/bus/pci/devices"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if text_of(path / "vendor") == AMD_PCI and text_of(path / "class").startswith(("0x03", "0x12")):
            yield path.name


def nvidia_devices(root: Path, system_gib: float) -> tuple[list[Device], str | None, list[Problem]]:
    """The devices of nvidia-smi (without memory of their own: `system_gib`), the driver's version, what is wrong."""
    if not any((root / file).exists() for file in NVIDIA_DRIVER):
        return [], None, []
    for fields in (FIELDS, OLD_FIELDS):  # an older driver refuses the whole question for one field it does not know
        lines = _nvidia_smi(fields)
        if lines:
            rows = [dict(zip(fields, line, strict=False)) for line in lines]
            return [_nvidia_device(row, system_gib) for row in rows], rows[0].get("driver_version"), []
    what = "the NVIDIA driver is loaded but nvidia-smi names no card, so the card cannot be used"
    fix = "run `nvidia-smi`; in a container start it with `--gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility`"
    loaded = re.search(r" (\d{3}[.\d]*) ", text_of(root / NVIDIA_DRIVER[0]))
    return [], loaded[1] if loaded else None, [trouble(what, fix)]


def _nvidia_smi(fields: tuple[str, ...]) -> list[list[str]]:
    from .. import process

    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    done = process.capture(command, NVIDIA_SMI_SECONDS)
    if done is None or done.returncode != 0:
        return []
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
    return [row for row in rows if len(row) > 1 and row[0].isdecimal()]


def _nvidia_device(row: Mapping[str, str], system_gib: float) -> Device:
    name, capability = row["name"], row.get("compute_cap", "")
    arch = f"sm_{capability.replace('.', '')}" if capability[:1].isdecimal() else knowledge.architecture_of(name)
    total, reserved = (_mebibytes(row.get(field, "")) for field in ("memory.total", "memory.reserved"))
    return Device(
        index=int(row["index"]),
        name=name,
        vendor="nvidia",
        arch=arch or "sm_60",  # unknown name and old driver: an old card, so the cautious row
        memory_gib=round((total - reserved) / 1024, 2) or system_gib,
        uuid=row.get("uuid") or None,
        pci=row.get("pci.bus_id") or None,
        integrated=not total,
    )


def _mebibytes(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdecimal() else 0.0

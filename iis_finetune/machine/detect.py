"""Find out what this machine has, in milliseconds and without torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import Problem
from . import devices as drivers
from . import host, table
from .records import HERE, Accelerator, Device, Machine

LeftOut = list[tuple[Device, str]]
# ROCr filters first, and HIP counts what ROCr leaves; HIP takes CUDA's variable only where its own is not set
AMD_FILTERS = (("ROCR_VISIBLE_DEVICES",), ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"))
NVIDIA_FILTERS = (("CUDA_VISIBLE_DEVICES",),)


def detect(root: Path = Path("/"), environment: Mapping[str, str] | None = None) -> Machine:
    """The machine below `root`; the user's own `*_VISIBLE_DEVICES` in `environment` filter its devices."""
    environment = os.environ if environment is None else environment
    memory_gib, torch_build = host.memory_gib(root), host.package_version("torch")
    amd = drivers.amd_devices(root)
    nvidia, driver, problems = drivers.nvidia_devices(root)
    # a device that reports no memory of its own computes in the system's
    nvidia = [one if one.memory_gib else replace(one, memory_gib=memory_gib or 0, integrated=True) for one in nvidia]
    shown, left_out = list[Device](), LeftOut()
    for found, filters in ((amd, AMD_FILTERS), (nvidia, NVIDIA_FILTERS)):
        kept, hidden, unknown = visible(found, filters, environment)
        shown, left_out, problems = shown + kept, left_out + hidden, problems + unknown
    chosen, others = choose(shown, prefer_amd="+rocm" in (torch_build or ""))
    usable, kfd_problems = _kfd(root, chosen) if amd else (None, _without_driver(root, bool(nvidia)))
    return Machine(
        name=HERE,
        accelerator=_accelerator(chosen),
        devices=tuple(chosen),
        left_out=tuple(left_out + others),
        cpu_count=host.cpu_count(root),
        memory_gib=memory_gib,
        cpu_flags=host.cpu_flags(root),
        torch_build=torch_build,
        torchaudio_placeholder=host.torchaudio_placeholder(Path(sys.prefix)),
        driver=driver,
        container=host.in_container(root),
        wsl=host.in_wsl(root),
        kfd_usable=usable,
        problems=tuple(problems + kfd_problems),
    )


def _accelerator(chosen: Sequence[Device]) -> Accelerator:
    if not chosen:
        return "cpu"
    return "rocm" if chosen[0].vendor == "amd" else "cuda"


def visible(
    found: list[Device], filters: Sequence[Sequence[str]], environment: Mapping[str, str]
) -> tuple[list[Device], LeftOut, list[Problem]]:
    """Apply the user's own variables as the driver would: in order, by index or UUID, up to the first unknown one."""
    left_out: LeftOut = []
    problems: list[Problem] = []
    for names in filters:
        name = next((name for name in names if name in environment), None)
        if name is None or not found:
            continue
        kept, unknown = _listed(found, environment[name])
        left_out += [(device, f"hidden by your {name}={environment[name]}") for device in found if device not in kept]
        if unknown:
            what = f"{name} names {unknown!r}, which is none of the {len(found)} devices here"
            problems.append(Problem(what, f"correct {name} or unset it", severity="warning", kind="machine"))
        found = kept
    return found, left_out, problems


def _listed(found: list[Device], value: str) -> tuple[list[Device], str | None]:
    kept: list[Device] = []
    for word in (part.strip() for part in value.split(",")):
        device = _named(found, word)
        if device is None:
            return kept, word if word not in ("", "-1") else None  # both are how one hides every device
        if device not in kept:
            kept.append(device)
    return kept, None


def _named(found: list[Device], word: str) -> Device | None:
    if word.isdecimal():
        return found[int(word)] if int(word) < len(found) else None
    matching = [device for device in found if word and (device.uuid or "").lower().startswith(word.lower())]
    return matching[0] if len(matching) == 1 else None


def choose(shown: list[Device], prefer_amd: bool) -> tuple[list[Device], LeftOut]:
    """The devices to train on: one vendor, no integrated graphics beside a card, one architecture."""
    left_out: LeftOut = []

    def leave(devices: list[Device], reason: str) -> None:
        left_out.extend((device, reason) for device in devices)

    never = [one for one in shown if one.integrated and table.cell(one.arch, "integrated") == "never"]
    leave(never, "integrated graphics, too small to train on")
    for one in shown:
        leave([one] if table.cell(one.arch, "left_out") else [], table.cell(one.arch, "left_out") or "")
    rest = [one for one in shown if one not in never and not table.cell(one.arch, "left_out")]
    if any(not one.integrated for one in rest):
        leave([one for one in rest if one.integrated], "integrated graphics beside a card of its own")
        rest = [one for one in rest if not one.integrated]
    vendors = {one.vendor for one in rest}
    if len(vendors) > 1:
        vendor = "amd" if prefer_amd else "nvidia"
        leave([one for one in rest if one.vendor != vendor], "the installed torch serves the other vendor's cards")
        rest = [one for one in rest if one.vendor == vendor]
    memory_gib = {one.arch: sum(other.memory_gib for other in rest if other.arch == one.arch) for one in rest}
    largest = max(memory_gib, key=lambda arch: memory_gib[arch], default="")
    leave([one for one in rest if one.arch != largest], f"another architecture than {largest}, which has more memory")
    return [one for one in rest if one.arch == largest], left_out


def _kfd(root: Path, chosen: Sequence[Device]) -> tuple[bool, list[Problem]]:
    """Whether this user may use AMD cards: the compute device and each card's render node, to read and to write."""
    nodes = [root / "dev/kfd", *(root / "dev/dri" / one.render_node for one in chosen if one.render_node)]
    mode = os.R_OK | os.W_OK
    shut = [node for node in nodes if not os.access(node, mode, effective_ids=True)]
    if not shut:
        return True, []
    if shut[0].exists():
        what = f"no permission to use /{shut[0].relative_to(root)}, so torch will see no AMD card"
        fix = "sudo usermod -aG render,video $USER, then log out and in again"
    else:
        what = f"/{shut[0].relative_to(root)} is not here, so torch will see no AMD card"
        fix = "start the container with --device=/dev/kfd --device=/dev/dri --group-add render --group-add video"
    return False, [Problem(what, fix, kind="machine")] if chosen else []


def _without_driver(root: Path, nvidia: bool) -> list[Problem]:
    """An AMD card on the bus that the compute driver does not serve; WSL has no such driver at all."""
    if host.in_wsl(root) and (root / "dev/dxg").exists() and not nvidia:
        what = "under WSL an AMD card cannot be found, so this plan is for the CPU"
        return [Problem(what, "train on Linux itself, or name the card with --on", severity="warning", kind="machine")]
    cards = [] if nvidia else list(drivers.amd_cards_on_bus(root))
    if not cards:
        return []
    what = f"an AMD graphics card is plugged in ({', '.join(cards)}) but the compute driver does not serve it"
    fix = "install the amdgpu driver with ROCm support, and look for 'kfd' in `dmesg` (a slot without PCIe atomics?)"
    return [Problem(what, fix, severity="warning", kind="machine")]

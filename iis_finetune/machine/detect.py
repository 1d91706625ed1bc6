"""Find out what this machine has, in milliseconds and without torch."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import Problem
from ..wheels import Accelerator
from . import computer, drivers, knowledge
from .records import HERE, Device, Machine, Vendor, trouble

LeftOut = list[tuple[Device, str]]
ACCELERATORS: Mapping[Vendor, Accelerator] = {"amd": "rocm", "nvidia": "cuda"}
# ROCr filters first, and HIP counts what ROCr leaves; HIP takes CUDA's variable only where its own is not set
AMD_FILTERS = (("ROCR_VISIBLE_DEVICES",), ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"))
NVIDIA_FILTERS = (("CUDA_VISIBLE_DEVICES",),)


def detect(
    root: Path = Path("/"), environment: Mapping[str, str] = os.environ, prefer: Vendor | None = None
) -> Machine:
    """The machine below `root`; the user's own `*_VISIBLE_DEVICES` filter its devices. Runs on a bare Python.

    `prefer`: whose cards are taken where both vendors' are here; None: those that the installed torch serves."""
    memory_gib, torch_build = computer.memory_gib(root), computer.package_version("torch")
    amd = drivers.amd_devices(root)
    nvidia, driver, problems = drivers.nvidia_devices(root, memory_gib or 0.0)
    shown, hidden, unknown = _visible(amd, AMD_FILTERS, environment)
    more, more_hidden, more_unknown = _visible(nvidia, NVIDIA_FILTERS, environment)
    chosen, others = _choose(shown + more, prefer or ("amd" if "+rocm" in (torch_build or "") else "nvidia"))
    usable, kfd_problems = _kfd(root, chosen) if amd else (None, _without_driver(root, bool(nvidia)))
    return Machine(
        name=HERE,
        accelerator=ACCELERATORS[chosen[0].vendor] if chosen else "cpu",
        devices=tuple(chosen),
        left_out=(*hidden, *more_hidden, *others),
        cpu_count=computer.cpu_count(root),
        memory_gib=memory_gib,
        cpu_flags=computer.cpu_flags(root),
        processor=computer.of_processor(root, "model name"),
        torch_build=torch_build,
        torchaudio_placeholder=computer.torchaudio_placeholder(Path(sys.prefix)),
        driver=driver,
        container=computer.in_container(root),
        wsl=computer.in_wsl(root),
        kfd_usable=usable,
        problems=(*problems, *unknown, *more_unknown, *kfd_problems),
    )


def _visible(
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
            problems.append(trouble(what, f"correct {name} or unset it"))
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


def _choose(shown: list[Device], prefer: Vendor) -> tuple[list[Device], LeftOut]:
    """The devices to train on: one vendor, no integrated graphics beside a card, one architecture."""
    left_out: LeftOut = []

    def leave(devices: list[Device], reason: str) -> None:
        left_out.extend((device, reason) for device in devices)

    never = [one for one in shown if one.integrated and knowledge.cell(one.arch, "integrated") == "never"]
    leave(never, "integrated graphics, too small to train on")
    for one in shown:
        leave([one] if knowledge.cell(one.arch, "left_out") else [], knowledge.cell(one.arch, "left_out") or "")
    rest = [one for one in shown if one not in never and not knowledge.cell(one.arch, "left_out")]
    if any(not one.integrated for one in rest):
        leave([one for one in rest if one.integrated], "integrated graphics beside a card of its own")
        rest = [one for one in rest if not one.integrated]
    if len({one.vendor for one in rest}) > 1:
        leave([one for one in rest if one.vendor != prefer], "the installed torch serves the other vendor's cards")
        rest = [one for one in rest if one.vendor == prefer]
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
    return False, [trouble(what, fix, "error")] if chosen else []


def _without_driver(root: Path, nvidia: bool) -> list[Problem]:
    """An AMD card on the bus that the compute driver does not serve; WSL has no such driver at all."""
    if computer.in_wsl(root) and (root / "dev/dxg").exists() and not nvidia:
        what = "under WSL an AMD card cannot be found, so this plan is for the CPU"
        return [trouble(what, "train on Linux itself, or name the card with --on")]
    cards = [] if nvidia else list(drivers.amd_cards_on_bus(root))
    if not cards:
        return []
    what = f"an AMD graphics card is plugged in ({', '.join(cards)}) but the compute driver does not serve it"
    fix = "install the amdgpu driver with ROCm support, and look for 'kfd' in `dmesg` (a slot without PCIe atomics?)"
    return [trouble(what, fix)]

"""The computer: devices and their driver, what hinders copies between them, variables, disk, shared memory."""

import os
import re
import shutil
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import Problem
from ..machine import Device, amd_cards_on_bus, applies, dropped_variables, load, text_of, trouble, warned_variables
from .subject import Check, Subject

GIB = 2**30
LEAST_DISK_GIB, COMFORTABLE_DISK_GIB = 2, 20  # a checkpoint or two; a 7B model in 16 bit with its adapters
LEAST_SHARED_MEMORY_GIB = 1  # Docker gives 64 MB; data workers and the copies between cards need more
# A guest sees no host setting; RCCL is silent on Hyper-V and Cray kernels too (ROCm/rccl src/init.cc:155; 2026-11-20).
VIRTUAL = re.compile("microsoft|cray|qemu|kvm|vmware|xen|virtualbox|amazon ec2|google compute", re.IGNORECASE)
HOST_NAMES = ("proc/version", "sys/class/dmi/id/sys_vendor", "sys/class/dmi/id/product_name")
# AMD's documented values; they ended hangs of the first all-reduce (ROCm/rccl#1129, ROCm/vllm#390; 2026-11-20).
PASSTHROUGH = {"dmar": "intel_iommu=on iommu=pt", "ivhd": "amd_iommu=on iommu=pt"}


def devices(subject: Subject) -> Check:
    """Every device, its driver, the ones left out and why; what detection found wrong belongs here."""
    machine, root = subject.machine, subject.root
    driver = machine.driver or text_of(root / "sys/module/amdgpu/version")
    parts = [machine.title, f"driver {driver}" if driver else "", "open to this user" if machine.kfd_usable else ""]
    parts += [f"left out: {device} ({reason})" for device, reason in machine.left_out]
    parts += [place for place, there in (("in a container", machine.container), ("under WSL", machine.wsl)) if there]
    problems = [*machine.problems, *_unserved(subject), *_hidden_memory(subject), *_known_faults(subject)]
    return Check("devices", "; ".join(filter(None, parts)), problems)


def _known_faults(subject: Subject) -> list[Problem]:
    """What the table knows to go wrong on such a card, whatever the recipe, or with this Linux kernel."""
    table, machine, kernel = load(), subject.machine, text_of(subject.root / "proc/sys/kernel/osrelease")
    rows = [row for row in table["fault"] if row.get("doctor")]
    rows += [row for row in table["kernel"] if any(fnmatchcase(kernel, version) for version in row["versions"])]
    found = [row for row in rows if machine.devices and applies(row, machine)]
    words = {"{device}": machine.device, "{kernel}": kernel}
    return [trouble(re.sub(r"{\w+}", lambda m: words[m[0]], row["what"]), row["fix"]) for row in found]


def _unserved(subject: Subject) -> list[Problem]:
    """A card beside others that the compute driver does not serve; detection itself reports when it serves none."""
    known = [*subject.machine.devices, *(device for device, _ in subject.machine.left_out)]
    served = {one.pci for one in known if one.vendor == "amd"}
    missing = [address for address in amd_cards_on_bus(subject.root) if address not in served] if served else []
    what = "the compute driver does not serve the AMD card at {} on the bus"
    fix = "look for 'kfd' in `sudo dmesg`: a slot without PCIe atomics? (a chip for the display only is harmless)"
    return [trouble(what.format(address), fix) for address in missing]


def _hidden_memory(subject: Subject) -> list[Problem]:
    """AMD cards that cannot copy to each other because the bus shows a part of their memory only (BAR 0)."""
    cards = [one for one in subject.machine.devices if one.vendor == "amd"]
    problems = []
    for card in cards if len(cards) > 1 else ():
        text = text_of(subject.root / f"sys/bus/pci/devices/{card.pci}/resource")
        found = re.match(r"0x([0-9a-f]+) 0x([0-9a-f]+) ", text)
        shown_gib = (int(found[2], 16) - int(found[1], 16) + 1) / GIB if found else card.memory_gib
        if shown_gib < card.memory_gib * 0.9:
            what = f"the bus shows {shown_gib:.2g} of {card.memory_gib:.0f} GiB of {card.pci}: no card can copy to it"
            fix = "turn on Above 4G Decoding and Resizable BAR in the BIOS; else kit.env NCCL_P2P_DISABLE: '1' (slower)"
            problems.append(trouble(what, fix))
    return problems


def iommu(subject: Subject) -> Check | None:
    """Whether an IOMMU translates what AMD cards write to each other, which can hang the first all-reduce."""
    root, cards = subject.root, [one for one in subject.machine.devices if one.vendor == "amd"]
    units = sorted(path.name for path in root.glob("sys/class/iommu/*"))
    said = " ".join(text_of(root / file) for file in HOST_NAMES)
    if not cards or not units or VIRTUAL.search(said):
        reason = "a virtual machine, where the host decides" if units else "not active"
        return Check("iommu", reason) if cards else None
    found = ", ".join(sorted({_mode(root, one) for one in cards}))
    if "DMA" not in found or len(cards) < 2:
        return Check("iommu", f"{found} (matters for two cards or more)" if "DMA" in found else found)
    words = next((words for unit, words in PASSTHROUGH.items() if units[0].startswith(unit)), "iommu=pt")
    what = f"the IOMMU translates between the {len(cards)} AMD cards ({found}): the first all-reduce can hang"
    fix = f"add '{words}' to GRUB_CMDLINE_LINUX in /etc/default/grub, sudo update-grub, reboot, doctor --probe"
    return Check("iommu", found, [trouble(what, fix)])


def _mode(root: Path, device: Device) -> str:
    """The type of the card's IOMMU group; before Linux 5.11, which does not tell it, the kernel's own command line."""
    group = root / f"sys/bus/pci/devices/{device.pci}/iommu_group"
    if not group.exists():
        return "no group"
    known = text_of(root / "sys/kernel/iommu_groups" / group.resolve().name / "type")
    words = text_of(root / "proc/cmdline").split()
    return known or ("identity" if "iommu=pt" in words else "DMA by default")


def numa(subject: Subject) -> Check | None:
    """The kernel moving memory about below the cards; RCCL warns of it too (ROCm/rccl src/init.cc:140; 2026-11-20)."""
    setting = text_of(subject.root / "proc/sys/kernel/numa_balancing")
    if not setting or not subject.machine.devices:
        return None
    fix = "sudo sysctl kernel.numa_balancing=0, and the same setting in a file below /etc/sysctl.d to keep it"
    on = [trouble("NUMA balancing is on: the speed of steps becomes uneven", fix)] if setting != "0" else []
    return Check("numa balancing", "on" if on else "off", on)


def variables(subject: Subject) -> Check:
    """Stale or harmful variables in the shell and in the recipe's `kit.env`; and those that a run will not see."""
    machine, recipe = subject.machine, subject.recipe
    problems = warned_variables(machine, subject.environment)
    if recipe:
        own = warned_variables(machine, {name: str(value) for name, value in recipe.kit.env.items()})
        place, fix = recipe.place("kit.env"), "remove the line from kit.env"
        problems += [replace(each, fix=fix, where=replace(place, key=f"kit.env.{each.where.key}")) for each in own]
    dropped = [name for name, _ in dropped_variables(machine, subject.environment)]
    kept_away = f"kept away from runs: {', '.join(dropped)}" if dropped else ""
    return Check("variables", kept_away or f"{len(problems) or 'none'} to look at", problems)


def disk(folder: Path) -> Check:
    """Room for models or runs, and whether they can be written."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free_gib = shutil.disk_usage(there).free / GIB
    move = f"put the folder on another disk: {'IIS_MODELS' if folder.name == 'models' else 'IIS_RUNS'}=/some/where"
    problems = []
    if free_gib < COMFORTABLE_DISK_GIB:
        what = f"{free_gib:.1f} GiB are free for {folder}; a 7B model takes 15"
        problems.append(trouble(what, f"make room, or {move}", "error" if free_gib < LEAST_DISK_GIB else "warning"))
    if not os.access(there, os.W_OK):
        problems.append(trouble(f"{there} cannot be written by this user", f"change its owner, or {move}", "error"))
    return Check(f"disk, {folder.name}/", f"{free_gib:.0f} GiB free", problems)


def shared_memory(subject: Subject) -> Check:
    """Whether /dev/shm, where data workers and processes that train together meet, is big enough."""
    folder = subject.root / "dev/shm"
    size_gib = shutil.disk_usage(folder).total / GIB if folder.is_dir() else 0.0
    resize = "sudo mount -o remount,size=8g /dev/shm"
    fix = "start the container with --shm-size=8g" if subject.machine.container else resize
    what = f"shared memory is {size_gib:.2g} GiB; data workers and processes that train together need more"
    short = [trouble(what, fix)] if size_gib < LEAST_SHARED_MEMORY_GIB else []
    return Check("shared memory", f"{size_gib:.2g} GiB in /dev/shm", short)

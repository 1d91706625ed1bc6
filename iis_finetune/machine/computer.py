"""The computer around the accelerators: processors, memory, limits, container, network, what is installed."""

import os
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path

from .. import process
from ..wheels import record_of
from .drivers import number_in, text_of

ROUTES = Path("/proc/net/route")  # IPv4; addresses in little-endian hex, the mask in the 8th column
LOOK_UP_SECONDS = 10.0
CONTAINER_MARKS = ("docker", "kubepods", "containerd", "lxc", "libpod")


def package_version(name: str, paths: Sequence[str] | None = None) -> str | None:
    """The version of an installed package, read from the names of the dist-info folders alone; None when not there."""
    wanted = _normal(name)
    for folder in sys.path if paths is None else paths:
        try:
            changed = os.stat(folder or ".").st_mtime_ns  # noqa: PTH116 - one call, for each package and folder
        except OSError:
            continue
        if wanted in (versions := _versions(folder or ".", changed)):
            return versions[wanted]
    return None


def bitsandbytes_libraries(paths: Sequence[str] | None = None) -> list[str]:
    """The ROCm versions that the installed bitsandbytes has a library for, without the point: 64, 72, 714."""
    folders = [Path(folder) / "bitsandbytes" for folder in (sys.path if paths is None else paths)]
    names = [file.stem for folder in folders for file in folder.glob("libbitsandbytes_rocm*.so")]
    return [digits for name in names if (digits := name.removeprefix("libbitsandbytes_rocm")).isdecimal()]


@cache
def _versions(folder: str, _changed_ns: int) -> dict[str, str]:
    """Package -> version of one folder as it was when it last changed."""
    try:
        entries = os.listdir(folder)  # noqa: PTH208 - one call instead of a Path for each of 300 entries
    except OSError:
        return {}
    parts = (entry.removesuffix(".dist-info").rpartition("-") for entry in entries if entry.endswith(".dist-info"))
    return {_normal(name): version for name, _, version in parts}


def _normal(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_")


def torchaudio_placeholder(prefix: Path) -> bool | None:
    """Whether set-up found that the real torchaudio cannot load; None when set-up left no result."""
    found = (record_of(prefix) or {}).get("torchaudio_placeholder")
    return found if isinstance(found, bool) else None


def cpu_flags(root: Path) -> tuple[str, ...]:
    """The vector extensions (avx, amx) of the first processor."""
    flags = (of_processor(root, "flags") or "").split()
    return tuple(sorted(flag for flag in flags if flag.startswith(("avx", "amx"))))


def of_processor(root: Path, key: str) -> str | None:
    """What the kernel says of the first processor."""
    try:
        with (root / "proc/cpuinfo").open(errors="replace") as file:  # the first block only: the kernel makes each one
            line = next((line for line in file if line.startswith(key)), "")
    except OSError:
        return None
    return line.partition(":")[2].strip() or None


def cpu_count(root: Path) -> int:
    """Processors that this process may use: those online, its affinity, the cgroup's quota."""
    online = re.findall(r"(\d+)(?:-(\d+))?", text_of(root / "sys/devices/system/cpu/online"))  # as in "0-3,8"
    counts = [float(sum(int(last or first) - int(first) + 1 for first, last in online))] if online else []
    if root == Path("/"):
        counts.append(len(os.sched_getaffinity(0)))
    for folder in _cgroup_folders(root, "cpu"):
        quota, _, period = text_of(folder / "cpu.max").partition(" ")
        quota = quota or text_of(folder / "cpu.cfs_quota_us")
        period = period or text_of(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            counts.append(int(quota) / int(period))
    return max(1, int(min(counts, default=1)))


def memory_gib(root: Path) -> float | None:
    """The system's memory, or what the cgroup leaves of it."""
    total = re.search(r"MemTotal:\s+(\d+) kB", text_of(root / "proc/meminfo"))
    sizes = [int(total[1]) * 1024] if total else []
    for folder in _cgroup_folders(root, "memory"):
        sizes += [number_in(folder / "memory.max"), number_in(folder / "memory.limit_in_bytes")]
    sizes = [size for size in sizes if size]
    return round(min(sizes) / 2**30, 2) if sizes else None


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup up to the top one, version 2 and 1: a parent's limit binds as well."""
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, inside = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controllers and controller)
        folder = top / inside.strip("/")
        yield folder
        for parent in folder.parents:
            if not parent.is_relative_to(top):
                break
            yield parent


def in_container(root: Path) -> bool:
    marked = any((root / file).exists() for file in (".dockerenv", "run/.containerenv"))
    return marked or any(mark in text_of(root / "proc/1/cgroup") for mark in CONTAINER_MARKS)


def in_wsl(root: Path) -> bool:
    return "microsoft" in text_of(root / "proc/version").lower()


def interface_to(host: str) -> str | None:
    """The card that has the host's address itself, else the one its most exact IPv4 route names; None when unknown."""
    address = _address(host)
    if address is None:
        return None
    import psutil  # 30 ms, paid with --nodes only

    own = [name for name, has in psutil.net_if_addrs().items() for each in has if each.address == str(address)]
    return own[0] if own else _routed(address)


def _address(host: str) -> IPv4Address | None:
    try:
        return IPv4Address(host)
    except ValueError:
        found = process.capture(["getent", "ahostsv4", host], LOOK_UP_SECONDS)
    words = found.stdout.split() if found else []
    return IPv4Address(words[0]) if words else None


def _routed(address: IPv4Address) -> str | None:
    best: tuple[int, str] | None = None
    for line in ROUTES.read_text().splitlines()[1:] if ROUTES.is_file() else ():
        name, target, _, *rest = line.split()
        network, mask = (struct.unpack("<I", bytes.fromhex(word))[0] for word in (target, rest[4]))
        if int(address) & mask == network and (best is None or mask > best[0]):
            best = (mask, name)
    return best[1] if best else None

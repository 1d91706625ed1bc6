"""What a machine is and what is decided from it: frozen records."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import Place, Problem, Severity
from ..wheels import Accelerator

Vendor = Literal["amd", "nvidia"]

HERE = "here"


@dataclass(frozen=True)
class Device:
    """One accelerator; `index` counts all of its vendor's devices in driver order, hidden and integrated ones too."""

    index: int
    name: str
    vendor: Vendor
    arch: str
    memory_gib: float
    uuid: str | None = None
    pci: str | None = None
    render_node: str | None = None
    integrated: bool = False

    def __str__(self) -> str:
        return f"{self.arch} ({self.name})"


@dataclass(frozen=True)
class Machine:
    """The accelerators, memory and builds found here, or those of a named profile; unknown values are None.

    `devices` are the usable ones, all of one architecture; `left_out` says why the others are not. `memory_gib` and
    `cpu_count` honour the cgroup's limits. `kfd_usable` is None without an AMD card.
    """

    name: str
    accelerator: Accelerator
    devices: tuple[Device, ...] = ()
    left_out: tuple[tuple[Device, str], ...] = ()
    cpu_count: int = 1
    memory_gib: float | None = None
    cpu_flags: tuple[str, ...] = ()
    processor: str | None = None
    torch_build: str | None = None
    torchaudio_placeholder: bool | None = None
    driver: str | None = None
    container: bool = False
    wsl: bool = False
    kfd_usable: bool | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def here(self) -> bool:
        """Whether this is the computer that the kit runs on, so that what is installed counts."""
        return self.name == HERE

    @property
    def arch(self) -> str:
        return self.devices[0].arch if self.devices else "cpu"

    @property
    def device(self) -> str:
        """The kind of device in words: `gfx906 (AMD Instinct MI50)`, or `the CPU`."""
        return str(self.devices[0]) if self.devices else "the CPU"

    @property
    def title(self) -> str:
        """The machine in words: `2x AMD Instinct MI50 (gfx906, 31.98 GiB each)`."""
        if not self.devices:
            return f"CPU, {self.cpu_count} threads" + (f", {self.memory_gib:.1f} GiB" if self.memory_gib else "")
        first, each = self.devices[0], " each" if len(self.devices) > 1 else ""
        return f"{len(self.devices)}x {first.name} ({first.arch}, {first.memory_gib:.2f} GiB{each})"

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "title": self.title,
            "left_out": [{**asdict(device), "reason": reason} for device, reason in self.left_out],
            "problems": [problem.as_json() for problem in self.problems],
        }


def trouble(what: str, fix: str, severity: Severity = "warning", key: str | None = None) -> Problem:
    """A problem of the machine, not of what the user wrote."""
    return Problem(what, fix, Place(key=key), severity, "machine")

"""Which builds of torch there are, and what set-up recorded; standard library only: set-up runs it bare."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from .tables import read

Accelerator = Literal["cpu", "cuda", "rocm"]

PLACEHOLDER = Path(__file__).parent / "hook" / "torchaudio_placeholder"
LOADER = Path(__file__).parent / "probe" / "trio.py"
RECORD = "iis-finetune-setup.json"
EXTRAS = ("bitsandbytes", "deepspeed", "gguf", "lm_eval", "swanlab", "tensorboard", "wandb")  # `make setup EXTRA=`
TRIO = ("torch", "torchvision", "torchaudio")
PYTORCH_INDEX = "https://download.pytorch.org/whl"


@dataclass(frozen=True)
class Wheels:
    """One row of the table: a matching trio and the index it comes from."""

    accelerator: Accelerator
    index: str
    torch: str
    torchvision: str
    torchaudio: str
    plain_index: bool
    confirmed: bool
    source: str
    date: str
    architectures: tuple[str, ...] = ()
    driver_at_least: int = 0
    compute_capability_at_least: float = 0.0
    note: str = ""
    device_extra: bool = False
    devices: tuple[str, ...] = ()  # of its architectures, those that are here

    def for_pip(self) -> list[str]:
        """The trio with its index's extras: the libraries of these devices and not those of all."""
        extras = f"[{','.join(f'device-{each}' for each in self.devices)}]" if self.device_extra else ""
        return [each if "audio" in each else each.replace("==", f"{extras}==") for each in self.requirements()]

    def serves(self, accelerator: Accelerator, architecture: str, driver: str | None) -> bool:
        """Whether it has code for such a card (`gfx906`, `sm_86`), and the NVIDIA driver, if known, is new enough."""
        capability = int(architecture[3:]) / 10 if architecture.startswith("sm_") else None
        return (
            self.accelerator == accelerator
            and (not self.architectures or architecture in self.architectures)
            and (capability is None or capability >= self.compute_capability_at_least)
            and (driver is None or int(driver.partition(".")[0]) >= self.driver_at_least)
        )

    def requirements(self, *, local: bool = True) -> list[str]:
        """The trio as pip is given it; without `local` the `+rocm6.3` part, which only that index has, is left out."""
        versions = (getattr(self, name) for name in TRIO)
        return [f"{name}=={v if local else v.split('+')[0]}" for name, v in zip(TRIO, versions, strict=True)]

    def index_at(self, mirror: str | None) -> str:
        """The row's index, on a mirror of the PyTorch index if one is named."""
        if mirror and self.index.startswith(PYTORCH_INDEX):
            return mirror.rstrip("/") + self.index.removeprefix(PYTORCH_INDEX)
        return self.index


@cache
def read_table() -> tuple[Wheels, ...]:
    """Every row, in the order in which they are preferred."""
    return tuple(
        Wheels(**{**row, "date": row["date"].isoformat(), "architectures": tuple(row.get("architectures", ()))})
        for row in read("wheels.toml")["wheel"]
    )


def record_of(environment: Path) -> dict[str, Any] | None:
    """What set-up did in this virtual environment (`sys.prefix`); None when it never finished there."""
    try:
        record = json.loads((environment / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def write_record(environment: Path, record: Mapping[str, Any]) -> None:
    """Write what set-up did, last and whole: its presence means that everything before it was done."""
    temporary = environment / (RECORD + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(environment / RECORD)


def load_command(python: str, name: str) -> list[str]:
    """The child that imports one of the trio; -P keeps the kit's own file names out of its imports."""
    return [python, "-P", str(LOADER), name]


def load_error(returncode: int | None, printed: str) -> str | None:
    """Why one of the trio could not load: the last line it died with; None when it loaded."""
    if returncode == 0:
        return None
    ended = "it did not end in time" if returncode is None else f"it ended with {returncode}"
    return (printed.strip().splitlines() or [ended])[-1]


@dataclass(frozen=True)
class Cure:
    """What makes a trio that cannot load harmless to text models; a foreign torchvision is not ours to remove."""

    remove_torchvision: bool
    torchvision_is_foreign: bool
    torchaudio_placeholder: bool


def cure_of(errors: Mapping[str, str | None], torchvision_folder: str, environment: Path) -> Cure:
    """Decide, from what each of the trio died with and the folder that torchvision lies in (empty: nowhere)."""
    broken = bool(errors["torchvision"] and torchvision_folder)
    own = broken and Path(torchvision_folder).resolve().is_relative_to(environment.resolve())
    return Cure(own, broken and not own, bool(errors["torchaudio"]))

"""Look at this machine, propose what to mend, and make the repairs that are safe."""

import sys
from pathlib import Path

from msgspec.structs import replace

from ..preflight import fitting
from . import builds, hardware
from .install import CLONE, InstallPlan, install_plan, mend
from .probing import problems_of, risk, together, trials
from .subject import Check, Subject


def examine(subject: Subject, quick: bool = False) -> list[Check]:
    """Every check that concerns this machine, without root; `quick` leaves out starting LLaMA-Factory."""
    looked = [
        hardware.devices(subject),
        hardware.iommu(subject),
        hardware.numa(subject),
        builds.torch(subject),
        builds.companions(subject),
        builds.kernels(subject),
        builds.llamafactory(subject, quick),
        hardware.variables(subject),
        *(hardware.disk(folder) for folder in (subject.workspace.models, subject.workspace.runs)),
        hardware.shared_memory(subject),
    ]
    found = [check for check in looked if check is not None]
    return [replace(one, problems=[fitting(each, Path(sys.prefix)) for each in one.problems]) for one in found]

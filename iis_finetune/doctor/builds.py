"""The installed programs: torch for this very card, its two companions, LLaMA-Factory."""

import sys
import time
from pathlib import Path

from .. import launch, process, rules
from ..arguments import LLAMAFACTORY
from ..errors import Place, Problem
from ..machine import (
    architecture,
    build_problems,
    decide_environment,
    package_version,
    rocm_version,
    trouble,
    version_numbers,
)
from ..preflight import broken_off_builds
from ..rules import ALWAYS, check_always
from ..wheels import PLACEHOLDER, TRIO, load_error, read_table
from .subject import Check, Subject

START_SECONDS = 180.0
# Where rocBLAS lies: in PyTorch's own wheels, in AMD's (ROCm/TheRock), on the system for a build of one's own.
ROCBLAS = ("torch/lib/rocblas/library", "_rocm_sdk_*/lib/rocblas/library")
SYSTEM_ROCBLAS = "opt/rocm/lib/rocblas/library"
PLAN = "`iis-finetune doctor --install-plan` shows the build for this card"


def torch(subject: Subject) -> Check:
    """Whether the installed torch is for this vendor's devices and has kernels for this very card."""
    machine = subject.machine
    further = {"rocm": _kernels, "cuda": _generation}
    problems = build_problems(machine)
    if not problems and machine.accelerator in further:
        problems = further[machine.accelerator](subject)
    return Check("torch", machine.torch_build or "not installed", problems)


def _kernels(subject: Subject) -> list[Problem]:
    """Looks at the files of rocBLAS: torch's own list names cards that rocBLAS has no kernels for."""
    machine, root = subject.machine, subject.root
    chosen = {decision.name: str(decision.value) for decision in decide_environment(machine)}
    override = chosen.get("environment.HSA_OVERRIDE_GFX_VERSION")  # a few cards run the kernels of another
    arch = f"gfx{override.replace('.', '')}" if override else machine.arch
    paths = [Path(path) for path in (sys.path if subject.packages is None else subject.packages)]
    folders = [folder for path in paths for pattern in ROCBLAS for folder in path.glob(pattern)]
    folders = folders or [folder for folder in [root / SYSTEM_ROCBLAS] if folder.is_dir()]
    last, now = architecture(arch).get("rocm_last", {}).get("value"), rocm_version(machine)
    too_new = bool(last and now and now > version_numbers(last))
    lacking = not any(next(folder.glob(f"*{arch}*"), None) for folder in folders) if folders else too_new
    what = f"torch {machine.torch_build} has no math kernels for {arch}: its first matrix product fails"
    return [trouble(what, PLAN, "error")] if lacking else []


def _generation(subject: Subject) -> list[Problem]:
    """A CUDA build that no longer serves an old card, or that needs a newer driver."""
    machine, build = subject.machine, subject.machine.torch_build or ""
    tag = build.partition("+")[2]
    row = next((row for row in read_table() if tag and row.torch.endswith(f"+{tag}")), None)
    problems = []
    if row and int(machine.arch.removeprefix("sm_")) < row.compute_capability_at_least * 10:
        problems.append(trouble(f"torch {build} has no code for {machine.device}", PLAN, "error"))
    if row and machine.driver and version_numbers(machine.driver)[0] < row.driver_at_least:
        what = f"torch {build} needs NVIDIA driver {row.driver_at_least} or later, this one is {machine.driver}"
        problems.append(trouble(what, f"update the driver, or: {PLAN}", "error"))
    return problems


def companions(subject: Subject) -> Check:
    """Versions and build tags of what LLaMA-Factory loads at every start."""
    versions = {name: package_version(name, subject.packages) for name in ALWAYS}
    placeholder = subject.machine.torchaudio_placeholder
    found = ", ".join(f"{name} {versions[name] or 'absent'}" for name in TRIO[1:])
    covered = " (text-only placeholder in use)" if placeholder else ""
    return Check("companions", found + covered, check_always(versions, placeholder))


def kernels(subject: Subject) -> Check | None:
    """Whether a build of torch's own or DeepSpeed's kernels was broken off."""
    problems = broken_off_builds(subject.environment)
    return Check("compiled kernels", f"{len(problems)} half made", problems) if problems else None


def llamafactory(subject: Subject, quick: bool) -> Check:
    """Its version and, unless `quick`, whether it starts, which tests all its imports; about 10 s."""
    version = package_version("llamafactory", subject.packages)
    if version is None:
        return Check("llamafactory", "not installed", [rules.NO_LLAMAFACTORY])
    fix = f"make setup, or pip install llamafactory=={LLAMAFACTORY}"
    what = f"LLaMA-Factory {version} is installed; this kit was made and tested with {LLAMAFACTORY}"
    problems = [trouble(what, fix)] if version != LLAMAFACTORY else []
    began = time.monotonic()
    failures = [] if quick else _start(subject)
    how = "does not start" if failures else f"starts in {time.monotonic() - began:.0f} s"
    return Check("llamafactory", version if quick else f"{version}, {how}", [*problems, *failures])


def _start(subject: Subject) -> list[Problem]:
    environment = launch.child_environment(subject.machine, subject.environment, {})
    if subject.machine.torchaudio_placeholder:
        paths = [str(PLACEHOLDER), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = ":".join(filter(None, paths))
    done = process.capture(launch.program("version", path=environment["PATH"]), START_SECONDS, environment)
    said = done.stderr or done.stdout if done else "llamafactory-cli is not on the path"
    error = load_error(done.returncode if done else 127, said)
    known = rules.explain(said, Place()) if error else None
    what = f"LLaMA-Factory does not start: {known.what if known else error}"
    fix = known.fix if known else "iis-finetune doctor --fix; if that is not it, make setup and read what it says"
    return [trouble(what, fix, "error")] if error else []

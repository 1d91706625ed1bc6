"""What to install for a machine, and the repairs that are safe."""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from msgspec import Struct

from .. import process
from ..errors import Problem, ProblemsFound
from ..machine import Machine, trouble, wheel
from ..wheels import RECORD, TRIO, cure_of, load_command, load_error, record_of, write_record

SECONDS = 300.0  # for pip, and for importing torch from a cold disk
MIRROR = "IIS_TORCH_INDEX"
KIT = Path(__file__).parent.parent
CLONE = KIT.parent if (KIT.parent / "constraints.txt").is_file() else None


class InstallPlan(Struct, frozen=True):
    """The pip lines for a machine, in order, and how sure they are; `confirmed`: somebody here ran that build."""

    machine: str
    commands: tuple[str, ...]
    confirmed: bool
    source: str
    note: str


def install_plan(machine: Machine, environment: Mapping[str, str], folder: Path = KIT.parent) -> InstallPlan:
    """The trio from its index first, so that nothing can replace it; raises ProblemsFound when no build is known.

    The lines are those to type in `folder`.
    """
    row = wheel(machine)
    if row is None:
        fix = "use a torch of your own: make setup TORCH=keep, or train on the CPU: make setup ACCEL=cpu"
        raise ProblemsFound([trouble(f"no published build of torch is known for {machine.device}", fix, "error")])
    trio = " ".join(row.requirements())
    shown = shlex.join(replace(row, devices=(machine.arch,)).for_pip())
    commands = [f"pip install {shown} --index-url {row.index_at(environment.get(MIRROR))}"]
    pins, kit = _pins_and_kit(folder)
    commands += [f"pip install -c {pins} {kit} {trio}"]  # named again: pip then keeps them
    if len(machine.devices) > 1:
        build = f"DS_BUILD_OPS=0 pip install -c {pins} --no-build-isolation deepspeed"
        commands += ["pip install setuptools wheel", build]
    commands += ["iis-finetune doctor --fix"] if CLONE is None else []  # set-up does it in a clone
    return InstallPlan(machine.title, tuple(commands), row.confirmed, row.source, row.note)


def _pins_and_kit(folder: Path) -> tuple[str, str]:
    """The file of versions and the kit as pip is given them: those of the clone, or what is installed."""
    if CLONE is None:
        return shlex.quote(str(KIT / "tables" / "constraints.txt")), "'iis-finetune[train]'"
    if folder == CLONE:
        return "constraints.txt", "-e '.[train]'"
    return shlex.quote(str(CLONE / "constraints.txt")), f"-e '{CLONE}[train]'"


def mend(environment: Mapping[str, str]) -> tuple[list[str], list[Problem]]:
    """Repair a torchvision and a torchaudio that cannot load, as set-up does: what was done, and what could not be."""
    prefix = Path(sys.prefix)
    if record_of(prefix) is None and (prefix / RECORD.replace(".json", ".started.json")).exists():
        return [], [trouble(f"set-up has not finished in {prefix}", "make setup: it goes on there", "error")]
    errors, where = load_errors(environment), _folder_of("torchvision")
    if errors["torch"]:
        fix = "`iis-finetune doctor --install-plan`, then install what it shows"
        return [], [trouble(f"torch cannot be loaded: {errors['torch']}", fix, "error")]
    cure = cure_of(errors, where, prefix)
    done, problems = [], _uninstall(environment) if cure.remove_torchvision else []
    if cure.remove_torchvision and not problems:
        why = f"which cannot be loaded ({errors['torchvision']})"
        done.append(f"torchvision, {why}, is removed: text models do not need it")
    if cure.torchvision_is_foreign:
        what = f"the torchvision in {where} cannot be loaded and does not belong to this environment"
        problems.append(trouble(what, "pip uninstall torchvision, in the environment that it belongs to", "error"))
    if _note(prefix, bool(done), cure.torchaudio_placeholder):
        covered = f"is replaced by a text-only placeholder ({errors['torchaudio']})"
        done.append(f"torchaudio {covered if cure.torchaudio_placeholder else 'loads: no placeholder any more'}")
    return done, problems


def load_errors(environment: Mapping[str, str]) -> dict[str, str | None]:
    """For each of torch, torchvision, torchaudio: None when it loads in a child, else its last words."""
    from concurrent.futures import ThreadPoolExecutor

    def ask(name: str) -> str | None:
        done = process.capture(load_command(sys.executable, name), SECONDS, environment)
        return load_error(done.returncode, done.stderr) if done else f"{sys.executable} is gone"

    with ThreadPoolExecutor(len(TRIO)) as pool:
        return dict(zip(TRIO, pool.map(ask, TRIO), strict=True))


def _folder_of(package: str) -> str:
    from importlib import metadata

    try:
        return str(metadata.distribution(package).locate_file(""))
    except metadata.PackageNotFoundError:
        return ""


def _uninstall(environment: Mapping[str, str]) -> list[Problem]:
    command = [sys.executable, "-m", "pip", "uninstall", "--yes", "torchvision"]
    gone = process.capture(command, SECONDS, environment)
    failed = load_error(gone.returncode, gone.stderr) if gone else "there is no pip"
    fix = f"remove it yourself: {' '.join(command)} (with uv: uv pip uninstall torchvision)"
    return [trouble(f"torchvision could not be removed: {failed}", fix, "error")] if failed else []


def _note(prefix: Path, removed: bool, placeholder: bool) -> bool:
    """Note the cure where every plan looks for it; true when the placeholder's use changed."""
    before, file = record_of(prefix) or {}, prefix / RECORD
    changed = bool(before.get("torchaudio_placeholder")) != placeholder
    if removed or changed:
        gone = {"torchvision": None, "torchvision_removed": True} if removed else {}
        stamp = file.stat().st_mtime_ns if before else None
        write_record(prefix, {**before, **gone, "torchaudio_placeholder": placeholder})
        if stamp:  # make compares it with the inputs of set-up, and those are as they were
            os.utime(file, ns=(stamp, stamp))
    return changed

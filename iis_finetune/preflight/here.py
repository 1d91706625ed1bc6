"""What this computer lacks for a plan: packages, the launcher's program, disk for the checkpoints."""

import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from .. import arguments, machine, rules
from ..errors import Problem
from ..plan import Plan
from ..rules import Case
from ..runs import Workspace
from ..wheels import EXTRAS, record_of

GIB = 2**30
INSTALLING = re.compile(r"(?P<setup>make setup, or )?(?P<pip>(?<!/)pip install '?(?P<name>[\w-]+)[^\s,]*)")


def here_problems(case: Case, planned: Plan, workspace: Workspace, environment: Mapping[str, str]) -> list[Problem]:
    """What is missing on the machine that the kit runs on; a named profile has none of this."""
    problems = [*case.machine.problems]
    problems += _launcher(planned, environment)
    if machine.package_version("llamafactory") is None:  # what else a recipe needs comes with it, or is told then
        problems.append(rules.NO_LLAMAFACTORY)
    elif case["stage"] == "ppo":
        problems += _of_ppo(case, workspace.ppo)
    else:
        versions = {name: machine.package_version(name) for name in rules.packages_of(case)}
        problems += rules.check_packages(case, versions)
    problems += _login(case, environment)
    if planned.settings["deepspeed"]:
        problems += [replace(each, severity="error") for each in broken_off_builds(environment)]
    return [*problems, *_unwritable(case, workspace), *_disk(case, workspace.runs)]


def fitting(problem: Problem, environment: Path) -> Problem:
    """The fix with the one command that installs a package in this virtual environment: set-up's own, or pip's."""
    ours = record_of(environment) is not None

    def command(found: re.Match[str]) -> str:
        if not ours:
            return found["pip"]
        if found["setup"] or found["name"] in EXTRAS:
            return "make setup" if found["setup"] else f"make setup EXTRA={found['name']}"
        return found["pip"].replace("pip install", f"{environment / 'bin' / 'pip'} install -c constraints.txt")

    return replace(problem, fix=INSTALLING.sub(command, problem.fix))


def _launcher(planned: Plan, environment: Mapping[str, str]) -> list[Problem]:
    """LLaMA-Factory cuts its torchrun command at spaces, its own path included, and looks for torchrun on PATH."""
    if "FORCE_TORCHRUN" not in planned.environment:
        return []
    if " " in sys.prefix:
        what = f"the path '{sys.prefix}' has a space: LLaMA-Factory cannot start {planned.processes} processes from it"
        return [Problem(what, "move the project to a path without spaces, or kit.devices=1", kind="machine", code=2)]
    path = f"{Path(sys.executable).parent}:{environment.get('PATH', '')}"
    if shutil.which("torchrun", path=path) or machine.package_version("torch") is None:
        return []
    return [Problem("torchrun is not on PATH, and several processes need it", "make setup", kind="missing")]


def _of_ppo(case: Case, environment: Path) -> list[Problem]:
    """Stage ppo's own environment: is it there, and does it have what the recipe needs beside its pinned packages?"""
    if record_of(environment) is None or not (environment / "bin" / "llamafactory-cli").is_file():
        version = arguments.version_of("ppo")
        what = f"stage ppo runs in an environment of its own, with LLaMA-Factory {version}, and it is not here"
        fix = "make setup-ppo (about 2 GB), or stage: dpo, which is simpler and needs no reward model"
        return [Problem(what, fix, case.recipe.place("stage"), kind="missing")]
    paths = [str(site) for site in environment.glob("lib/python*/site-packages")]
    versions = {name: machine.package_version(name, paths) for name in rules.packages_of(case)}
    pip = f"{environment / 'bin' / 'pip'} install"
    return [replace(each, fix=each.fix.replace("pip install", pip)) for each in rules.check_needs(case, versions)]


def broken_off_builds(environment: Mapping[str, str]) -> list[Problem]:
    """Kernels that something ended in the compiling: the lock stays, and whoever needs the kernel waits without end.

    Torch asks only whether the file is there (torch/utils/file_baton.py, 2.13); who compiles holds it open.
    """
    cache = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "~")).expanduser() / ".cache"
    folder = Path(environment.get("TORCH_EXTENSIONS_DIR") or Path(cache, "torch_extensions"))
    locks = {path for pattern in ("*/lock", "*/*/lock") for path in folder.glob(pattern)}
    if not locks:
        return []
    import psutil  # 30 ms

    held = {Path(file.path) for who in psutil.process_iter(["open_files"]) for file in who.info["open_files"] or ()}
    what = "the build of {} was broken off, and its lock is left: every training that needs it waits without end"
    left = sorted(locks - held)
    return [machine.trouble(what.format(lock.parent.name), f"rm {shlex.quote(str(lock))}") for lock in left]


def _login(case: Case, environment: Mapping[str, str]) -> list[Problem]:
    """Pushing comes after hours of training; only the hub itself can tell whether a login may write there."""
    key = {"train": "push_to_hub", "export": "export_hub_model_id"}.get(case.purpose)
    if key is None or not case[key]:
        return []
    from .. import hub  # 10 ms that a recipe which pushes nothing need not pay

    (place,) = hub.hubs(hub.ModelOrder("", Path(), source="huggingface"), environment)
    if place.token:
        return []
    what = f"{key} needs a login at Hugging Face, and there is none here"
    return [Problem(what, "hf auth login, or export HF_TOKEN=...", case.recipe.place(key), kind="missing")]


def _unwritable(case: Case, workspace: Workspace) -> Iterator[Problem]:
    """The folders that a training writes into and cannot: tried, since neither rights nor mounts tell for certain."""
    folders = {"IIS_RUNS": workspace.runs, **({} if case.model.folder else {"IIS_MODELS": workspace.models})}
    for name, folder in folders.items():
        try:
            with tempfile.TemporaryDirectory(dir=_nearest(folder), prefix=".iis-finetune-"):
                pass
        except OSError as error:
            what = f"{folder} cannot be written: {(error.strerror or '').lower()}"
            yield Problem(what, f"export {name}=FOLDER, one that you may write into", kind="machine")


def _nearest(folder: Path) -> Path:
    """The folder itself, or the one above it in which it will be made."""
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def _disk(case: Case, runs: Path) -> list[Problem]:
    """Whether the checkpoints fit: a full disk ends a run at a save, after hours."""
    needed = rules.disk_bytes(case)
    folder = _nearest(runs)
    free = shutil.disk_usage(folder).free
    if needed is None or needed <= free:
        return []
    what = f"the checkpoints need about {needed / GIB:.1f} GiB, and {folder} has {free / GIB:.1f} GiB free"
    fix = "save_total_limit: 1, or save_only_model: true, or IIS_RUNS=FOLDER on a larger disk"
    return [Problem(what, fix, case.recipe.place("save_total_limit"), kind="machine")]

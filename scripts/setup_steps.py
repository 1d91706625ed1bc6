"""Set-up's steps, one command after the other, and the record of what they did."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from setup_plan import EVERYTHING, ROOT, Plan, Purpose, SetUpFailed, TorchSource, say, where_torch_comes_from

from iis_finetune.wheels import PLACEHOLDER, RECORD, TRIO, cure_of, load_command, load_error, write_record

STARTED = "iis-finetune-setup.started.json"
TRIO_CONSTRAINTS = "iis-finetune-torch.txt"
LOG_LINES_SHOWN = 15
LLAMA_CPP, CONVERTER = "llama.cpp", ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/", "LICENSE")
# /bin/sh finds the interpreter: a path with a space, or a long one, cannot stand behind #!
TORCHRUN = """#!/bin/sh
exec "{python}" -m torch.distributed.run "$@"
"""
# A user's own settings that would send packages somewhere else, or let the environment see packages that are not in it.
DROPPED_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_CONSTRAINT")
# What the quick verbs (check, plan, runs, status) import, below site-packages.
QUICK = (
    *(
        "__editable__*finder.py",
        "_distutils_hack",
        "annotated_doc",
        "jinja2",
        "markupsafe",
        "msgspec",
        "psutil",
        "rich",
    ),
    *("ruamel", "shellingham", "typer", "typing_extensions.py"),
)


class Steps:
    """Runs one command after the other, each told in one line with its seconds, everything it printed in one log."""

    def __init__(self, venv: Path, purpose: Purpose = EVERYTHING) -> None:
        self.venv, self.purpose = venv, purpose
        self.python = str(venv.absolute() / "bin" / "python")
        self.log = venv / "iis-finetune-setup.log"
        self.environment = {k: v for k, v in os.environ.items() if k not in DROPPED_VARIABLES}
        self.environment |= {"DS_BUILD_OPS": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}

    def run(self, title: str, command: Sequence[str], fix: str, **variables: str) -> None:
        began = time.monotonic()
        if not Path(command[0]).exists():
            raise SetUpFailed(
                f"step failed: {title}\n  {command[0]} is not there\n  fix: remove {self.venv}, run {self.purpose.make}"
            )
        with self.log.open("w", encoding="utf-8") as log:
            environment = self.environment | variables
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
            )
            self._wait(child, title, began)
        if child.returncode:
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            shown = "\n".join(f"    {line}" for line in lines[-LOG_LINES_SHOWN:])
            raise SetUpFailed(
                f"step failed: {title}\n  command: {shlex.join(command)}\n"
                f"  it ended with {child.returncode} and printed:\n{shown}\n  all of it: {self.log}\n"
                f"  fix: {fix}, then run {self.purpose.make} again"
            )
        say(f"  {title}: {time.monotonic() - began:.1f} s")

    def _wait(self, child: subprocess.Popen[bytes], title: str, began: float) -> None:
        while child.poll() is None:
            try:
                child.wait(timeout=30)
            except subprocess.TimeoutExpired:
                say(f"  {title}: {time.monotonic() - began:.0f} s so far, follow it with: tail -f {self.log}")
            except KeyboardInterrupt:
                child.terminate()
                child.wait()
                raise

    def pip(self, title: str, *arguments: str, constrained: bool = True) -> None:
        # Bytecode is left to the first import: compiling every module of every package costs more than the download.
        command = [self.python, "-m", "pip", "install", "--no-compile", "--prefer-binary"]
        if constrained:
            own = (self.venv / TRIO_CONSTRAINTS).absolute()
            command += ["-c", self.purpose.constraints, "-c", str(own)]
        self.run(title, [*command, *arguments], "read pip's words above (network, proxy, disk space, Python version)")

    def ask(self, code: str) -> str:
        """What a line of Python prints in the new environment; empty when it cannot."""
        command = [self.python, "-c", code]
        if not Path(self.python).exists():
            return ""
        answer = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60, check=False)
        return answer.stdout.strip()


def drop_half_installed(venv: Path) -> None:
    """After a kill in the middle: a package without RECORD, which pip writes last, would pass for installed."""
    for site in venv.glob("lib/python*/site-packages"):
        unfinished = [info for info in site.glob("*.dist-info") if not (info / "RECORD").exists()]
        for folder in [*unfinished, *site.glob("~*")]:
            shutil.rmtree(folder)


def begun_with(venv: Path) -> dict[str, Any] | None:
    """What an environment was begun with, finished or not; None when there is none, and never someone else's."""
    marker = venv / STARTED
    if marker.exists():
        begun: dict[str, Any] = json.loads(marker.read_text())
        return begun
    if venv.exists() and any(venv.iterdir()):
        raise SetUpFailed(f"{venv} exists and was not made by this set-up\n  fix: move it away, or remove it")
    return None


def prepare(steps: Steps, plan: Plan, *, reusable: bool) -> None:
    """An environment with pip in it: the one that was begun with the same trio and Python, or a new one."""
    venv = steps.venv
    (venv / RECORD).unlink(missing_ok=True)
    if reusable and steps.ask("import pip; print(pip.__version__)"):
        drop_half_installed(venv)
        return
    if Path(sys.prefix) == venv.resolve() and not plan.wheels:
        raise SetUpFailed(f"{venv} has to be made anew, and it cannot be made from itself\n  fix: run deactivate first")
    if venv.exists():
        shutil.rmtree(venv)
    venv.mkdir(parents=True)
    (venv / STARTED).write_text(json.dumps(plan.identity(venv)))
    # The interpreter below an activated environment: that environment may be the one that was just removed.
    base = str(getattr(sys, "_base_executable", sys.executable))
    command = [base, "-m", "venv"] if plan.wheels else [sys.executable, "-m", "venv", "--system-site-packages"]
    fix = "install the venv module (Debian, Ubuntu: sudo apt install python3-venv)"
    steps.run("virtual environment", [*command, str(venv.absolute())], fix)
    if not plan.wheels:
        show_kept_torch(steps)


def show_kept_torch(steps: Steps) -> None:
    """A torch in another virtual environment is not a package of the system: a .pth file adds the folder it lies in."""
    version = importlib.metadata.version("torch")
    question = "import importlib.metadata as m; print(m.version('torch'))"
    if steps.ask(question) == version:
        return
    folder = str(importlib.metadata.distribution("torch").locate_file(""))
    for site in steps.venv.glob("lib/python*/site-packages"):
        (site / "iis-finetune-kept-torch.pth").write_text(folder + "\n", encoding="utf-8")
    if steps.ask(question) != version:
        raise SetUpFailed(f"the torch in {folder} cannot be seen from {steps.venv}")


def source_of_torch(steps: Steps, plan: Plan, *, reusable: bool) -> TorchSource | None:
    """Where to install the trio from; None when it is kept, or was installed before an interruption."""
    done = reusable and (steps.venv / TRIO_CONSTRAINTS).exists() and installed(steps, "torch")
    if done or not plan.wheels:
        return None
    source = where_torch_comes_from(plan.wheels, os.environ.get("IIS_TORCH_INDEX"))
    wanted = tuple(pin for pin in source.requirements if re.split(r"[\[=]", pin)[0] in plan.trio)
    return replace(source, requirements=wanted)


def install_torch(steps: Steps, plan: Plan, source: TorchSource | None) -> str | None:
    """Install the trio where it is not there yet, and hold everything that follows to it. Returns its index."""
    file = steps.venv / TRIO_CONSTRAINTS
    if source:
        steps.pip(" ".join(source.requirements), *source.arguments(), constrained=False)
    elif plan.wheels:
        return file.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip() or None
    pins = dict(pin.split("==") for pin in plan.pins(local=False))
    pins |= {name: version for name in TRIO if (version := installed(steps, name))}
    lines = "".join(f"{name}=={version}\n" for name, version in pins.items())
    index = source.index if source else None
    file.write_text(f"# {index or ''}\n{lines}", encoding="utf-8")
    return index


def installed(steps: Steps, name: str) -> str | None:
    return steps.ask(f"import importlib.metadata as m; print(m.version({name!r}))") or None


def install_packages(steps: Steps, plan: Plan) -> None:
    steps.pip(f"LLaMA-Factory and what {plan.purpose.constraints} pins", *plan.purpose.packages)
    if not plan.wheels:
        # What the kept interpreter already has was not installed here, so its programs are not in this bin/.
        steps.pip("programs", "--ignore-installed", "--no-deps", *plan.purpose.programs)
        torchrun = Path(steps.python).parent / "torchrun"
        torchrun.write_text(TORCHRUN.format(python=steps.python), encoding="utf-8")
        torchrun.chmod(0o755)
    for name in set(plan.extras) - {"deepspeed", "gguf"}:
        steps.pip(name, name)
    if "gguf" in plan.extras and not (steps.venv / LLAMA_CPP).is_dir():
        install_llama_cpp(steps)
    if "deepspeed" in plan.extras:
        # Its build imports the installed torch, so no isolation; its kernels are built when first used.
        steps.pip("build tools", "setuptools", "wheel")
        steps.pip("deepspeed", "--no-build-isolation", "deepspeed")


def install_llama_cpp(steps: Steps) -> None:
    """llama-cpp-python, compiled, and from the same source archive llama.cpp's converter, which no wheel has."""
    name, making = "llama-cpp-python", steps.venv / f"{LLAMA_CPP}.part"
    shutil.rmtree(making, ignore_errors=True)
    command = [steps.python, "-m", "pip", "download", "-c", steps.purpose.constraints, "--no-deps", "-d", str(making)]
    steps.run(f"{name}, the source", [*command, "--no-binary", name, name], "read pip's words above (network, proxy)")
    archive = next(making.glob("*.tar.gz"))
    steps.pip(f"{name}, compiled (some minutes)", str(archive))
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            inside = member.name.partition("/vendor/llama.cpp/")[2]
            if inside.startswith(CONVERTER):
                member.name = inside
                packed.extract(member, making, filter="data")
    archive.unlink()
    making.replace(steps.venv / LLAMA_CPP)


def load_errors(steps: Steps, names: Sequence[str] = TRIO) -> dict[str, str | None]:
    """For each of the names: None when it loads, else the last line it died with. A child each: one may crash."""
    children = {
        name: subprocess.Popen(
            load_command(steps.python, name),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=steps.environment,
        )
        for name in names
    }
    printed = {name: child.communicate()[1] for name, child in children.items()}
    return {name: load_error(child.returncode, printed[name]) for name, child in children.items()}


def check_and_cure(steps: Steps, names: Sequence[str] = TRIO) -> dict[str, Any]:
    """Make what cannot load harmless: torchvision is removed, torchaudio covered by the text-only placeholder."""
    began = time.monotonic()
    errors = {**dict.fromkeys(TRIO), **load_errors(steps, names)}
    say(f"  loading {', '.join(names)}: {time.monotonic() - began:.1f} s")
    if errors["torch"]:
        raise SetUpFailed(
            f"step failed: the installed torch cannot be imported\n  it said: {errors['torch']}\n"
            "  fix: check the driver and its libraries; ACCEL=cpu makes an environment without them"
        )
    here = steps.ask("import importlib.metadata as m; print(m.distribution('torchvision').locate_file(''))")
    cure = cure_of(errors, here, steps.venv)
    if cure.remove_torchvision:
        say("note: torchvision is left out: it does not load beside this torch, and text models do not need it")
        say(f"      (it said: {errors['torchvision']})")
        command = [steps.python, "-m", "pip", "uninstall", "--yes", "torchvision"]
        steps.run("leaving torchvision out", command, "remove it by hand")
    elif cure.torchvision_is_foreign:
        raise SetUpFailed(
            f"the torchvision beside the kept torch cannot load, and LLaMA-Factory does not start with it\n"
            f"  it said: {errors['torchvision']}\n"
            f"  fix: in that environment, pip uninstall torchvision (text models do not need it); it lies in {here}"
        )
    if cure.torchaudio_placeholder:
        say("note: torchaudio does not load beside this torch; text models train with an empty stand-in for it")
        say(f"      (it said: {errors['torchaudio']})")
    return {"torchvision_removed": cure.remove_torchvision, "torchaudio_placeholder": cure.torchaudio_placeholder}


def start_llamafactory(steps: Steps, *, placeholder: bool) -> None:
    """The proof that it all fits together, and the one import that fills the bytecode cache."""
    variables = {"PYTHONPATH": str(PLACEHOLDER)} if placeholder else {}
    command = [str(Path(steps.python).parent / "llamafactory-cli"), "version"]
    steps.run("LLaMA-Factory starts", command, "read its last lines above", **variables)


def compile_the_quick(steps: Steps) -> None:
    """Bytecode for the quick verbs, a second or two: where PYTHONDONTWRITEBYTECODE is set no start keeps it."""
    sites = list(steps.venv.absolute().glob("lib/python*/site-packages"))
    found = [str(path) for site in sites for pattern in QUICK for path in site.glob(pattern)]
    command = [steps.python, "-m", "compileall", "-q", str(ROOT / "iis_finetune"), *found]
    try:
        steps.run("bytecode for quick starts", command, "make room on the disk")
    except SetUpFailed as failure:
        say(f"{failure}\nset-up goes on: without it every command only starts more slowly")


def set_up(venv: Path, plan: Plan) -> dict[str, Any]:
    """Do every step; returns the record that was written."""
    steps = Steps(venv, plan.purpose)
    reusable = begun_with(venv) == plan.identity(venv)
    source = source_of_torch(steps, plan, reusable=reusable)  # before anything that works is taken down
    prepare(steps, plan, reusable=reusable)
    index = install_torch(steps, plan, source)
    install_packages(steps, plan)
    cure = check_and_cure(steps, plan.trio)
    start_llamafactory(steps, placeholder=cure["torchaudio_placeholder"])
    if plan.purpose == EVERYTHING:
        compile_the_quick(steps)
    record = {
        "accelerator": plan.machine.accelerator,
        **{name: installed(steps, name) for name in TRIO},
        **cure,
        "index": index,
        "kept_torch": plan.wheels is None,
        "constraints_sha256": hashlib.sha256((ROOT / plan.purpose.constraints).read_bytes()).hexdigest(),
        "inputs_sha256": plan.inputs_sha256,
        "request": asdict(replace(plan.request, extras=plan.extras)),
        "python": plan.python,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_record(venv, record)
    return record

"""Write the run folder and start `llamafactory-cli` in it."""

import io
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import __version__, hub, process, rules
from .errors import Problem, ProblemsFound
from .machine import Machine, dropped_variables, package_version
from .models import fingerprint
from .plan import Plan
from .plan.after import VISIBLE
from .preflight import Examined
from .recipe import Recipe
from .runs import KIT, Run, Workspace, fill, holder, listed, read_decided, write, write_decided, write_json

TORCHRUN = ("NPROC_PER_NODE", "FORCE_TORCHRUN")
PACKAGES = ("llamafactory", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "deepspeed")


def rewrite(run: Run, examined: Examined, workspace: Workspace, data: Mapping[str, str]) -> None:
    """Write a run's plan, over an earlier one too: everything a reader, a resume or a rerun by hand needs.

    `data` are the hashes of the data files that it is trained on.
    """
    plan = examined.plan
    write(run.recipe, yaml_text(document_of(plan.recipe)))
    write(run.arguments, yaml_text(fill(plan.arguments, run, workspace)))
    for name, content in plan.files.items():
        write_json(run.folder / name, content)
    environment = fill(plan.environment, run, workspace)
    write(run.command, command_text(plan, environment, run))
    mode = run.command.stat().st_mode
    run.command.chmod(mode | (mode & 0o444) >> 2)  # whoever may read it may start it
    write_decided(run, fill(plan.decided(), run, workspace))
    write_json(run.machine, examined.machine.as_json())
    model = Path(fill(str(plan.arguments.get("model_name_or_path")), run, workspace))
    write_json(run.provenance, {**provenance(plan, workspace, model), "data_sha256": dict(data)})


def resumed_arguments(run: Run, checkpoint: Path | None) -> Path:
    """The run's arguments with where the training goes on: a checkpoint, or its beginning whatever lies in output/."""
    # Left out, LLaMA-Factory takes the highest number it finds, good or not; only `false` makes it begin anew.
    where = json.dumps(str(checkpoint.resolve()) if checkpoint else False, ensure_ascii=False)
    text = run.arguments.read_text(encoding="utf-8")
    write(run.resumed_arguments, f"{text}resume_from_checkpoint: {where}\n")
    return run.resumed_arguments


def document_of(recipe: Recipe) -> dict[str, Any]:
    """The recipe as resolved: overrides applied, the kit block first."""
    kit = {key.removeprefix("kit."): entry.value for key, entry in recipe.kit_entries.items()}
    kit = {key: value for key, value in kit.items() if value is not None}
    values = {
        key: entry.value
        for key, entry in recipe.entries.items()
        if entry.value is not None or entry.source == "recipe"  # `bf16=null` unsets: nothing of it is left
    }
    return {**({"kit": kit} if kit else {}), **values}


def yaml_text(document: Mapping[str, Any]) -> str:
    """YAML 1.1, which LLaMA-Factory's reader, PyYAML and ruamel all read alike (`no` comes out quoted)."""
    from ruamel.yaml import YAML

    writer = YAML(typ="safe", pure=True)
    writer.version = (1, 1)
    writer.default_flow_style = False
    writer.allow_unicode = True
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    writer.dump(dict(document), stream)
    return stream.getvalue().replace("%YAML 1.1\n---\n", "", 1)


def command_text(plan: Plan, environment: Mapping[str, str], run: Run) -> str:
    """A script that starts the same training without the kit's command."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items())]
    values = {
        "@RUN@": run.name,
        "@FOLDER@": shlex.quote(str(run.folder.resolve())),
        "@EXPORTS@": "\n".join(exports),
        "@PROGRAMS@": shlex.quote(str(programs(environment))),
        "@COMMAND@": shlex.join(plan.command),
    }
    return _script("command.sh", values)


def _script(name: str, values: Mapping[str, str]) -> str:
    """A shell script of the tables with what belongs at its marks."""
    text = (KIT / "tables" / name).read_text(encoding="utf-8")
    return re.sub("|".join(values), lambda mark: values[mark[0]], text)


def node_commands(plan: Plan, recipe: str) -> list[dict[str, str]]:
    """For each node the kit's command, and LLaMA-Factory's own in a run folder; none where there is one machine."""
    found = []
    for node in plan.nodes.all if plan.nodes else ():
        place = f"--nodes {node.number} --node-rank {node.rank} --master {node.address}:{node.port}"
        names = {**node.variables(), **{name: plan.environment.get(name, "") for name in TORCHRUN}}
        plain = " ".join(f"{name}={value}" for name, value in names.items())
        found.append({"train": f"iis-finetune train {recipe} {place}", "plain": f"{plain} {shlex.join(plan.command)}"})
    return found


def sbatch(plan: Plan, recipe: str, nodes: int) -> str:
    """A Slurm job of the recipe that saves and queues itself again when it is told to leave."""
    devices = len(_devices(plan.environment))
    values = {
        "@NAME@": re.sub(r"[^\w.-]", "-", plan.recipe.name),
        "@NODES@": str(nodes),
        "@GPUS@": f"#SBATCH --gpus-per-node={devices}\n" if devices else "",
        "@RECIPE@": recipe,
        "@KIT@": shlex.quote(str(Path(sys.executable).parent / "iis-finetune")),
    }
    return _script("job.sbatch", values)


def child_environment(machine: Machine, environment: Mapping[str, str], chosen: Mapping[str, str]) -> dict[str, str]:
    """The user's environment without the variables that would change the run, and with the plan's."""
    dropped = {name for name, _ in dropped_variables(machine, environment)}
    inherited = {name: value for name, value in environment.items() if name not in dropped}
    search = f"{programs(chosen)}:{environment.get('PATH', '/usr/bin:/bin')}"
    return {**inherited, **chosen, "PATH": search}


def programs(chosen: Mapping[str, str]) -> Path:
    """The folder of the programs that a plan's environment means: its own virtual environment's, else this one's."""
    return Path(chosen["VIRTUAL_ENV"]) / "bin" if "VIRTUAL_ENV" in chosen else Path(sys.executable).parent


def start(run: Run, environment: Mapping[str, str], arguments: Path, bound: bool = False) -> process.Child:
    """Start the training in the run folder, in a session of its own, everything it prints into train.log.

    One that is `bound` ends when this process does.
    """
    # A bare file name, because LLaMA-Factory cuts its torchrun command at spaces.
    words = program("train", arguments.name, path=environment.get("PATH"))
    words = process.bound(words) if bound else words
    # What it prints is watched: in a file Python would hold 8 KB of it back, sixty steps and more.
    return process.start(process.Launch(words, {**environment, "PYTHONUNBUFFERED": "1"}, run.folder, run.log))


def make_scratch(spec: Mapping[str, Any], file: Path, machine: Machine, environment: Mapping[str, str]) -> None:
    """A model folder with random weights, made in a child as the spec, which is kept in the file, orders."""
    write_json(file, spec)
    own = child_environment(machine, environment, {"PYTHONPATH": str(KIT.parent)})
    done = process.capture([sys.executable, "-m", "iis_finetune.probe.scratch", str(file)], 600, own)
    if done is None or done.returncode != 0:
        text = done.stderr.strip().splitlines()[-1:] if done else ["no python"]
        raise ProblemsFound([Problem(f"the model could not be made: {' '.join(text)}", "see the log", kind="machine")])


def program(*words: str, path: str | None = None) -> list[str]:
    """The words that start LLaMA-Factory's command: the one on `path`, else that of this very installation."""
    found = shutil.which("llamafactory-cli", path=path or str(Path(sys.executable).parent))
    if found is None:
        need_llamafactory()
    return [found or "llamafactory-cli", *words]


def need_llamafactory() -> None:
    """Raises ProblemsFound where LLaMA-Factory is not installed, with what to install."""
    if package_version("llamafactory") is None:
        raise ProblemsFound([rules.NO_LLAMAFACTORY])


def occupant(environment: Mapping[str, str], workspace: Workspace, but: Run | None = None) -> Run | None:
    """The living run that has one of the devices this environment names; a CPU is shared and never occupied."""
    wanted = _devices(environment)
    for run in listed(workspace):
        held = holder(run)
        works = run != but and held and held.work in ("trained", "evaluated")
        if works and wanted & _devices(read_decided(run).environment):
            return run
    return None


def _devices(environment: Mapping[str, str]) -> set[tuple[str, str]]:
    return {(name, each) for name in VISIBLE for each in environment.get(name, "").split(",") if each not in ("", "-1")}


def provenance(plan: Plan, workspace: Workspace, model: Path) -> dict[str, Any]:
    """What a result came from, beside its data: versions, the state of the repository, the model and its revision."""
    fetched = hub.read_manifest(Path(os.path.realpath(model)))
    return {
        "iis_finetune": __version__,
        "python": sys.version.split()[0],
        "packages": {name: package_version(name, packages_of(plan, workspace)) for name in PACKAGES},
        "git": _git(workspace.root),
        "model": str(model),
        "model_fingerprint": fingerprint(model),
        "model_revision": fetched.commit if fetched else None,
    }


def packages_of(plan: Plan, workspace: Workspace) -> list[str] | None:
    """Where the packages of a plan lie; None is this environment."""
    if "VIRTUAL_ENV" not in plan.environment:
        return None
    return [str(site) for site in workspace.ppo.glob("lib/python*/site-packages")]


def _git(folder: Path) -> dict[str, Any] | None:
    commit = process.capture(["git", "-C", str(folder), "rev-parse", "HEAD"], 10)
    if commit is None or commit.returncode != 0:
        return None
    status = process.capture(["git", "-C", str(folder), "status", "--porcelain"], 10)
    return {"commit": commit.stdout.strip(), "changed": bool(status and status.stdout.strip())}

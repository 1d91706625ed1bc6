"""The runs there are, found by number, name or prefix, and the state of each."""

import difflib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, field

from ..errors import Misused, Problem, ProblemsFound
from .attempts import attempts
from .claim import held, holder
from .decided import read_decided
from .documents import read_json, typed, write, write_json
from .run import NAME, SMOKE, Request, Run, Workspace, step_of


class EarlyStopping(Struct, frozen=True):
    """transformers' callback of that name, as its trainer saves it: patience, and what is used up of it, in looks."""

    args: Mapping[str, int | float] = field(default_factory=dict)
    attributes: Mapping[str, int | float] = field(default_factory=dict)

    @property
    def stopped(self) -> bool:
        waited = self.attributes.get("early_stopping_patience_counter", 0)
        return waited >= self.args.get("early_stopping_patience", 1)


class Callbacks(Struct, frozen=True):
    """The one callback in trainer_state.json that counts here."""

    EarlyStoppingCallback: EarlyStopping | None = None


class StepsDone(Struct, frozen=True):
    """What trainer_state.json says of a training."""

    global_step: int | None = None
    epoch: float | None = None
    max_steps: int | None = None
    stateful_callbacks: Callbacks | None = None


DELETED = ".highest-deleted"
State = Literal["starting", "running", "finished", "failed", "stopped", "interrupted"]


def new_request(workspace: Workspace, asked: Mapping[str, Any]) -> Request:
    parent = workspace.runs / ".requests"
    parent.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S-")
    request = Request(Path(tempfile.mkdtemp(prefix=stamp, dir=parent)))
    write_json(request.asked, asked)
    return request


def create(workspace: Workspace, recipe_name: str, smoke: bool = False) -> Run:
    """Make the next numbered folder; two at once get two numbers."""
    workspace.runs.mkdir(parents=True, exist_ok=True)
    while True:
        number = max([_deleted(workspace.runs), *(run.number for run in listed(workspace))]) + 1
        folder = workspace.runs / f"{number:04d}-{recipe_name}{SMOKE if smoke else ''}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        if len(list(workspace.runs.glob(f"{number:04d}-*"))) == 1:
            return Run(folder)
        folder.rmdir()
        time.sleep(0.01 * (os.getpid() % 7 + 1))


def listed(workspace: Workspace) -> list[Run]:
    """Every run, by ascending number."""
    folders = workspace.runs.iterdir() if workspace.runs.is_dir() else iter(())
    runs = [Run(path) for path in folders if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(runs, key=lambda run: run.number)


def find(workspace: Workspace, text: str) -> Run:
    """A run by its number, its name, a unique prefix, its recipe, or `last` (smoke runs left out)."""
    runs = listed(workspace)
    if text == "last":
        real = [run for run in runs if not run.smoke]
        if real:
            return real[-1]
        told = f" but the smoke run {runs[-1].name}, which `last` leaves out" if runs else ""
        fix = f"name it, {runs[-1].number:04d}, or start a run" if runs else "start one"
        raise Misused(f"there is no run yet{told}", f"{fix}: iis-finetune train RECIPE")
    matches = [run for run in runs if run.name == text]
    if not matches and text.isdecimal():
        matches = [run for run in runs if str(run.number) == (text.lstrip("0") or "0")]
    matches = matches or [run for run in runs if run.name.startswith(text) or run.name.partition("-")[2] == text]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise Misused(f"'{text}' fits {len(matches)} runs", f"one of {', '.join(run.name for run in matches[-5:])}")
    names = {name: run.name for run in runs for name in (run.name, run.recipe_name)}  # by either, the newest
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.6)
    newest = ", ".join(run.name for run in runs[-5:])
    fix = f"did you mean '{names[near[0]]}'?" if near else f"newest runs: {newest or 'there are none yet'}"
    raise Misused(f"no run '{text[:80]}' in {workspace.runs}/", fix)


def finished_run(workspace: Workspace, text: str) -> Run:
    """Like `find`, for verbs that need a finished run."""
    run = find(workspace, text)
    if state(run) == "finished":
        return run
    who = holder(run)
    if who and who.work == "evaluated":
        raise held(run)
    now = state(run)
    verb = "watch" if now in ("starting", "running") else "resume"
    ways = [f"iis-finetune {verb} {run.number:04d}, then this again"]
    ways += [f"--checkpoint {step_of(path)}" for path in run.checkpoints()[-1:]]
    others = [other for other in listed(workspace) if not other.smoke and damage(other) is None]
    done = [other.name for other in others if state(other) == "finished"]
    ways.append(f"the newest finished run is {done[-1]}" if done else "no run has finished yet")
    raise Misused(f"run {run.name} is {now}, not finished", "; ".join(ways))


def state(run: Run) -> State:
    """Derived from the files and the process that has the folder, so it is right after a reboot, and of a copy, too."""
    who = holder(run)
    if who and (who.work in ("prepared", "trained") or who.process in [each.supervisor for each in attempts(run)]):
        return "running" if run.trainer_log.is_file() else "starting"
    return state_after_end(run)


def damage(run: Run) -> Problem | None:
    """What keeps a run's state from being told: a file of it that cannot be understood."""
    try:
        state(run)
    except ProblemsFound as found:
        return found.problems[0]
    return None


def state_after_end(run: Run) -> State:
    """The state as it will be once the supervisor, which asks, is gone."""
    if reached_the_end(run):
        return "finished"
    tried = attempts(run)
    ending = tried[-1].ending if tried else None
    return "failed" if ending == "finished" else ending or "interrupted"


def reached_the_end(run: Run) -> bool:
    """Exit code 0, the expected files, and the last step reached; a stopped run has the first two as well."""
    tried = attempts(run)
    return bool(tried) and tried[-1].returncode == 0 and reached_last_step(run)


def reached_last_step(run: Run) -> bool:
    """Whether the files hold a result of the whole training, by all steps done or by early stopping."""
    progress = steps_done(run)
    step, planned = progress.global_step, progress.max_steps
    if not step or not planned or not (weights(run.output) or _kept_elsewhere(run)):
        return False
    early = (progress.stateful_callbacks or Callbacks()).EarlyStoppingCallback
    return step >= planned or bool(early and early.stopped)


def steps_done(run: Run) -> StepsDone:
    return typed(run.trainer_state, StepsDone, read_json(run.trainer_state) or {})


def _kept_elsewhere(run: Run) -> bool:
    """Whether this is not the first of several nodes: with ZeRO-3 only that one is given the whole weights."""
    nodes = read_decided(run).nodes
    return bool(nodes and nodes.rank)


def weights(folder: Path) -> list[Path]:
    """The weight files that LLaMA-Factory left at the end: an adapter, or a whole model."""
    names = ("adapter_model.safetensors", "adapter_model.bin", "model*.safetensors", "pytorch_model*.bin")
    return sorted(path for name in names for path in folder.glob(name))


def delete(run: Run) -> None:
    """Remove a run that is not running, after renaming it so that a half-removed one is no run; its number is gone."""
    parent = run.folder.parent
    write(parent / DELETED, f"{max(run.number, _deleted(parent))}\n")
    gone = run.folder.with_name(f".deleted-{run.name}")
    shutil.rmtree(gone, ignore_errors=True)  # left by one that was broken off
    run.folder.replace(gone)
    shutil.rmtree(gone)


def _deleted(folder: Path) -> int:
    """The highest number that a deleted run had: notes and reports may still speak of that run by it."""
    try:
        return int((folder / DELETED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0

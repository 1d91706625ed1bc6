"""Name each file of a run folder; tell from them and from the process what state a run is in."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .errors import COMMAND_LINE, Place, Problem, ProblemsFound
from .process import Identity, alive

State = Literal["starting", "running", "finished", "failed", "stopped", "interrupted"]
Ending = Literal["finished", "failed", "stopped"]

NAME = re.compile(r"(\d{4,})-(.+)")
SMOKE = "-smoke"
INCOMPLETE_MARKER = "checkpoint-is-incomplete.txt"  # transformers 5.6, enable_jit_checkpoint


@dataclass(frozen=True)
class Workspace:
    """The folders a verb works in: recipes and data below the root, models and runs wherever they were put."""

    root: Path
    models: Path
    runs: Path

    @property
    def recipes(self) -> Path:
        return self.root / "recipes"

    @property
    def data(self) -> Path:
        return self.root / "data"


@dataclass(frozen=True)
class Attempt:
    """One start of the training program: who ran it, from where, how it ended and why."""

    attempt: int
    started: float
    supervisor: Identity
    process: Identity | None = None
    workers: tuple[Identity, ...] = ()
    from_checkpoint: str | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)
    ended: float | None = None
    ending: Ending | None = None
    returncode: int | None = None
    why: str | None = None


@dataclass(frozen=True)
class Run:
    """A run is a folder; this class alone joins its paths."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def number(self) -> int:
        return int(self.name.partition("-")[0])

    @property
    def smoke(self) -> bool:
        return self.name.endswith(SMOKE)

    @property
    def recipe_name(self) -> str:
        return self.name.partition("-")[2].removesuffix(SMOKE)

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def arguments(self) -> Path:
        return self.folder / "arguments.yaml"

    @property
    def command(self) -> Path:
        return self.folder / "command.sh"

    @property
    def decisions(self) -> Path:
        return self.folder / "decisions.json"

    @property
    def machine(self) -> Path:
        return self.folder / "machine.json"

    @property
    def provenance(self) -> Path:
        return self.folder / "provenance.json"

    @property
    def attempts(self) -> Path:
        return self.folder / "attempts.jsonl"

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.folder / "train.log"

    @property
    def loaded(self) -> Path:
        return self.folder / "loaded.json"

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def trainer_log(self) -> Path:
        return self.output / "trainer_log.jsonl"

    @property
    def trainer_state(self) -> Path:
        return self.output / "trainer_state.json"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation"

    @property
    def export(self) -> Path:
        return self.folder / "export"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def checkpoints(self) -> list[Path]:
        """The checkpoint folders, oldest first."""
        found = [path for path in self.output.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
        return sorted(found, key=step_of)


@dataclass(frozen=True)
class Request:
    """A detached start: what was asked for, what it is doing, what it printed; it may make several runs."""

    folder: Path

    @property
    def asked(self) -> Path:
        return self.folder / "request.json"

    @property
    def progress(self) -> Path:
        return self.folder / "progress.jsonl"

    @property
    def log(self) -> Path:
        return self.folder / "supervisor.log"

    def tell(self, **line: Any) -> None:
        append(self.progress, line)


def new_request(workspace: Workspace, asked: Mapping[str, Any]) -> Request:
    parent = workspace.runs / ".requests"
    parent.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S-")
    request = Request(Path(tempfile.mkdtemp(prefix=stamp, dir=parent)))
    write(request.asked, json.dumps(asked, indent=2) + "\n")
    return request


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a JSON line with the time (seconds since the epoch)."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"time": time.time(), **line}, ensure_ascii=False) + "\n")


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def newest_complete_checkpoint(run: Run) -> Path | None:
    """The last checkpoint with its trainer state and without the mark of a broken-off save."""
    whole = [
        path
        for path in run.checkpoints()
        if (path / "trainer_state.json").is_file() and not (path / INCOMPLETE_MARKER).exists()
    ]
    return whole[-1] if whole else None


def create(workspace: Workspace, recipe_name: str, smoke: bool = False) -> Run:
    """Make the next numbered folder; two at once get two numbers."""
    workspace.runs.mkdir(parents=True, exist_ok=True)
    while True:
        number = max((run.number for run in listed(workspace)), default=0) + 1
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
    """A run by its number, its name, a unique prefix, or `last` (smoke runs left out)."""
    runs = listed(workspace)
    if text == "last":
        real = [run for run in runs if not run.smoke]
        if real:
            return real[-1]
        raise _no_run("there is no run yet", "start one: iis-finetune train RECIPE")
    matches = [run for run in runs if run.name == text]
    if not matches and text.isdecimal():
        matches = [run for run in runs if run.number == int(text)]
    matches = matches or [run for run in runs if run.name.startswith(text)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise _no_run(f"'{text}' fits {len(matches)} runs", f"one of {', '.join(run.name for run in matches[-5:])}")
    names = ", ".join(run.name for run in runs[-5:])
    raise _no_run(f"no run '{text}' in {workspace.runs}/", f"newest runs: {names}" if names else "there are none yet")


def _no_run(what: str, fix: str) -> ProblemsFound:
    return ProblemsFound([Problem(what, fix, Place(COMMAND_LINE), code=2)])


def finished_run(workspace: Workspace, text: str) -> Run:
    """Like `find`, for verbs that need a finished run."""
    run = find(workspace, text)
    if state(run) == "finished":
        return run
    done = [other.name for other in listed(workspace) if state(other) == "finished" and not other.smoke]
    fix = f"the newest finished run is {done[-1]}" if done else "no run has finished yet"
    raise _no_run(f"run {run.name} is {state(run)}, not finished", fix)


def state(run: Run) -> State:
    """Derived from the files and the supervisor's process, so it is right after a reboot too."""
    tried = attempts(run)
    if not tried:
        return "interrupted"
    if alive(tried[-1].supervisor):
        return "running" if run.trainer_log.is_file() else "starting"
    return state_after_end(run)


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
    progress = read_json(run.trainer_state) or {}
    step, planned = progress.get("global_step"), progress.get("max_steps")
    if not step or not planned or not weights(run.output):
        return False
    return bool(step >= planned) or _stopped_early(progress)


def _stopped_early(progress: Mapping[str, Any]) -> bool:
    early = (progress.get("stateful_callbacks") or {}).get("EarlyStoppingCallback")
    if not early:
        return False
    attributes = early.get("attributes") or {}
    patience = (early.get("args") or {}).get("early_stopping_patience", 1)
    return int(attributes.get("early_stopping_patience_counter", 0)) >= int(patience)


def weights(folder: Path) -> list[Path]:
    """The weight files that LLaMA-Factory left at the end: an adapter, or a whole model."""
    names = ("adapter_model.safetensors", "adapter_model.bin", "model*.safetensors", "pytorch_model*.bin")
    return sorted(path for name in names for path in folder.glob(name))


def attempts(run: Run) -> list[Attempt]:
    return [_attempt(line) for line in read_lines(run.attempts)]


def _attempt(line: Mapping[str, Any]) -> Attempt:
    known = {key: value for key, value in line.items() if key in Attempt.__dataclass_fields__}
    known["supervisor"] = Identity(**line["supervisor"])
    known["process"] = Identity(**line["process"]) if line.get("process") else None
    known["workers"] = tuple(Identity(**worker) for worker in line.get("workers", ()))
    return Attempt(**known)


def record(run: Run, attempt: Attempt) -> None:
    """Write an attempt's line: a new one, or over the earlier line of the same attempt."""
    lines = [old for old in attempts(run) if old.attempt != attempt.attempt]
    text = "".join(json.dumps(asdict(each), sort_keys=True) + "\n" for each in [*lines, attempt])
    write(run.attempts, text)


def end(run: Run, attempt: Attempt, ending: Ending, why: str | None = None) -> Attempt:
    done = replace(attempt, ended=time.time(), ending=ending, why=why)
    record(run, done)
    return done


def note(run: Run, event: str, **details: Any) -> None:
    """Append a line to events.jsonl: what was seen or done."""
    append(run.events, {"event": event, **details})


def events(run: Run) -> list[dict[str, Any]]:
    return list(read_lines(run.events))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line; a last line that is still being written is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    yield from filter(None, map(json_object, lines))


def json_object(text: str) -> dict[str, Any]:
    """A line as a JSON object; empty when it is none."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write(path: Path, text: str) -> None:
    """Whole or not at all: a temporary file beside it, fsync, rename."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def delete(run: Run) -> None:
    """Remove a run that is not running, after renaming it so that a half-removed one is no run."""
    gone = run.folder.with_name(f".deleted-{run.name}")
    run.folder.replace(gone)
    shutil.rmtree(gone)

"""Name each file of a run folder, of a detached start and of the workspace; nothing else joins these paths."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from ..decision import Decision
from .documents import append, even_on_a_full_disk

KIT = Path(__file__).parent.parent
NAME = re.compile(r"(\d{4,})-(.+)")
SMOKE = "-smoke"


PPO = Path(sys.prefix).parent / ".venv-ppo"  # the virtual environment of stage ppo, beside the one that the kit runs in


class Workspace(Struct, frozen=True):
    """The folders a verb works in: recipes and data below the root, the others wherever they were put.

    A run that goes on stands on what there was when it began: only runs numbered below `before` can be bases.
    """

    root: Path
    models: Path
    runs: Path
    ppo: Path = PPO
    before: int | None = None
    measured_in: Path | None = None

    @property
    def recipes(self) -> Path:
        return self.root / "recipes"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def measured(self) -> Path:
        return self.measured_in or self.root / "measured"


class Named:
    """A file or folder by its name in its owner's folder: `run.log` is `<run.folder>/train.log`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, owner: Run | Request, _class: type) -> Path:
        return owner.folder / self.name


class Run(Struct, frozen=True):
    """A run is a folder; this class alone names its files."""

    folder: Path

    recipe = Named("recipe.yaml")
    arguments = Named("arguments.yaml")
    resumed_arguments = Named("arguments-resumed.yaml")  # of an attempt that does not start afresh
    command = Named("command.sh")
    decisions = Named("decisions.json")
    machine = Named("machine.json")
    provenance = Named("provenance.json")
    attempts = Named("attempts.jsonl")
    events = Named("events.jsonl")
    log = Named("train.log")
    loaded = Named("loaded.json")
    output = Named("output")
    trainer_log = Named("output/trainer_log.jsonl")
    trainer_state = Named("output/trainer_state.json")
    evaluation = Named("evaluation")
    export = Named("export")
    report = Named("report.html")
    claim = Named("claim.json")  # who works on the run now; locked by that process
    stop_requested = Named("stop-requested")  # asks the hook in the training for a checkpoint and an end
    stop_at_step = Named("stop-at-step")  # the step at whose end every process stops; the hook writes it
    checksums = Named("checksums")  # of the checkpoints, one file each
    rejected = Named("rejected")  # broken checkpoints, out of LLaMA-Factory's way: it takes the highest number

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
    def result(self) -> Path:
        """What the training made; with pissa_convert the adapter that fits the unchanged base."""
        converted = self.output / "pissa_converted"
        return converted if converted.is_dir() else self.output

    def stacks(self) -> list[Path]:
        """Where the processes dumped what they were doing, one file a rank."""
        return sorted(self.folder.glob("stacks-*.log"))

    def checkpoints(self) -> list[Path]:
        """The checkpoint folders, oldest first."""
        found = [path for path in self.output.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
        return sorted(found, key=step_of)


class Request(Struct, frozen=True):
    """A detached start: what was asked for, what it is doing, what it printed; it may make several runs."""

    folder: Path

    asked = Named("request.json")
    progress = Named("progress.jsonl")
    readings = Named("readings.json")
    log = Named("supervisor.log")

    def tell(self, **line: Any) -> None:
        with even_on_a_full_disk(), suppress(FileNotFoundError):  # removed, with the runs beside it
            append(self.progress, line)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def fill(value: Any, run: Run, workspace: Workspace) -> Any:
    """Put this run's real, absolute paths where the plan has `{run}`, `{models}`, `{data}`, `{kit}`."""
    places = {
        "{run}": str(run.folder.resolve()),
        "{models}": str(workspace.models.resolve()),
        "{data}": str(workspace.data.resolve()),
        "{kit}": str(KIT),
        "{ppo}": str(workspace.ppo),
    }
    if isinstance(value, str):
        for name, path in places.items():
            value = value.replace(name, path)
        return value
    if isinstance(value, Mapping):
        return {key: fill(inner, run, workspace) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(fill(inner, run, workspace) for inner in value)
    if isinstance(value, Decision):
        return Decision(**fill(vars(value), run, workspace))
    if isinstance(value, Struct):
        return replace(value, **fill(asdict(value), run, workspace))
    return value

"""Name each file of a run folder, of a detached start and of the workspace; nothing else joins these paths."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import append

NAME = re.compile(r"(\d{4,})-(.+)")
SMOKE = "-smoke"


@dataclass(frozen=True)
class Workspace:
    """The folders a verb works in: recipes and data below the root, models and runs wherever they were put.

    `ppo` is the virtual environment of stage ppo, beside the one that the kit runs in. A run that goes on stands on
    what there was when it began: runs whose number is not below `before` are no bases.
    """

    root: Path
    models: Path
    runs: Path
    ppo: Path = Path(sys.prefix).parent / ".venv-ppo"
    before: int | None = None

    @property
    def recipes(self) -> Path:
        return self.root / "recipes"

    @property
    def data(self) -> Path:
        return self.root / "data"


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
    def resumed_arguments(self) -> Path:
        """The arguments of an attempt that does not start afresh."""
        return self.folder / "arguments-resumed.yaml"

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
    def result(self) -> Path:
        """What the training made; with pissa_convert the adapter that fits the unchanged base."""
        converted = self.output / "pissa_converted"
        return converted if converted.is_dir() else self.output

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

    @property
    def stop_requested(self) -> Path:
        """Its being there asks the training for a checkpoint and an end; the hook in the training reads it."""
        return self.folder / "stop-requested"

    @property
    def stop_at_step(self) -> Path:
        """The step at whose end every process stops; written by the hook."""
        return self.folder / "stop-at-step"

    @property
    def rejected(self) -> Path:
        """Checkpoints that were found not good, out of the way of LLaMA-Factory, which takes the highest number."""
        return self.folder / "rejected"

    def stacks(self) -> list[Path]:
        """Where the processes dumped what they were doing, one file a rank."""
        return sorted(self.folder.glob("stacks-*.log"))

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


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])

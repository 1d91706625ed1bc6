"""What is wrong with the data sets of a recipe: registration, rows, and what cutoff_len would cut."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import dataset
from ..arguments import Settings
from ..dataset import Progress, Readings, Source
from ..errors import Problem
from ..models import ModelFacts
from ..recipe import Recipe

TRAINED_ON = "dataset"


@dataclass(frozen=True)
class Asked:
    """A recipe's data, the settings they are read with, the model whose tokenizer counts, the data folder.

    `limit` is how many rows are read at most (None: all), `progress` is told how far the reading is; `readings` are
    those that need not be made again.
    """

    recipe: Recipe
    settings: Settings
    model: ModelFacts
    folder: Path
    limit: int | None = dataset.LIMIT
    progress: Progress | None = None
    readings: Readings = field(default_factory=Readings)
    answers_only: bool = False  # an evaluation after training asks for answers: pairs and labels are not for it

    @property
    def data_dir(self) -> Path:
        return Path(str(self.recipe.value("dataset_dir") or self.folder))

    @property
    def stage(self) -> str:
        stage = str(self.settings["stage"])
        return "sft" if self.answers_only and stage != "pt" else stage


def data_problems(asked: Asked, rows: bool) -> tuple[list[Problem], int | None]:
    """Every problem, and how many usable rows there are to train on; None where that was not counted."""
    problems: list[Problem] = []
    counts: list[int | None] = []
    values = [(key, asked.settings[key]) for key in (TRAINED_ON, "eval_dataset")]
    for key, names in [*values, ("kit.evaluate_after", asked.recipe.kit.evaluate_after)]:
        if names:
            read = replace(asked, answers_only=key == "kit.evaluate_after")
            found, wrong = dataset.check_registered(names, read.data_dir, read.stage, asked.recipe.place(key))
            problems += wrong
            for source in found if rows else ():
                count, of_rows = _rows(read, source)
                problems += of_rows
                counts += [count] if key == TRAINED_ON else []
    return problems, sum(count or 0 for count in counts) if counts and None not in counts else None


def _rows(asked: Asked, source: Source) -> tuple[int | None, list[Problem]]:
    """The usable rows where all were read; what is wrong with them, and what would be cut as far as is known here."""
    options = dataset.options_of(asked.settings, asked.stage, asked.limit)
    tokenizer_json = (asked.model.folder or Path("no model")) / "tokenizer.json"
    reading = asked.readings.read(source, tokenizer_json, options, asked.progress)
    return reading.kept, list(reading.problems)

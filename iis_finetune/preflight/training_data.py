"""What is wrong with the data sets of a recipe: registration, rows, and what cutoff_len would cut."""

from dataclasses import dataclass, field
from pathlib import Path

from .. import dataset
from ..arguments import Settings
from ..dataset import Progress, Readings, Source
from ..errors import Problem
from ..models import ModelFacts
from ..recipe import Recipe

TRAINED_ON = "dataset"
EVALUATED_AFTER = "kit.evaluate_after"


@dataclass(frozen=True)
class Asked:
    """A recipe's data and how they are read; `limit`, `progress` and `readings` are those of the Question."""

    recipe: Recipe
    settings: Settings
    model: ModelFacts
    folder: Path
    limit: int | None = dataset.LIMIT
    progress: Progress | None = None
    readings: Readings = field(default_factory=Readings)

    @property
    def data_dir(self) -> str:
        return str(self.settings["dataset_dir"]).replace("{data}", str(self.folder))

    def stage(self, key: str) -> str:
        """What rows are read for; an evaluation after training asks for answers, so pairs and labels are not for it."""
        stage = str(self.settings["stage"])
        return "sft" if key == EVALUATED_AFTER and stage != "pt" else stage


def data_problems(asked: Asked, rows: bool) -> tuple[list[Problem], int | None]:
    """Every problem, and how many usable rows there are to train on; None where that was not counted."""
    problems: list[Problem] = []
    counts: list[int | None] = []
    named = {key: asked.settings.names(key) for key in (TRAINED_ON, "eval_dataset")}
    for key, names in {**named, EVALUATED_AFTER: asked.recipe.kit.evaluate_after}.items():
        if names:
            stage = asked.stage(key)
            found, wrong = dataset.check_registered(names, asked.data_dir, stage, asked.recipe.place(key))
            problems += wrong
            for source in found if rows else ():
                count, of_rows = _rows(asked, source, stage)
                problems += of_rows
                counts += [count] if key == TRAINED_ON else []
    return problems, sum(count or 0 for count in counts) if counts and None not in counts else None


def _rows(asked: Asked, source: Source, stage: str) -> tuple[int | None, list[Problem]]:
    """The usable rows where all were read; what is wrong with them, and what would be cut as far as is known here."""
    options = dataset.options_of(asked.settings, stage, asked.limit)
    tokenizer_json = asked.model.folder / "tokenizer.json" if asked.model.folder else None
    found = asked.readings.check_rows(source, options, tokenizer_json, asked.progress)
    return found.kept if found.complete else None, [*found.problems, *found.truncation.problems]

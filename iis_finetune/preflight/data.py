"""What is wrong with the data sets of a recipe: registration, rows, and what cutoff_len would cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import dataset
from ..arguments import Template, find_template
from ..dataset import Source
from ..errors import Problem
from ..models import ModelFacts
from ..recipe import Recipe

TRAINED_ON = "dataset"
DEFAULT_CUTOFF = 2048  # LLaMA-Factory 0.9.5, hparams/data_args.py


@dataclass(frozen=True)
class Asked:
    """A recipe's data, the arguments they are read with, the model whose tokenizer counts, the data folder."""

    recipe: Recipe
    arguments: Mapping[str, Any]
    model: ModelFacts
    folder: Path

    @property
    def data_dir(self) -> Path:
        return Path(str(self.recipe.value("dataset_dir") or self.folder))

    @property
    def template(self) -> Template | None:
        return find_template(str(self.arguments.get("template") or ""))

    @property
    def stage(self) -> str:
        return str(self.recipe.value("stage", "sft"))


def data_problems(asked: Asked, rows: bool) -> tuple[list[Problem], int | None]:
    """Every problem, and how many usable rows there are to train on; None where that was not counted."""
    problems: list[Problem] = []
    counts: list[int | None] = []
    values = [(key, asked.arguments.get(key)) for key in (TRAINED_ON, "eval_dataset")]
    for key, names in [*values, ("kit.evaluate_after", asked.recipe.kit.evaluate_after)]:
        if names:
            found, wrong = dataset.check_registered(names, asked.data_dir, asked.stage, asked.recipe.place(key))
            problems += wrong
            for source in found if rows else ():
                count, of_rows = _rows(asked, source, key)
                problems += of_rows
                counts += [count] if key == TRAINED_ON else []
    return problems, sum(count or 0 for count in counts) if counts and None not in counts else None


def _rows(asked: Asked, source: Source, key: str) -> tuple[int | None, list[Problem]]:
    template = asked.template
    options = dataset.RowOptions(
        asked.stage,
        max_samples=asked.arguments.get("max_samples"),
        special_words=tuple(template.tokens) if template else (),
        multimodal=bool(template and template.multimodal),
    )
    report = dataset.check_rows(source, options)
    place = asked.recipe.place(key)
    problems = [replace(each, where=each.where or place) for each in report.problems]
    return (report.kept if report.complete else None), [*problems, *_truncation(asked, source, options)]


def _truncation(asked: Asked, source: Source, rows: dataset.RowOptions) -> list[Problem]:
    """What would be cut, counted with the recipe's own template and tokenizer where they are on disk."""
    template = asked.template
    tokenizer = asked.model.folder / "tokenizer.json" if asked.model.folder else None
    cutoff = asked.arguments.get("cutoff_len") or DEFAULT_CUTOFF
    if template is None or tokenizer is None or not tokenizer.is_file() or not isinstance(cutoff, int):
        return []
    options = dataset.TruncationOptions(
        rows,
        template,
        cutoff,
        asked.arguments.get("default_system"),
        bool(asked.arguments.get("enable_thinking", True)),
        bool(asked.arguments.get("mask_history")),
        bool(asked.arguments.get("packing", asked.stage == "pt") or asked.arguments.get("neat_packing")),
    )
    return list(dataset.check_truncation(source, tokenizer, options).problems)

"""What the rows of a data set are for: LLaMA-Factory's arguments that decide what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..arguments import Template, find_template

LIMIT = 200_000  # rows that are read when not all are asked for
CUTOFF = 2048  # LLaMA-Factory, hparams/data_args.py


@dataclass(frozen=True)
class Options:
    """LLaMA-Factory's arguments by their names; `limit` is how many rows are read at most (None: all).

    `generate` is its predict_with_generate, `default_system` None the template's own.
    """

    stage: str
    limit: int | None = LIMIT
    max_samples: int | None = None
    generate: bool = False
    template: Template | None = None
    cutoff_len: int = CUTOFF
    default_system: str | None = None
    enable_thinking: bool = True
    mask_history: bool = False
    packing: bool = False

    @property
    def processing(self) -> str:
        """Which of LLaMA-Factory's data processors the rows go through."""
        return "generate" if self.generate or self.stage == "ppo" else "rm" if self.stage == "dpo" else self.stage


def options_of(arguments: Mapping[str, Any], stage: str, limit: int | None = LIMIT) -> Options:
    """The options of a training with these arguments."""
    cutoff_len, enable_thinking = arguments.get("cutoff_len"), arguments.get("enable_thinking")
    return Options(
        stage,
        limit,
        max_samples=arguments.get("max_samples"),
        template=find_template(str(arguments.get("template") or "")),
        cutoff_len=cutoff_len if cutoff_len and isinstance(cutoff_len, int) else CUTOFF,
        default_system=arguments.get("default_system"),
        enable_thinking=enable_thinking is None or bool(enable_thinking),
        mask_history=bool(arguments.get("mask_history")),
        packing=bool(arguments.get("packing", stage == "pt") or arguments.get("neat_packing")),
    )

"""Methods that other tools have and LLaMA-Factory has not, and the LoRA that trains about as many parameters."""

import math
from collections.abc import Iterator

from ..arguments import Settings
from ..errors import Problem
from ..tables import read
from .case import Case
from .sizes import trained_parameters

TARGETS = ("all", "q_proj,v_proj", "v_proj")  # from many parameters to few
ALIKE = 1.4  # times as many, or as few, are about as many
MILLION = 1e6


def method_of_another_tool(case: Case) -> Iterator[Problem]:
    """The Problem of a finetuning_type that only another tool knows, with what is counted for the recipe's model."""
    given = str(case.recipe.value("finetuning_type"))
    row = read("rules.json")["methods"].get(given.strip().lower().replace("-", "_"))
    if row is None:
        return
    what = f"'finetuning_type' cannot be '{given}': LLaMA-Factory has no {row['called']}"
    fix = "write 'finetuning_type: lora'; a small 'lora_rank' trains few parameters"
    if shapes := case.model.shapes:
        theirs = sum(math.prod(getattr(shapes, f) if isinstance(f, str) else f for f in each) for each in row["size"])
        if found := _lora_of_about(theirs, case):
            rank, target, ours = found
            what += f"; a LoRA of rank {rank} on {target} trains {ours / MILLION:.2g} million parameters of "
            what += f"{case.model.name}, {row['called']} with {row['with']} {theirs / MILLION:.2g} million"
            fix = f"write 'finetuning_type: lora' and 'lora_rank: {rank}' and 'lora_target: {target}'"
    yield Problem(what, fix, case.recipe.place("finetuning_type"))


def _lora_of_about(size: float, case: Case) -> tuple[int, str, float] | None:
    """Rank, layers and size of the LoRA on most layers that has about this size; None where nothing can be counted."""
    found = None
    for target in TARGETS:
        lora = Settings(case.settings.table, {"finetuning_type": "lora", "lora_rank": 1, "lora_target": target})
        if each := trained_parameters(case.model, lora):
            rank = max(1, round(size / each))
            found = rank, target, rank * each
            if 1 / ALIKE < size / found[2] < ALIKE:
                break
    return found

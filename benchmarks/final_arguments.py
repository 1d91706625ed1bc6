"""What LLaMA-Factory's own reader makes of every argument, given against final: python benchmarks/final_arguments.py.

Each argument of the table is given values beside a small recipe, alone and together with each argument that it changes.
A line is printed for each that ends up as something else than it was given, and for each that no code reads.
"""

from __future__ import annotations

import contextlib
import enum
import importlib.util
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from iis_finetune.arguments.llamafactory import Argument, frozen_table  # noqa: E402
from iis_finetune.probe.arguments import prepare  # noqa: E402

TABLE = frozen_table()
COMMON = {"model_name_or_path": "m", "template": "qwen", "stage": "sft", "report_to": "none", "output_dir": "o"}
TRAINING = {**COMMON, "do_train": True, "dataset": "d", "finetuning_type": "lora"}
RECIPES: dict[str, dict[str, Any]] = {
    "training": TRAINING,
    "evaluated": {**TRAINING, "eval_strategy": "steps", "val_size": 0.1},
    "prediction": {**COMMON, "do_predict": True, "predict_with_generate": True, "eval_dataset": "d"},
    "preferences": {**TRAINING, "stage": "dpo", "finetuning_type": "full"},
}
SAMPLES: dict[str, list[Any]] = {
    "bool": [True, False], "int": [3], "float": [0.37], "str": ["xyz"], "list": [["abc"]], "dict": [{"a": 1}],
}  # fmt: skip
# Given in another form, one token less for the filling up of packed rows (hparams/data_args.py:189), or no step at all
# where a share is given: more than none is said by a rule of its own.
HARMLESS = {
    ("cutoff_len", "packing"),
    ("cutoff_len", "neat_packing"),
    ("dataloader_pin_memory", "use_cpu"),
    ("warmup_steps", "warmup_ratio"),
}


def values_of(argument: Argument) -> list[Any]:
    words = list(argument.choices or ())
    words = words[:3] if len(words) > 30 else words  # templates are many, and alike here
    return [True, False, *words] if words and "bool" in argument.kinds else words or _samples(argument)


def _samples(argument: Argument) -> list[Any]:
    return [value for kind in argument.kinds for value in SAMPLES[kind]]


def final(lines: dict[str, Any]) -> dict[str, Any] | None:
    """Every field of LLaMA-Factory's five classes as it ends up; None where they refuse the lines."""
    from llamafactory.hparams import get_train_args

    silent = io.StringIO()
    try:
        with contextlib.redirect_stderr(silent), contextlib.redirect_stdout(silent):
            groups = get_train_args(dict(lines))
    except Exception:  # noqa: BLE001 - a refusal of any kind is not what is asked here
        return None
    return {key: plain(value) for group in groups for key, value in vars(group).items() if key in TABLE}


def plain(value: Any) -> Any:
    """One form for what is given as a text and kept as a list, a word of a register or a mapping."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value


def kept(given: Any, got: Any) -> bool:
    if isinstance(got, dict) and isinstance(given, dict):
        return given.items() <= got.items()
    forms = [given, [given], {"none": [], True: "all", False: "no"}.get(given) if isinstance(given, str | bool) else []]
    return got in forms or (got == [] and given in ("none", "all", False)) or got == ["full_shard"]


def overridden(name: str) -> Iterator[tuple[str, Any, Any, dict[str, Any]]]:
    """Every argument that ends up otherwise than given: its name, given, got, and the recipe."""
    base = RECIPES[name]
    before = final(base) or {}
    for key in TABLE.keys() - base.keys():
        for value in values_of(TABLE[key]):
            lines = {**base, key: value}
            after = final(lines)
            if after is None:
                continue
            if not kept(value, after[key]):
                yield key, value, after[key], lines
            for other in after.keys() - lines.keys():
                both = {**lines, other: before[other]}
                if after[other] != before[other] and before[other] is not None and (other, key) not in HARMLESS:
                    end = final(both)
                    if end is not None and end[other] != before[other]:
                        yield other, before[other], end[other], both


def unread() -> list[str]:
    """The arguments whose name no code of LLaMA-Factory or transformers reads as an attribute."""
    folders = [Path(str(importlib.util.find_spec(name).origin)).parent for name in ("llamafactory", "transformers")]  # type: ignore[union-attr]
    skipped = ("/v1/", "/webui/", "/models/")
    files = [file for folder in folders for file in folder.rglob("*.py") if not any(s in str(file) for s in skipped)]
    read = set(re.findall(r"(?:\.|getattr\(\w+, \")(\w+)\b(?!\s*=[^=])", "\n".join(file.read_text() for file in files)))
    return sorted(TABLE.keys() - read)


def main() -> None:
    os.environ |= {"LLAMAFACTORY_VERBOSITY": "ERROR", "HF_HUB_OFFLINE": "1"}
    prepare([])
    rows = [
        {"key": key, "given": given, "got": got, "recipe": lines}
        for name in RECIPES
        for key, given, got, lines in overridden(name)
    ]
    said = [{"key": key, "given": True, "got": None, "recipe": {**TRAINING, key: True}} for key in unread()]
    for row in [*rows, *said]:
        sys.stdout.write(json.dumps(row, default=str) + "\n")


if __name__ == "__main__":
    main()

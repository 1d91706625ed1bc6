"""lm_eval's own measurement of models on its tasks: a file for each task and side, written when it is done.

Usage: python -m iis_finetune.probe.benchmark spec.json

`state.json` beside the spec says what is being done, and at the end what there is:
    unknown, near               a task that lm_eval does not have, and those whose names are like it; exit code 2
    reading                     the task whose rows are being had
    side, task, number, of      what is being measured; `log`: the length of the log at its beginning
    tasks, groups               all names; of each group its tasks and each side's figures
"""

import difflib
import gc
import hashlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from ..runs.documents import read_json, write_json

EXAMPLES = 1000  # of the rows that few-shot examples are drawn from: these tell other rows from the same ones
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # ROCm's are called cuda too
Spec = dict[str, Any]


def load(spec: Spec, tell: Callable[[Spec], None]) -> tuple[Spec, Spec]:
    """The tasks and groups that are named, each with its rows."""
    manager = TaskManager(include_path=spec["include_path"])
    tasks: Spec = {}
    groups: Spec = {}
    for name in spec["tasks"]:
        if name not in manager.all_tasks and not Path(name).is_file():
            tell({"unknown": name, "near": difflib.get_close_matches(name, manager.all_tasks, 3)})
            raise SystemExit(2)
    for name in spec["tasks"]:
        tell({"reading": name})
        found = manager.load([name])
        tasks |= found["tasks"]
        groups |= found["groups"]
    return tasks, groups


def digest(task: Any, spec: Spec) -> str:
    """Equal for tasks that ask the same: their settings, their rows, the first of the rows for examples."""
    drawn = spec["num_fewshot"] or task.config.num_fewshot
    rows = [*islice(task.eval_docs, spec["limit"]), *(islice(task.fewshot_docs(), EXAMPLES) if drawn else ())]
    text = json.dumps([task.dump_config(), rows], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def measured(model: HFLM, task: Any, spec: Spec) -> Spec:
    """lm_eval's own figures, and each metric's value of every row; None for one that is not a number."""
    asked = {name: spec[name] for name in ("limit", "num_fewshot", "apply_chat_template")}
    found = simple_evaluate(model, tasks=[task], bootstrap_iters=0, **asked, **spec["seeds"])
    samples = found["samples"][task.task_name]
    places = {row: at for at, row in enumerate(sorted({sample["doc_id"] for sample in samples}))}
    rows: dict[str, list[float | None]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            column = rows.setdefault(f"{metric},{sample['filter']}", [None] * len(places))
            value = sample[metric]
            if isinstance(value, int | float | numpy.number | numpy.bool_) and numpy.isfinite(value):
                column[places[sample["doc_id"]]] = float(value)
    figures = {name: figure for name, figure in found["results"][task.task_name].items() if "_stderr" not in name}
    return {"figures": figures, "higher_is_better": found["higher_is_better"][task.task_name], "rows": rows}


def measure(spec: Spec, folder: Path) -> None:
    """Measure what is not kept from before with the same settings."""
    tell = partial(write_json, folder / "state.json")
    tasks, groups = load(spec, tell)
    digests = {name: digest(task, spec) for name, task in tasks.items()}
    figures: dict[str, Spec] = {}
    steps = [(side, name) for side in spec["sides"] for name in tasks]
    model, loaded = None, ""
    for number, (side, name) in enumerate(steps, 1):
        file, own = folder / side / f"{quote(name, safe='')}.json", spec["sides"][side]
        asked = {**own["measured_with"], "device": DEVICE, "task": digests[name]}
        kept = read_json(file) or {}
        if kept.get("measured_with") != asked:
            tell({"side": side, "task": name, "number": number, "of": len(steps), "log": os.fstat(2).st_size})
            if loaded != side:
                model = None  # one model in memory at a time
                gc.collect()
                torch.cuda.empty_cache()
                model, loaded = HFLM(**own["model"], device=DEVICE), side
            file.parent.mkdir(exist_ok=True)
            kept = {"measured_with": asked, **measured(model, tasks[name], spec)}
            write_json(file, kept)
        figures.setdefault(side, {})[name] = kept["figures"]
    members = {name: [task.task_name for task in group.get_all_tasks()] for name, group in groups.items()}
    told = {name: {side: group.aggregate(figures[side]) for side in figures} for name, group in groups.items()}
    tell({"tasks": list(tasks), "groups": {name: {"tasks": members[name], **told[name]} for name in groups}})


if __name__ == "__main__":
    path = Path(sys.argv[1])
    measure(json.loads(path.read_text(encoding="utf-8")), path.parent)

"""lm_eval's own measurement of models on its tasks: `SIDE/TASK.json` for each, written when it is done.

Usage: python -m iis_finetune.probe.benchmark spec.json

`state.json` beside the spec: `doing` in words, `reading` the task whose rows are being had; at last `found`, the names
of tasks and groups. For a task that lm_eval does not have: `unknown`, and `near`, those whose names are like it.
"""

import difflib
import gc
import hashlib
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from ..runs.documents import read_json, write_json

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # ROCm's are called cuda too
Found = dict[str, Any]


def loaded(spec: Found, folder: Path) -> tuple[Found, Found]:
    """The named tasks and groups with their rows."""
    manager = TaskManager(include_path=spec["include_path"])
    tasks: Found = {}
    groups: Found = {}
    for name in spec["tasks"]:
        if name not in manager.all_tasks and not Path(name).is_file():
            near = difflib.get_close_matches(name, manager.all_tasks, 3, 0.7)
            write_json(folder / "state.json", {"unknown": name, "near": near})
            raise SystemExit(2)
    for name in spec["tasks"]:
        write_json(folder / "state.json", {"doing": f"{name}: its rows", "reading": name})
        found = manager.load([name])
        tasks |= found["tasks"]
        groups |= found["groups"]
    return tasks, groups


def digest(task: Any, limit: int | None) -> str:
    """Equal for tasks that ask the same of the same rows."""
    asked = [task.dump_config(), list(islice(task.eval_docs, limit))]
    return hashlib.sha256(json.dumps(asked, default=str, sort_keys=True).encode()).hexdigest()


def measured(model: HFLM, task: Any, asked: Found) -> Found:
    """lm_eval's own figures of a task, and each metric's value of every row; None for one that is not a number."""
    found = simple_evaluate(model, tasks=[task], bootstrap_iters=0, **asked)
    rows: dict[str, list[float | None]] = {}
    for sample in sorted(found["samples"][task.task_name], key=lambda sample: sample["doc_id"]):
        for metric in sample["metrics"]:
            value = sample[metric] if isinstance(sample[metric], int | float) else None
            rows.setdefault(f"{metric},{sample['filter']}", []).append(value)
    directions = found["higher_is_better"][task.task_name]
    return {"figures": found["results"][task.task_name], "higher_is_better": directions, "rows": rows}


def pooled(group: Any, kept: Found) -> Found:
    """A group's own figures, over the rows of all of its tasks."""
    members = [kept[task.task_name] for task in group.get_all_tasks()]
    figures = group.aggregate({name: each["figures"] for name, each in kept.items()})
    rows = {key: [value for each in members for value in each["rows"].get(key, ())] for key in figures}
    return {**members[0], "figures": figures, "rows": rows}


def measure(spec: Found, folder: Path) -> None:
    """Measure on each side what is not kept from before with the same settings."""
    tasks, groups = loaded(spec, folder)
    digests = {name: digest(task, spec["asked"]["limit"]) for name, task in tasks.items()}
    for side, own in spec["sides"].items():
        model, kept = None, {}
        gc.collect()  # one model in memory at a time
        torch.cuda.empty_cache()
        (folder / side).mkdir(exist_ok=True)
        for number, (name, task) in enumerate(tasks.items(), 1):
            file = folder / side / f"{quote(name, safe='')}.json"
            how = {**own["measured_with"], **spec["asked"], "device": DEVICE, "task": digests[name]}
            kept[name] = read_json(file) or {}
            if kept[name].get("measured_with") != how:
                write_json(folder / "state.json", {"doing": f"{name}: {side}, {number} of {len(tasks)}"})
                sys.stderr.write("0%|| 0/1 [\n")  # its own bar comes when its prompts are made
                model = model or HFLM(**own["model"], device=DEVICE)
                kept[name] = {"measured_with": how, **measured(model, task, spec["asked"])}
                write_json(file, kept[name])
        for name, group in groups.items():
            write_json(folder / side / f"{quote(name, safe='')}.json", pooled(group, kept))
    write_json(folder / "state.json", {"found": [*tasks, *groups]})


if __name__ == "__main__":
    path = Path(sys.argv[1])
    measure(json.loads(path.read_text(encoding="utf-8")), path.parent)

"""Inside the training of a trial (`tune`): what each step cost and gave, a JSON line a step in `trial.jsonl`.

`IIS_TRIAL` in the environment switches it on. A trial keeps nothing else: it leaves when its last step is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any


class Measuring:
    """What a callback of transformers' does to measure a training."""

    def __init__(self, run: Path, trainer: Any) -> None:
        self.file, self.line, self.masks = run / "trial.jsonl", dict[str, Any](), list[Any]()
        step = trainer.training_step

        def counting(model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            self.masks += [(inputs["attention_mask"] != 0).sum()] if "attention_mask" in inputs else []
            return step(model, inputs, *rest, **more)

        trainer.training_step = counting

    def on_train_begin(self, _args: Any, _state: Any, _control: Any, **_more: Any) -> None:
        with contextlib.suppress(OSError):  # a file's pages count while weights are read from it, and cost nothing
            Path("/proc/self/clear_refs").write_text("5")

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_more: Any) -> None:
        tokens = sum(map(int, self.masks))  # read at the step's end: reading waits for the device
        tokens *= int(os.environ.get("WORLD_SIZE", "1"))  # the others have as many rows, of nearly the same lengths
        self.line, self.masks = {"step": state.global_step, "tokens": tokens, "held_gib": held(), "at": time.time()}, []

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_more: Any) -> None:
        if self.line and logs and "loss" in logs:
            self.write({**self.line, "loss": float(logs["loss"])})
            self.line = {}

    def on_evaluate(self, _args: Any, _state: Any, _control: Any, metrics: Any = None, **_more: Any) -> None:
        self.write({"held_out": float(metrics["eval_loss"])})

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **_more: Any) -> None:
        sys.stdout.flush()
        os._exit(0)  # saving the weights of a trial would cost more than the trial

    def write(self, line: dict[str, Any]) -> None:
        if os.environ.get("RANK", "0") == "0":
            with self.file.open("a") as stream:
                stream.write(json.dumps(line) + "\n")


def callback(base: Any) -> Any:
    """A callback that measures; `base` is transformers' class of that name."""
    return type("MeasureSteps", (Measuring, base), {})


def held() -> float:
    """The most that the steps held, GiB: of a device by torch, with the context beside it; else by this process."""
    import torch

    if not torch.cuda.is_available():
        status = Path("/proc/self/status")
        found = re.search(r"VmHWM:\s*(\d+)", status.read_text()) if status.exists() else None
        return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**20
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return float(total - free - torch.cuda.memory_reserved() + torch.cuda.max_memory_reserved()) / 2**30

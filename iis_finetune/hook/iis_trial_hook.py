"""Inside the training of a trial (`tune`): what each step cost and gave, a JSON line a step in `trial.jsonl`.

`IIS_TRIAL` in the environment switches it on. A trial keeps nothing else: it leaves when its last step is done.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


class Measuring:
    """What a callback of transformers' does to measure a training."""

    def __init__(self, run: Path, trainer: Any) -> None:
        self.file, self.line, self.rows = run / "trial.jsonl", dict[str, Any](), list[Any]()
        step = trainer.training_step

        def counting(model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            self.rows.append(inputs["attention_mask"].sum())  # read at the step's end: reading waits for the device
            return step(model, inputs, *rest, **more)

        trainer.training_step = counting

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_more: Any) -> None:
        # Other processes have as many rows, of nearly the same lengths. Reading waits until the device has done all.
        tokens = int(os.environ.get("WORLD_SIZE", "1")) * sum(int(each) for each in self.rows)
        self.line, self.rows = {"step": state.global_step, "tokens": tokens, **memory(), "at": time.time()}, []

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_more: Any) -> None:
        if self.line and logs and "loss" in logs:
            self.write({**self.line, **{name: float(logs[name]) for name in ("loss", "grad_norm") if name in logs}})
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


def memory() -> dict[str, float]:
    """The most that was held so far, GiB: of a device, by torch and with the context beside it; else of memory."""
    import torch

    if not torch.cuda.is_available():
        return {"held_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    held = total - free - torch.cuda.memory_reserved() + reserved
    return {"allocated_gib": allocated / 2**30, "reserved_gib": reserved / 2**30, "held_gib": held / 2**30}

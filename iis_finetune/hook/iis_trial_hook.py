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
        self.file = run / "trial.jsonl"
        self.rows: list[Any] = []  # the marks of padding of each micro-batch of the step, summed
        self.line: dict[str, Any] = {}
        self.updating_since = 0.0
        step = trainer.training_step

        def counting(model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            if "attention_mask" in inputs:
                self.rows.append(inputs["attention_mask"].sum())  # read at the step's end: reading waits
            return step(model, inputs, *rest, **more)

        trainer.training_step = counting

    def on_pre_optimizer_step(self, _args: Any, _state: Any, _control: Any, **_more: Any) -> None:
        self.updating_since = now()

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_more: Any) -> None:
        at = now()
        self.line = {"step": state.global_step, "at": at, "optimizer_seconds": at - self.updating_since}
        self.line["tokens"], self.rows = sum(int(each) for each in self.rows), []

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_more: Any) -> None:
        if self.line and logs and "loss" in logs:
            told = {name: float(logs[name]) for name in ("loss", "grad_norm") if name in logs}
            self.write({**self.line, **told, **memory()})
            self.line = {}

    def on_evaluate(self, _args: Any, state: Any, _control: Any, metrics: Any = None, **_more: Any) -> None:
        if metrics and "eval_loss" in metrics:
            self.write({"held_out": float(metrics["eval_loss"]), "after": state.global_step})

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


def now() -> float:
    """The time, as `time.time` has it, once the device has done all that it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.time()


def memory() -> dict[str, float]:
    """The most that this process ever held, GiB: of a device; without one, of the computer's memory."""
    import torch

    if not torch.cuda.is_available():
        return {"reserved_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    peaks = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
    return dict(zip(("allocated_gib", "reserved_gib"), (peak / 2**30 for peak in peaks), strict=True))

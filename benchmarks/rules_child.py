"""Started as a child: let LLaMA-Factory itself run each recipe, in a fork of its own, and write how far it came.

Usage: python rules_child.py CASES.json RESULTS.jsonl; a case is {"name", "command", "arguments"}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 90
STAGES = {"load_tokenizer": "tokenizer", "get_dataset": "data", "load_model": "model"}
reached: list[str] = []


def marked(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*words: Any, **options: Any) -> Any:
        reached.append(stage)
        return function(*words, **options)

    return call


def mark_stages() -> None:
    """Note each stage as it begins; what ends before the tokenizer is loaded ended in the parser."""
    from llamafactory.chat import hf_engine
    from llamafactory.train import tuner
    from llamafactory.train.dpo import workflow as dpo
    from llamafactory.train.kto import workflow as kto
    from llamafactory.train.ppo import workflow as ppo
    from llamafactory.train.pt import workflow as pt
    from llamafactory.train.rm import workflow as rm
    from llamafactory.train.sft import workflow as sft
    from transformers import Trainer

    for module in (dpo, kto, ppo, pt, rm, sft, tuner, hf_engine):
        for name, stage in STAGES.items():
            if hasattr(module, name):
                setattr(module, name, marked(stage, getattr(module, name)))
    methods = {
        "__init__": "trainer", "training_step": "first step", "_maybe_log_save_evaluate": "after a step",
        "evaluate": "evaluation", "predict": "prediction",
    }  # fmt: skip
    for name, stage in methods.items():
        setattr(Trainer, name, marked(stage, getattr(Trainer, name)))


def run(case: dict[str, Any]) -> None:
    if case["command"] == "train":
        from llamafactory.train.tuner import run_exp

        run_exp(case["arguments"])
    elif case["command"] == "export":
        from llamafactory.train.tuner import export_model

        export_model(case["arguments"])
    else:
        from llamafactory.chat import ChatModel

        ChatModel(case["arguments"])


def forked(case: dict[str, Any], log: Path) -> dict[str, Any]:
    """Run a case in a fork; what it prints goes to the log, how it ended comes back through a pipe."""
    reading, writing = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(SECONDS)
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            run(case)
            answer: dict[str, Any] = {"error": None, "message": None}
        except BaseException as error:  # noqa: BLE001 - however it ends is the answer
            answer = {"error": type(error).__name__, "message": " ".join(str(error).split())[:300]}
        stages = [stage for stage in reached if stage != "after a step"]
        answer["stage"] = stages[-1] if stages else "arguments"
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    answer = json.loads(text) if text else {"error": "killed", "message": None, "stage": "unknown"}
    return {"name": case["name"], **answer, "seconds": round(time.monotonic() - began, 2)}


def main(cases: Path, results: Path) -> None:
    asked = json.loads(cases.read_text(encoding="utf-8"))
    mark_stages()
    with results.open("w", encoding="utf-8") as file:
        for number, case in enumerate(asked):
            answer = forked(case, results.parent / f"log-{number}.txt")
            file.write(json.dumps(answer) + "\n")
            file.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""What `tune` finds, against the start and against every combination of the same levers; what fewer layers foretell.

    python benchmarks/tune.py [--workload quickstart|half] [--part search|length|grid|depth] [--minutes 20]

`quickstart` is the recipe of that name (its base model is made first), `half` a model of Qwen2.5-0.5B's shapes with
random weights, rows of 60 to 400 tokens, LoRA of rank 64, micro-batch 1 and checkpointing at the start, global batch 8.
Part `search` is the verb itself; `length` also trains the recipe as found, beside what `plan` said that takes; `grid`
every micro-batch with and without checkpointing, measured as a trial is; `depth` a step and the memory computed from
four and twelve layers beside those of the whole model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from iis_finetune import preflight
from iis_finetune.preflight import Question
from iis_finetune.runs import Run, Workspace, attempts, load
from iis_finetune.tune.search import whole
from iis_finetune.tune.trial import DEPTHS, Bench, Figures, Trial, bench, try_out

ROOT = Path(__file__).parent.parent
KIT = [sys.executable, "-m", "iis_finetune"]
HALF = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
RECIPE = """\
kit:
  global_batch_size: 8
model_name_or_path: models/half
template: qwen
stage: sft
do_train: true
dataset: rows
cutoff_len: 512
finetuning_type: lora
lora_rank: 64
lora_target: all
learning_rate: 1.0e-4
max_steps: 100
logging_steps: 1
"""
MICRO_BATCH, CHECKPOINTING = "per_device_train_batch_size", "disable_gradient_checkpointing"


def prepare(folder: Path, workload: str) -> str:
    """Fill a folder with what the workload needs; the recipe's name."""
    if workload == "quickstart":
        for name in ("recipes", "data"):
            (folder / name).symlink_to(ROOT / name)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([*KIT, "train", "quickstart", "max_steps=2"], cwd=folder, env=environment, check=True)
        return "quickstart"
    for name in ("recipes", "data", "models"):
        (folder / name).mkdir()
    (folder / "recipes" / "half.yaml").write_text(RECIPE)
    draw = random.Random(1)
    words = (ROOT / "data" / "intelligence_train.json").read_text(encoding="utf-8")[:100_000].split()
    rows = []
    for _ in range(400):
        count = draw.randint(15, 110)  # of words: 60 to 400 tokens of the tokenizer made from them
        start = draw.randrange(len(words) - count)
        asked, answer = words[start : start + count // 2], words[start + count // 2 : start + count]
        rows.append({"instruction": " ".join(asked), "input": "", "output": " ".join(answer)})
    (folder / "data" / "rows.json").write_text(json.dumps(rows))
    (folder / "data" / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
    tokenizer = {"train_on": [str(folder / "data" / "rows.json")], "vocab_size": 1600}
    spec = {"config": HALF, "tokenizer": tokenizer, "to": str(folder / "models" / "half")}
    (folder / "spec.json").write_text(json.dumps(spec))
    subprocess.run([sys.executable, "-m", "iis_finetune.probe.scratch", folder / "spec.json"], cwd=ROOT, check=True)
    return "half"


def search(folder: Path, recipe: str, minutes: float) -> None:
    began = time.monotonic()
    subprocess.run([*KIT, "tune", recipe, "--minutes", str(minutes)], cwd=folder, check=True)
    (row,), _ = load(folder / "measured")
    ratio = row.start_seconds_per_step / row.seconds_per_step
    print("\n| start s/step | best s/step | best/start | minutes | settings |\n|---|---|---|---|---|")
    pair = f"{row.start_seconds_per_step:.3g} | {row.seconds_per_step:.3g} | {ratio:.2f}"
    print(f"| {pair} | {(time.monotonic() - began) / 60:.1f} | {json.dumps(row.settings)} |")


def length(folder: Path, recipe: str, minutes: float) -> None:
    """The training alone, as `plan` tells it: what is evaluated after it has a length of its own."""
    search(folder, recipe, minutes)
    told = subprocess.run([*KIT, "plan", recipe, "--json"], cwd=folder, check=True, capture_output=True, text=True)
    decisions = {each["name"]: each["value"] for each in json.loads(told.stdout)["decisions"]}
    subprocess.run([*KIT, "train", recipe, "kit.evaluate_after=null", "kit.guard=null"], cwd=folder, check=True)
    last = max((folder / "runs").glob(f"[0-9]*-{recipe}"))
    (attempt,) = attempts(Run(last))
    real = (attempt.ended or 0.0) - attempt.started
    print("\n| predicted, s | real, s | predicted/real |\n|---|---|---|")
    print(f"| {decisions['expected_seconds']} | {real:.0f} | {decisions['expected_seconds'] / real:.2f} |")


def question(folder: Path, recipe: str) -> Question:
    os.chdir(folder)
    workspace = Workspace(folder, folder / "models", folder / "runs")
    return Question(recipe, ("kit.tuned=false",), workspace, dict(os.environ))


def measured(at: Bench, settings: Mapping[str, object], depths: tuple[int, ...]) -> Figures:
    trials = [try_out(at, Trial(settings, layers), 1800) for layers in depths]
    wrong = [f"{each.trouble}: {each.why}" for each in trials if each.trouble]
    return trials[0] if wrong or len(trials) == 1 else whole(trials, depths, at.layers)


def grid(at: Bench) -> None:
    print("\n| micro-batch | checkpointing | s/step | tokens/s | GiB |\n|---|---|---|---|---|", flush=True)
    sizes = [size for size in (1, 2, 4, 8, 16) if at.rows % size == 0]
    for size, off in itertools.product(sizes, (False, True)):
        cost = measured(at, {MICRO_BATCH: size, CHECKPOINTING: off}, at.depths[:1])
        rate = cost.tokens_per_step / cost.seconds_per_step
        figures = f"{cost.seconds_per_step:.3g} | {rate:.0f} | {cost.held_gib:.2f}"
        print(f"| {size} | {'off' if off else 'on'} | {cost.trouble or figures} |", flush=True)


def depth(at: Bench) -> None:
    """The pair that is compared is measured one after the other, so that other work on the machine meets both."""
    print("\n| settings | from 4 and 12 layers | the whole | time | memory |\n|---|---|---|---|---|", flush=True)
    for settings in ({}, {MICRO_BATCH: at.rows}):
        told, real = measured(at, settings, DEPTHS), measured(at, settings, (at.layers,))
        seconds = f"{told.seconds_per_step:.3g} s ± {told.noise:.0%} | {real.seconds_per_step:.3g} s"
        apart = f"{told.seconds_per_step / real.seconds_per_step - 1:+.1%} | {told.held_gib / real.held_gib - 1:+.1%}"
        print(f"| {json.dumps(settings)} | {seconds} | {apart} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", choices=("quickstart", "half"), default="quickstart")
    parser.add_argument("--part", choices=("search", "length", "grid", "depth"), default="search")
    parser.add_argument("--minutes", type=float, default=20.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = prepare(folder, asked.workload)
        if asked.part in ("search", "length"):
            (search if asked.part == "search" else length)(folder, recipe, asked.minutes)
            return
        wanted = question(folder, recipe)
        with bench(wanted, preflight.examine(wanted)) as at:
            (grid if asked.part == "grid" else depth)(at)


if __name__ == "__main__":
    main()

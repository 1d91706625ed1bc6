"""What the kit says of a graphics card, held against the card: one Markdown table a part.

    python benchmarks/gpu.py --part precision | memory | tune | wrapped   [--minutes 9] [--cpu]

Each part ends within its minutes, with the rows that it had time for, and needs no network: models have random weights.
Without a GPU, or with --cpu, the same parts run in small on the CPU.

    precision  what a training that was asked for FP32, BF16, FP16 or as-saved really had in memory
    memory     the estimate against the peak of torch's own allocator, over twelve shapes
    tune       start, what `tune` finds, and the best of a small grid that is tried out whole
    wrapped    the same training through the kit and bare, as in wrapped.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import memory
import wrapped

from iis_finetune import preflight
from iis_finetune.runs import Workspace
from iis_finetune.tune import search, trial

Row = tuple[object, ...]
PRECISIONS = ("fp32", "bf16", "fp16", "as-saved")


class Clock:
    """The time a part has; a row that would begin after it is left out, and that is said."""

    def __init__(self, minutes: float) -> None:
        self.until = time.monotonic() + minutes * 60

    @property
    def left_seconds(self) -> float:
        return self.until - time.monotonic()


def table(columns: tuple[str, ...], rows: Iterator[Row]) -> None:
    """Printed row by row, so that an end in the middle loses nothing."""
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(f'{cell:.3g}' if isinstance(cell, float) else str(cell) for cell in row)} |", flush=True)


def device(gpu: bool) -> str:
    code = "import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    torch, _, name = done.stdout.strip().partition(" ")
    return f"{name if gpu else f'CPU, {os.cpu_count()} threads'}, torch {torch}, Python {platform.python_version()}"


def precision(gpu: bool, clock: Clock) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wrapped.prepare(folder, 3, "bfloat16")
        columns = ("asked for", "frozen", "trained", "mixed precision", "attention", "loss of three steps")
        table(columns, (_loaded(folder, asked, gpu, clock) for asked in PRECISIONS))


def _loaded(folder: Path, asked: str, gpu: bool, clock: Clock) -> Row:
    """What the hook found in the training's memory."""
    if clock.left_seconds < 1:
        return (asked, "no time left")
    words = ["train", "pair", f"kit.precision={asked}", "save_strategy=no"]
    done = subprocess.run(
        [*wrapped.KIT, *words], cwd=folder, env=environment(gpu), capture_output=True, text=True, check=False
    )
    if done.returncode:
        return (asked, next((line for line in done.stderr.splitlines() if line.startswith("error")), "failed"))
    run = max((folder / "runs").glob("[0-9]*-pair"))
    found = json.loads((run / "loaded.json").read_text())
    parts = (", ".join(found["parameters"].get(part, {})) for part in ("frozen", "trainable"))
    lines = map(json.loads, (run / "output" / "trainer_log.jsonl").read_text().splitlines())
    losses = " ".join(f"{line['loss']:.3f}" for line in lines if "loss" in line)
    return (asked, *parts, found["mixed_precision"], found["attention"], losses)


def environment(gpu: bool) -> dict[str, str]:
    hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1"}
    return {**os.environ, **hidden, "PYTHONPATH": str(memory.ROOT)}


def memory_part(gpu: bool, clock: Clock) -> None:
    columns = ("shape and settings", "estimate GiB", "measured GiB", "error", "largest part")
    table(columns, (_held(case, gpu, clock) for case in twelve(gpu)))


def _held(case: dict[str, Any], gpu: bool, clock: Clock) -> Row:
    """One child a case, so that one that does not fit ends alone."""
    name = memory.name_of(case)
    if clock.left_seconds < 1:
        return (name, "no time left")
    try:
        (seen,) = memory.measured([case], gpu, clock.left_seconds)
    except subprocess.TimeoutExpired:
        return (name, "no time left")
    except SystemExit as ended:
        lines = str(ended).strip().splitlines()
        return (name, memory.predicted(case, gpu)[0], lines[-1][:80] if lines else "ended without a word")
    row = memory.row_of(case, seen, gpu)
    return (name, row["predicted_gib"], row["measured_gib"], f"{row['error']:+.1%}", row["largest"])


def twelve(gpu: bool) -> list[dict[str, Any]]:
    """Three shapes: LoRA, full and 4 bit, with and without checkpointing, micro-batch 1 and 8, short and long rows."""
    long, short, eight, kept = ({"cutoff_len": 4096}, {"cutoff_len": 512}, {"micro_batch_size": 8}, memory.ALL_KEPT)
    full, four_bit = {"method": "full"}, {"quantization_bit": 4, "saved": "bfloat16"}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("0.5B", short),
        ("0.5B", {**short, **eight, **kept}),
        ("0.5B", long),
        ("0.5B", {**short, **full}),
        ("1.5B", {**short, **eight}),
        ("1.5B", {**long, **kept}),
        ("1.5B", {**short, **full, **eight}),
        ("1.5B", {**long, **four_bit}),
        ("7B", short),
        ("7B", {**short, **kept}),
        ("7B", {**short, **eight, **four_bit}),
        ("7B", {**long, **eight}),
    ]
    if gpu:
        shapes = memory.real_shapes()
        usual = {**memory.DEFAULTS, **memory.BF16, "lora_rank": 64, "lora_dropout": 0.05}
        return [{**usual, "config": shapes[f"Qwen/Qwen2.5-{size}"], **more} for size, more in asked]
    sizes = {"0.5B": "128 352 2 4 2 1000", "1.5B": "192 512 3 6 2 1500", "7B": "256 704 4 8 2 2000"}
    small = {size: memory.config("qwen2", numbers) for size, numbers in sizes.items()}
    eighth = [(size, {**more, "cutoff_len": more["cutoff_len"] // 8}) for size, more in asked]
    return [{**memory.DEFAULTS, "config": small[size], **more} for size, more in eighth]


def wrapped_part(gpu: bool, clock: Clock) -> None:
    ratios: list[float] = []

    def pairs(folder: Path) -> Iterator[Row]:
        longest = 0.0
        while clock.left_seconds > longest * 1.2:
            began = time.monotonic()
            run, ours, before = wrapped.wrapped(folder, environment(gpu))
            other, theirs = wrapped.bare(run, environment(gpu))
            ratios.append(ours / theirs)
            same = "identical" if wrapped.digest(run) == wrapped.digest(other) else "different"
            longest = time.monotonic() - began
            yield (ours, theirs, ratios[-1], before, same)

    with tempfile.TemporaryDirectory() as name:
        wrapped.prepare(Path(name), 120 if gpu else 30)
        table(("wrapped s", "bare s", "ratio", "kit before s", "adapter"), pairs(Path(name)))
    if ratios:
        print(f"\nmedian ratio {statistics.median(ratios):.3f} of {len(ratios)} pairs")


RECIPE = """\
kit: {{global_batch_size: 16, tuned: false}}
model_name_or_path: {model}
template: qwen
stage: sft
do_train: true
dataset: intelligence_alpaca
cutoff_len: 512
finetuning_type: lora
lora_rank: 64
lora_target: all
max_steps: 100
"""
LEVERS = "micro-batch,checkpointing"
MICRO_BATCHES = (1, 2, 4, 8)
TUNING, TRIAL_SECONDS = 0.5, 120.0  # of the part's time; the grid has the rest


def tune_part(gpu: bool, clock: Clock) -> None:
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wrapped.prepare(folder, 100)  # a CPU's model, and the data
        model = "Qwen/Qwen2.5-7B-Instruct" if gpu else str(folder / "models" / "small")
        (folder / "recipes" / "shape.yaml").write_text(RECIPE.format(model=model))
        columns = ("what", "settings", "tokens/s", "s a step", "peak GiB")
        table(columns, itertools.chain(_tuned(folder, gpu, clock, best), _grid(folder, gpu, clock, best)))
    if {"found", "grid"} <= best.keys():
        print(f"\nwhat `tune` found against the best of the grid: {best['found'] / best['grid']:.2f}")


def _tuned(folder: Path, gpu: bool, clock: Clock, best: dict[str, float]) -> Iterator[Row]:
    minutes = str(TUNING * clock.left_seconds / 60)
    words = ["tune", "shape", "--minutes", minutes, "--levers", LEVERS, "--json"]
    done = subprocess.run(
        [*wrapped.KIT, *words], cwd=folder, env=environment(gpu), capture_output=True, text=True, check=False
    )
    if done.returncode:
        yield ("tune", (done.stderr.strip().splitlines() or ["failed"])[-1])
        return
    found = json.loads(done.stdout)["measured"]
    slower = found["seconds_per_step"] / found["start_seconds_per_step"]
    best["found"] = found["tokens_per_second"]
    yield ("start", found["start_settings"], best["found"] * slower, found["start_seconds_per_step"], "")
    yield ("found", found["settings"], best["found"], found["seconds_per_step"], found["peak_gib"])


def _grid(folder: Path, gpu: bool, clock: Clock, best: dict[str, float]) -> Iterator[Row]:
    """Every micro-batch with and without checkpointing, each tried as `tune` tries it."""
    places = Workspace(folder, folder / "models", folder / "runs")
    question = preflight.Question(str(folder / "recipes" / "shape.yaml"), (), places, environment(gpu))
    with trial.bench(question, preflight.examine(question)) as at:
        for micro, kept in itertools.product(MICRO_BATCHES, (False, True)):
            settings = {"per_device_train_batch_size": micro, "disable_gradient_checkpointing": kept}
            tried = []
            for layers in at.depths:
                if clock.left_seconds < 5:
                    yield ("grid", settings, "no time left")
                    return
                tried.append(trial.try_out(at, trial.Trial(settings, layers), min(TRIAL_SECONDS, clock.left_seconds)))
            if trouble := next((each for each in tried if each.trouble), None):
                yield ("grid", settings, trouble.trouble)
                continue
            whole = search.whole(tried, at.depths, at.layers)
            rate = whole.tokens_per_step / whole.seconds_per_step
            best["grid"] = max(rate, best.get("grid", 0.0))
            yield ("grid", settings, rate, whole.seconds_per_step, whole.held_gib)


PARTS: dict[str, Callable[[bool, Clock], None]] = {
    "precision": precision,
    "memory": memory_part,
    "tune": tune_part,
    "wrapped": wrapped_part,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", required=True, choices=PARTS)
    parser.add_argument("--minutes", type=float, default=9.0, help="after that no row begins")
    parser.add_argument("--cpu", action="store_true", help="in small on the CPU, also where there is a GPU")
    given = parser.parse_args()
    gpu = not given.cpu and memory.has_gpu()
    print(f"## {given.part}: {device(gpu)}\n", flush=True)
    PARTS[given.part](gpu, Clock(given.minutes))


if __name__ == "__main__":
    main()

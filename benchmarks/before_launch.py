"""The kit's own time before LLaMA-Factory starts, on a large data set: seconds from `train` to the first attempt.

    python benchmarks/before_launch.py [--rows 200000] [--rounds 3] [--other CHECKOUT]

With `--other` an earlier checkout of the kit takes turns with this one, in one run: the ratio is what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """\
model_name_or_path: models/tiny
template: qwen
stage: sft
do_train: true
dataset: many
cutoff_len: 1024
finetuning_type: lora
lora_rank: 8
learning_rate: 1.0e-3
per_device_train_batch_size: 1
max_steps: 2
save_steps: 2
"""
TINY = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def make_project(folder: Path, rows: int) -> None:
    """A recipe, a tiny model with its tokenizer, and a data set of that many rows of about 1 KB."""
    for name in ("recipes", "data", "models"):
        (folder / name).mkdir()
    (folder / "recipes" / "many.yaml").write_text(RECIPE, encoding="utf-8")
    words = "a question that is asked of many people in many words " * 9
    with (folder / "data" / "many.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(rows):
            row = {"instruction": f"{number} {words}", "input": "", "output": f"{words}{number * 7}"}
            stream.write(json.dumps(row) + "\n")
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    registry = {"many": {"file_name": "many.jsonl", "columns": columns}}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(registry), encoding="utf-8")
    text = folder / "text.txt"
    text.write_text("a few plain words 0123456789 {}[]\n" * 50, encoding="utf-8")
    tokenizer = {"train_on": [str(text)], "vocab_size": 400}
    spec = {"config": TINY, "tokenizer": tokenizer, "seed": 1, "to": str(folder / "models" / "tiny")}
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    words_of_it = [sys.executable, "-m", "iis_finetune.probe.scratch", str(folder / "spec.json")]
    subprocess.run(words_of_it, cwd=ROOT, check=True, capture_output=True)


def seconds_to_launch(kit: Path, folder: Path) -> float:
    """From the start of `train` until LLaMA-Factory's process is on record; it is then ended."""
    environment = {**os.environ, "PYTHONPATH": str(kit), "IIS_RUNS": tempfile.mkdtemp(dir=folder)}
    runs = Path(environment["IIS_RUNS"])
    began = time.time()
    command = [sys.executable, "-m", "iis_finetune", "train", "many"]
    child = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        while child.poll() is None:
            for file in runs.glob("0001-many/attempts.jsonl"):
                tried = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
                if tried and tried[0].get("process"):
                    return float(tried[0]["started"]) - began
            time.sleep(0.05)
        raise SystemExit(f"{kit}: `train` ended before it started anything")
    finally:
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGINT)
        child.wait(120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--other", type=Path, help="an earlier checkout of the kit")
    given = parser.parse_args()
    kits = {"this": ROOT, **({"other": given.other.resolve()} if given.other else {})}
    taken: dict[str, list[float]] = {name: [] for name in kits}
    with tempfile.TemporaryDirectory(prefix="before-launch-") as text:
        make_project(Path(text), given.rows)
        for _ in range(given.rounds):
            for name, kit in kits.items():
                taken[name].append(seconds_to_launch(kit, Path(text)))
    for name, seconds in taken.items():
        listed = ", ".join(f"{each:.2f}" for each in seconds)
        print(f"{name}: median {statistics.median(seconds):.2f} s of {listed} ({given.rows} rows)")
    if given.other:
        print(f"this / other: {statistics.median(taken['this']) / statistics.median(taken['other']):.2f}")


if __name__ == "__main__":
    main()

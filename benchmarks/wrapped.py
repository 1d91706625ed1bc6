"""The same training through `iis-finetune train` and through `llamafactory-cli train`: time and bytes.

    python benchmarks/wrapped.py [PAIRS] [STEPS]

Both get the same arguments and the same environment: the bare run is the wrapped run's own command.sh on another
output folder. Time is LLaMA-Factory's, from its start to its exit; the kit's own time before that start is printed too.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
KIT = [sys.executable, "-m", "iis_finetune"]
CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
RECIPE = """\
model_name_or_path: models/small
template: qwen
stage: sft
do_train: true
dataset: intelligence_alpaca
cutoff_len: 512
finetuning_type: lora
lora_rank: 64
lora_target: all
lora_dropout: 0.05
learning_rate: 1.0e-3
per_device_train_batch_size: 4
max_steps: {steps}
logging_steps: 1
save_steps: 20
"""


def prepare(folder: Path, steps: int, dtype: str = "float32") -> None:
    (folder / "recipes").mkdir()
    (folder / "recipes" / "pair.yaml").write_text(RECIPE.format(steps=steps))
    (folder / "data").symlink_to(ROOT / "data")
    tokenizer = {"train_on": [str(ROOT / "data" / "intelligence_train.json")], "vocab_size": 1600}
    spec = folder / "spec.json"
    made = {"config": CONFIG, "tokenizer": tokenizer, "dtype": dtype, "to": str(folder / "models" / "small")}
    spec.write_text(json.dumps(made))
    (folder / "models").mkdir()
    command = [sys.executable, "-m", "iis_finetune.probe.scratch", str(spec)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def wrapped(folder: Path, environment: dict[str, str]) -> tuple[Path, float, float]:
    """Run folder, LLaMA-Factory's seconds, the kit's own seconds before it."""
    began = time.time()
    subprocess.run([*KIT, "train", "pair"], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    run = max((folder / "runs").glob("[0-9]*-pair"))
    attempt = json.loads((run / "attempts.jsonl").read_text().splitlines()[-1])
    return run, attempt["ended"] - attempt["started"], attempt["started"] - began


def bare(run: Path, environment: dict[str, str]) -> tuple[Path, float]:
    """The run's own arguments in a folder beside it, started the way its command.sh says."""
    other = run.with_name(f"bare-{run.name}")
    other.mkdir()
    script = (run / "command.sh").read_text().replace(str(run), str(other))
    (other / "command.sh").write_text(script)
    (other / "arguments.yaml").write_text((run / "arguments.yaml").read_text().replace(str(run), str(other)))
    with (other / "train.log").open("wb") as log:
        began = time.time()
        subprocess.run(["bash", "command.sh"], cwd=other, env=environment, check=True, stdout=log, stderr=log)
    return other, time.time() - began


def digest(run: Path) -> str:
    return hashlib.sha256((run / "output" / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 120
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, steps)
        print(f"{'wrapped s':>10} {'bare s':>8} {'ratio':>7} {'kit before s':>13}  adapter")
        ratios = []
        for _ in range(pairs):
            run, ours, before = wrapped(folder, environment)
            other, theirs = bare(run, environment)
            ratios.append(ours / theirs)
            same = "identical" if digest(run) == digest(other) else "DIFFERENT"
            print(f"{ours:10.2f} {theirs:8.2f} {ratios[-1]:7.3f} {before:13.2f}  {same} {digest(run)}", flush=True)
        print(f"median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()

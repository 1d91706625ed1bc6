"""How fast a model is fetched: this kit with verification, against the hubs' own clients, from one server on loopback.

`python benchmarks/download.py [--gb 2] [--rounds 5] [--folder DIR]`. The clients take turns, each into an empty folder,
and the median of the rounds counts. Imports and the choice of a hub are left out. The folder should be a memory file
system: on a slow disk every client is equally slow.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MODEL = "bench/model"
SHARDS = 4
ROOT = Path(__file__).parent.parent


def write_model(folder: Path, total_bytes: int) -> None:
    folder.mkdir(parents=True)
    names = {f"layer.{i}": f"model-{i + 1:05d}-of-{SHARDS:05d}.safetensors" for i in range(SHARDS)}
    size = total_bytes // SHARDS
    block = os.urandom(1 << 20)
    for tensor, name in names.items():
        header = json.dumps({tensor: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        with (folder / name).open("wb") as handle:
            handle.write(struct.pack("<Q", len(header)) + header)
            for start in range(0, size, 1 << 20):
                handle.write(block[: min(1 << 20, size - start)])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")


def clients(url: str) -> dict[str, Callable[[Path], object]]:
    """Return what is compared; whatever is imported is imported here, before the clock starts."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from modelscope.hub.snapshot_download import snapshot_download as modelscope_download

    from iis_finetune import hub

    disable_progress_bars()
    logging.disable(logging.WARNING)
    environment = {"HF_ENDPOINT": url, "MODELSCOPE_ENDPOINT": url, "HOME": "/nonexistent"}

    def ours(source: str) -> Callable[[Path], object]:
        return lambda to: hub.fetch(hub.ModelOrder(MODEL, to, source=source), environment, lambda _: None)  # type: ignore[arg-type]

    return {
        "huggingface_hub.snapshot_download": lambda to: snapshot_download(
            MODEL, local_dir=to / "m", endpoint=url, token=False
        ),
        "iis_finetune, Hugging Face": ours("huggingface"),
        "modelscope.snapshot_download": lambda to: modelscope_download(MODEL, local_dir=str(to / "m"), endpoint=url),
        "iis_finetune, ModelScope": ours("modelscope"),
    }


def measure(folder: Path, rounds: int, url: str) -> dict[str, list[tuple[float, float]]]:
    """Return wall and processor seconds; on a busy machine the second are the steadier ones."""
    contenders = clients(url)
    for run in contenders.values():  # once unmeasured: imports inside functions, the server's list of hashes
        run(Path(tempfile.mkdtemp(dir=folder)))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            to = Path(tempfile.mkdtemp(dir=folder))
            wall, processor = time.perf_counter(), time.process_time()
            run(to)
            seconds[name].append((time.perf_counter() - wall, time.process_time() - processor))
            shutil.rmtree(to)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        write_model(folder / "served" / MODEL, int(options.gb * 1e9))
        command = [sys.executable, str(ROOT / "tests" / "hub_server.py"), str(folder / "served")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            try:
                seconds = measure(folder, options.rounds, server.stdout.readline().strip())
            finally:
                server.terminate()
    walls = {name: [wall for wall, _ in values] for name, values in seconds.items()}
    medians = {name: statistics.median(values) for name, values in walls.items()}
    processor = {name: statistics.median(each for _, each in values) for name, values in seconds.items()}
    print(f"{options.gb:g} GB in {SHARDS} shards, loopback, median of {options.rounds}, {os.cpu_count()} cores")
    for name, values in walls.items():
        rate = options.gb * 1e3 / medians[name]
        print(
            f"{name:36} {medians[name]:6.2f} s  {rate:5.0f} MB/s  ({min(values):.2f} to {max(values):.2f} s)"
            f"  processor {processor[name]:5.2f} s"
        )
    names = list(medians)
    for theirs, ours in ((names[0], names[1]), (names[2], names[3])):
        by_processor = processor[ours] / processor[theirs]
        print(f"{ours} / {theirs}: {medians[ours] / medians[theirs]:.2f} (processor {by_processor:.2f})")


if __name__ == "__main__":
    main()

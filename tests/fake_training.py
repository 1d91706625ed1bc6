"""Stands in for `llamafactory-cli train` where a failure must be staged: same files, same lines, no torch.

`FAKE` in its environment is a JSON list, one entry for each start: {"at": step, "do": what}. Without an entry it
trains to the end. It goes on from `resume_from_checkpoint`, saves every second step, and stops when it is asked to.
Asked for answers, it leaves a file `answering` and takes FAKE_ANSWER_SECONDS before anything else.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import struct
import sys
import time
import zipfile
from pathlib import Path

STEPS = 10
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


def safetensors(path: Path, values: list[float]) -> None:
    """A real safetensors file of one fp32 tensor."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, 4 * len(values)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack(f"<{len(values)}f", *values))


def torch_file(path: Path, size: int = 64) -> None:
    """What torch.save leaves: an uncompressed zip archive with checksums."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{path.stem}/data.pkl", b"\x80\x02}q\x00." + b"x" * size)
        archive.writestr(f"{path.stem}/version", "3\n")


def checkpoint(folder: Path, step: int, value: float = 1.0, processes: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    safetensors(folder / "adapter_model.safetensors", [float(step), value])
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin"):
        torch_file(folder / name, int(os.environ.get("FAKE_BYTES", "4096")))
    ranks = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    for name in ranks:
        torch_file(folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": STEPS}))
    return folder


def log(step: int, **values: object) -> None:
    told = {"loss": "2.5", "grad_norm": "0.9", "learning_rate": "1e-05", "epoch": "0.5"} | values
    print(f"{told}", flush=True)
    print(f"\r{step:3}%|#| {step}/{STEPS} [00:01<00:08, 1.00it/s]", end="", flush=True)


def do(what: str, folder: Path, step: int) -> None:  # noqa: C901, PLR0912 - one branch a failure
    """Fail as real trainings do."""
    if what == "oom":
        sys.exit(f"Traceback (most recent call last):\n{OOM}")
    if what == "crash":
        sys.exit("Traceback (most recent call last):\nValueError: a broken row")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    if what == "stall":
        time.sleep(120)
    if what == "nan":
        checkpoint(folder / f"checkpoint-{step}", step, float("nan"))
        log(step, grad_norm="nan")
        time.sleep(120)
    if what == "zero":
        for _ in range(6):
            log(step, loss="0", grad_norm="0")
        time.sleep(120)
    if what == "half":
        checkpoint(folder / f"checkpoint-{step}", step)
        whole = folder / f"checkpoint-{step}" / "optimizer.pt"
        whole.write_bytes(whole.read_bytes()[:-900])
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "unloadable":
        trace = 'File "trainer.py", line 1646, in _load_optimizer_and_scheduler'
        sys.exit(f"Traceback (most recent call last):\n  {trace}\n_pickle.UnpicklingError: invalid load key, 'x'.")
    if what == "fault":
        sys.exit(
            "Memory access fault by GPU node-1 (Agent handle: 0x55d0) on address 0x7f00. Reason: Page not present."
        )
    if what == "exit":
        sys.exit(0)
    if what == "full":
        sys.exit("Traceback (most recent call last):\nOSError: [Errno 28] No space left on device")


def trial(run: Path, arguments: str, plan: dict[str, object]) -> None:
    """A trial of `tune`: FAKE_SKIPS leaves every second update out, which takes no time and teaches nothing."""
    skips, found = "FAKE_SKIPS" in os.environ, re.search(r"max_steps: (\d+)", arguments)
    steps = int(found[1]) if found else 0
    with (run / "trial.jsonl").open("w", buffering=1) as lines:
        for step in range(1, steps + 1):
            time.sleep(float(os.environ.get("FAKE_STEP_SECONDS", "0.04")) / (2 if skips else 1))
            if plan.get("at") == step and plan["do"] != "nan":
                do(str(plan["do"]), run / "output", step)
            loss = math.nan if plan.get("at") == step else 3 - 0.05 * ((step - 1) // 2 if skips else step - 1)
            told = {"step": step, "at": time.time(), "tokens": 100, "loss": loss, "held_gib": 1.0}
            lines.write(json.dumps(told) + "\n")
        if "eval_dataset:" in arguments:
            lines.write(json.dumps({"held_out": 3 - 0.05 * (steps // 2 if skips else steps)}) + "\n")


def main() -> None:
    run = Path.cwd()
    arguments = Path(sys.argv[2]).read_text()
    starts = run / "starts"
    starts.write_text((starts.read_text() if starts.exists() else "") + sys.argv[2] + "\n")
    if "do_predict: true" in arguments:
        (run / "answering").touch()
        time.sleep(float(os.environ.get("FAKE_ANSWER_SECONDS", "0")))
    told = json.loads(os.environ.get("FAKE", "[]"))
    number = len(starts.read_text().splitlines()) - 1
    plan = told[number] if number < len(told) else {}
    if plan.get("at") == 0:
        do(plan["do"], run / "output", 0)
    if "IIS_TRIAL" in os.environ:
        trial(run, arguments, plan)
        return
    output = run / "output"
    output.mkdir(exist_ok=True)
    found = re.search(r"resume_from_checkpoint: \"(.*)\"", arguments)
    step = int(found[1].rpartition("-")[2]) if found else 0
    loaded = {"parameters": {"trainable": {"float32": 2}}, "mixed_precision": os.environ.get("FAKE_MIXED", "no")}
    (run / "loaded.json").write_text(json.dumps(loaded))
    print(f"***** Running training *****\n  Total optimization steps = {STEPS}", flush=True)
    while step < STEPS:
        time.sleep(float(os.environ.get("FAKE_STEP_SECONDS", "0.02")))
        if plan.get("at") == step:
            do(plan["do"], output, step)
        step += 1
        log(step)
        with (output / "trainer_log.jsonl").open("a") as lines:
            lines.write(json.dumps({"current_steps": step, "total_steps": STEPS, "elapsed_time": "0:00:01"}) + "\n")
        stop = (run / "stop-requested").exists()
        if step % 2 == 0 or stop:
            checkpoint(output / f"checkpoint-{step}", step)
        if stop:
            (run / "stop-at-step").write_text(str(step))
            break
    safetensors(output / "adapter_model.safetensors", [float(step), 1.0])
    (output / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": STEPS}))


if __name__ == "__main__":
    main()

"""What it costs to be watched: processor share and memory of the supervisor beside a real training.

    python benchmarks/supervisor.py [SECONDS]

The wall time of a watched run beside a bare one is in wrapped.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from wrapped import KIT, ROOT, prepare

SHARE_LIMIT, MEMORY_LIMIT_MB = 0.01, 80.0


def start(folder: Path, environment: dict[str, str]) -> dict[str, object]:
    """Status of a run that has begun to train."""
    words = ["train", "pair", "kit.env={OMP_NUM_THREADS: 1}", "save_total_limit=2", "--background"]
    subprocess.run([*KIT, *words], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    while True:
        time.sleep(1)
        done = subprocess.run(
            [*KIT, "status", "last", "--json"], cwd=folder, env=environment, capture_output=True, check=True
        )
        status: dict[str, object] = json.loads(done.stdout)
        if status["step"]:
            return status


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 300.0
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, 1_000_000)
        supervisor = psutil.Process(int(str(start(folder, environment)["supervisor_pid"])))
        before, began = sum(supervisor.cpu_times()[:2]), time.monotonic()
        time.sleep(seconds)
        share = (sum(supervisor.cpu_times()[:2]) - before) / (time.monotonic() - began)
        status = Path(f"/proc/{supervisor.pid}/status").read_text()
        now, peak = (int(status.partition(key)[2].split()[0]) / 1024 for key in ("VmRSS:", "VmHWM:"))
        subprocess.run([*KIT, "stop", "last", "--now"], cwd=folder, env=environment, check=True)
    print(f"{share:8.3%} of one core over {seconds:.0f} s  limit {SHARE_LIMIT:.0%}")
    print(f"{now:8.1f} MB resident, {peak:.1f} MB at most  limit {MEMORY_LIMIT_MB:.0f} MB")
    sys.exit(share > SHARE_LIMIT or peak > MEMORY_LIMIT_MB)


if __name__ == "__main__":
    main()

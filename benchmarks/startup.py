"""How long the verbs that come before training take, as whole processes, beside LLaMA-Factory's own `version`.

    python benchmarks/startup.py [REPEATS]

Prints the median seconds of each, the ratio, and which of the heavy packages were imported (none may be).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
VERBS = (["--help"], ["recipes"], ["check", "qwen7b_lora"], ["plan", "qwen7b_lora"])
HEAVY = ("torch", "transformers", "llamafactory")
LIST_HEAVY = (
    "import sys; sys.argv[1:] = {words!r}\n"
    "from iis_finetune.cli import run\n"
    "code = run()\n"
    "print([name for name in {heavy!r} if name in sys.modules], code, file=sys.stderr)"
)


def seconds(command: list[str], repeats: int) -> float:
    """Median wall time; the first start, which compiles, is left out."""
    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def imported(words: list[str]) -> str:
    code = LIST_HEAVY.format(words=words, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1]


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    bare = seconds([str(BIN / "llamafactory-cli"), "version"], 3)
    print(f"{'command':32} {'median s':>9} {'ratio':>7}  heavy imports, exit code")
    print(f"{'llamafactory-cli version':32} {bare:9.3f} {1.0:7.3f}")
    for words in VERBS:
        taken = seconds([str(BIN / "iis-finetune"), *words], repeats)
        print(f"{'iis-finetune ' + ' '.join(words):32} {taken:9.3f} {taken / bare:7.3f}  {imported(words)}")


if __name__ == "__main__":
    main()

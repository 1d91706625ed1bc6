"""How long the verbs that come before training take, as whole processes, beside importing the libraries of such a tool.

    python benchmarks/startup.py [REPEATS]

Prints the median seconds of each, the ratio to the import of those libraries alone in the same run (pydantic is among
them, so that figures compare with earlier ones; the kit itself no longer needs it), and which of the
heavy packages were imported (none may be). LLaMA-Factory's own `version` is the last line, for comparison.
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
LIBRARIES = "import typer, rich, pydantic, ruamel.yaml"
HEAVY = ("torch", "transformers", "llamafactory")
LIST_HEAVY = (
    "import sys; sys.argv[1:] = {words!r}\n"
    "from iis_finetune.cli import run\n"
    "code = run()\n"
    "print([name for name in {heavy!r} if name in sys.modules], code, file=sys.stderr)"
)


def seconds(commands: dict[str, list[str]], repeats: int) -> dict[str, float]:
    """Median wall time of each, one after the other in each round; the first round, which compiles, is left out."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(each[1:]) for name, each in taken.items()}


def imported(words: list[str]) -> str:
    code = LIST_HEAVY.format(words=words, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1]


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    verbs = {f"iis-finetune {' '.join(words)}": words for words in VERBS}
    commands = {name: [str(BIN / "iis-finetune"), *words] for name, words in verbs.items()}
    libraries = f'python -c "{LIBRARIES}"'
    taken = seconds({libraries: [sys.executable, "-c", LIBRARIES], **commands}, repeats)
    taken |= seconds({"llamafactory-cli version": [str(BIN / "llamafactory-cli"), "version"]}, 3)
    print(f"{'command':54} {'median s':>9} {'ratio':>7}  heavy imports, exit code")
    for name, median in taken.items():
        heavy = imported(verbs[name]) if name in verbs else ""
        print(f"{name:54} {median:9.3f} {median / taken[libraries]:7.2f}  {heavy}")


if __name__ == "__main__":
    main()

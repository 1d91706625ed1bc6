"""What LLaMA-Factory does with a hundred known failures, and what `check` says: python benchmarks/rules.py [--only 57].

Each fault of tests/rule_cases.py is a recipe for a tiny model. LLaMA-Factory runs it for real, in a child: does it
refuse, when, or does it go on without a word? `check` looks at the same file: is the fault named, where, how fast?
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from rule_cases import ELSEWHERE, FAULTS, TRAIN, Fault  # noqa: E402
from test_rules import TINY_SPEC, examine, make_world  # noqa: E402

PLACEHOLDER = ROOT / "iis_finetune" / "hook" / "torchaudio_placeholder"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LLAMAFACTORY_VERBOSITY": "WARN"}
COLUMNS = "{:>3}  {:46.46}  {:32.32}  {:6.6}  {:5.5}  {:>6}"


def environment(folder: Path) -> dict[str, str]:
    paths = [str(ROOT), str(PLACEHOLDER), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    own = {"PYTHONPATH": os.pathsep.join(paths), "HF_HOME": str(folder / "hf")}
    return {**os.environ, **ENVIRONMENT, **own}


def make_tiny(folder: Path) -> Path:
    spec = {**TINY_SPEC, "to": str(folder / "tiny")}
    (folder / "text.txt").write_text("a few plain words, and 0123456789 {}[]\n" * 50, encoding="utf-8")
    spec["tokenizer"] = {"train_on": [str(folder / "text.txt")], "vocab_size": 400}
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    command = [sys.executable, "-m", "iis_finetune.probe.scratch", str(folder / "spec.json")]
    subprocess.run(command, check=True, capture_output=True, env=environment(folder), cwd=folder)
    return folder / "tiny"


def command_of(arguments: dict[str, Any]) -> str:
    if any(arguments.get(key) for key in ("do_train", "do_eval", "do_predict", "dataset")):
        return "train"
    return "export" if "export_dir" in arguments else "chat"


def as_case(fault: Fault, number: int) -> dict[str, Any]:
    arguments = {key: value for key, value in fault.recipe.items() if key != "kit"}
    command = command_of(arguments)
    if command == "train":
        arguments.setdefault("output_dir", f"out/{number}")
    return {"name": f"{number}", "command": command, "arguments": arguments}


def several(fault: Fault) -> bool:
    return bool(fault.recipe.get("kit", {}).get("devices"))


def ask_llamafactory(faults: list[Fault], world: Path) -> dict[str, dict[str, Any]]:
    """How LLaMA-Factory ends on each fault that can be run here, by the fault's number in the table."""
    first = {"name": "tokenized", "command": "train"}
    first["arguments"] = {**TRAIN, "tokenized_path": "tokenized", "output_dir": "out/tokenized"}  # type: ignore[assignment]
    rows = [(n, fault) for n, fault in enumerate(faults) if not fault.needs]
    cases = [first, *(as_case(fault, n) for n, fault in rows if not several(fault))]
    (world / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    results = world / "results.jsonl"
    command = [sys.executable, str(ROOT / "benchmarks" / "rules_child.py"), "cases.json", str(results)]
    with (world / "child.log").open("wb") as log:
        subprocess.run(command, cwd=world, env=environment(world), stdout=log, stderr=log, check=True)
    found = {row["name"]: row for row in map(json.loads, results.read_text(encoding="utf-8").splitlines())}
    return found | {str(n): in_two_processes(fault, n, world) for n, fault in rows if several(fault)}


def in_two_processes(fault: Fault, number: int, world: Path) -> dict[str, Any]:
    file = world / f"two-{number}.yaml"
    file.write_text(json.dumps(as_case(fault, number)["arguments"]), encoding="utf-8")
    words = [str(Path(sys.executable).parent / "llamafactory-cli"), "train", file.name]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    two = {**environment(world), "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "PATH": path}
    began = time.monotonic()
    done = subprocess.run(words, cwd=world, env=two, capture_output=True, text=True, timeout=300, check=False)
    failed = done.returncode != 0
    return {"error": "RuntimeError" if failed else None, "stage": "first step", "seconds": time.monotonic() - began}


def ask_the_kit(fault: Fault, world: Path) -> tuple[bool, bool, float]:
    """Whether `check` names the fault, whether at the right key, and in how many milliseconds."""
    began = time.perf_counter()
    found = examine(fault.recipe, world, fault.on, rows=True)
    took = (time.perf_counter() - began) * 1000
    said = [each for each in found if fault.says in each.what or fault.says in each.fix]
    return bool(said), any(each.where.key == fault.key for each in said), took


def told(fault: Fault, answer: dict[str, Any] | None) -> str:
    if answer is None:
        return f"not run: needs {fault.needs}"
    if answer["error"] is None:
        return f"goes on ({answer['seconds']:.0f} s)"
    return f"{answer['stage']}: {answer['error']} ({answer['seconds']:.0f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the list")
    wanted = parser.parse_args().only
    faults = [fault for fault in FAULTS if not wanted or fault.number in wanted]
    with tempfile.TemporaryDirectory(prefix="rules-") as name:
        folder = Path(name)
        world = make_world(folder / "world", make_tiny(folder))
        (world / "tokenized" / "dataset_dict.json").unlink()
        (world / "tokenized").rmdir()
        answers = ask_llamafactory(faults, world)
        os.chdir(world)
        report(faults, answers, [ask_the_kit(fault, world) for fault in faults])


def report(faults: list[Fault], answers: dict[str, Any], kit: list[tuple[bool, bool, float]]) -> None:
    sys.stdout.write(COLUMNS.format("no", "lines", "LLaMA-Factory", "check", "key", "ms") + "\n")
    ends: Counter[str] = Counter()
    for number, (fault, (caught, named, took)) in enumerate(zip(faults, kit, strict=True)):
        answer = answers.get(str(number))
        lines = " ".join(f"{key}: {value}" for key, value in fault.lines.items())
        verdict = (fault.severity if caught else "MISSED", "yes" if named else "no", f"{took:.0f}")
        sys.stdout.write(COLUMNS.format(fault.number, lines, told(fault, answer), *verdict) + "\n")
        ends["not run here" if answer is None else "goes on" if answer["error"] is None else answer["stage"]] += 1
    total, keys = sum(row[0] for row in kit), sum(row[1] for row in kit)
    times = sorted(row[2] for row in kit)
    sys.stdout.write(f"\ncaught {total} of {len(faults)}, the right key named in {keys}\n")
    sys.stdout.write(f"check: median {times[len(times) // 2]:.0f} ms, longest {times[-1]:.0f} ms\n")
    sys.stdout.write(f"LLaMA-Factory: {', '.join(f'{end} {count}' for end, count in ends.most_common())}\n")
    numbers = len({fault.number for fault in faults} - {0})
    sys.stdout.write(f"numbers of the list: {numbers} with cases, {len(ELSEWHERE)} prevented or not decidable\n")


if __name__ == "__main__":
    main()

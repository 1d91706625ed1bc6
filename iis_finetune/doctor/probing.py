"""Try the devices in children with a time limit: matrix products, attention, and an all-reduce."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, to_builtins

from .. import launch, process, rules
from ..errors import Place, Problem
from ..machine import Machine, architecture, decide_attention, decide_environment, decide_precision, trouble
from ..wheels import load_error
from .hardware import iommu
from .subject import Subject

PROBE = Path(__file__).parent.parent / "probe" / "device.py"
IMPORT_SECONDS = 60.0  # importing torch from a cold disk
CASES_SECONDS = 240.0
ALL_REDUCE_SECONDS = 60.0
PATHS = ("math", "mem-efficient", "flash", "sdpa", "eager")
TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}  # a few roundings of each; seen on a CPU: 5e-7, -, 7e-3

Case = Mapping[str, Any]
Ended = tuple[int | None, str]


class Tried(Struct, frozen=True):
    """One trial; errors (`backward`: of the gradients) are relative to the reference, None when there is none.

    `state`: fine; unavailable (this torch has no such kernel, no harm); wrong (NaN, or too far off); failed (refused
    or crashed); late (hung, and was killed). `used`: whether the kit's own choice would use it here.
    """

    what: str
    device: str
    state: str
    error: float | None = None
    backward: float | None = None
    said: str = ""
    used: bool = True

    def as_json(self) -> dict[str, Any]:
        """NaN is no JSON: an error that is not finite is null, and `state` says wrong."""
        found = to_builtins(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}


def together(machine: Machine, processes: int | None) -> int:
    """How many processes the all-reduce has: those asked for, else two; one a card, on a CPU only when asked."""
    return min(processes or 2, len(machine.devices)) if machine.devices else processes or 1


def risk(subject: Subject) -> Problem | None:
    """A warning to show before cards are tried between which an IOMMU translates: a few such computers froze."""
    check = iommu(subject)
    if check is None or not check.problems:
        return None
    what = "the IOMMU translates between the cards: on a few hosts the first all-reduce froze the whole computer"
    return trouble(what, f"save your work first, or {check.problems[0].fix}")


def trials(subject: Subject, processes: int | None = None, seconds: float = ALL_REDUCE_SECONDS) -> list[Tried]:
    """Every trial on every device, then the all-reduce, which may take `seconds` beside the time to import torch."""
    machine, number = subject.machine, together(subject.machine, processes)
    decided = decide_environment(machine, max(number, len(machine.devices)))
    chosen = {each.name.removeprefix("environment."): str(each.value) for each in decided}
    environment = launch.child_environment(machine, subject.environment, chosen)
    with process.scratch_folder() as folder:
        found = _one_by_one(_cases(machine), environment, folder)
        if number > 1:
            case = {"job": "all_reduce", "processes": number, "folder": str(folder), "seconds": seconds}
            devices = [f"cuda:{rank}" if machine.devices else "cpu" for rank in range(number)]
            ranks = [_command([{**case, "rank": rank, "device": each}]) for rank, each in enumerate(devices)]
            ended = _run(ranks, IMPORT_SECONDS + seconds, environment, folder)
            found.append(_summed(ended, f"all-reduce of {number} processes", machine.device))
    return found


def problems_of(tried: Sequence[Tried]) -> list[Problem]:
    """An error where the kit itself would use it, a warning where only a recipe that asks for it would."""
    problems = []
    for each in tried:
        if each.state in ("fine", "unavailable"):
            continue
        known = rules.explain(each.said, Place())
        words = {"wrong": f"is wrong by {each.error}, backward {each.backward}", "late": "hung and was killed"}
        what = f"{each.what} on {each.device} {words.get(each.state, f'failed: {each.said}')}"
        fix = "is this torch the build for the card? `iis-finetune doctor --install-plan` shows it"
        if each.what.startswith("all-reduce"):
            fix = (
                "kit.devices: 1 until it passes; see iommu in `iis-finetune doctor`, and try again with NCCL_DEBUG=INFO"
            )
        elif not each.used:
            fix = "leave precision and attention on auto, which does not use it here"
        problems.append(trouble(what, known.fix if known else fix, "error" if each.used else "warning"))
    return problems


def _cases(machine: Machine) -> list[Case]:
    """Products and attention in each precision that the table allows, on each device."""
    row, used = architecture(machine.arch), _used(machine)
    precisions = ["fp32", *(name for name in ("fp16", "bf16") if row[name]["value"] != "none")]
    devices = [f"cuda:{number}" for number in range(len(machine.devices))] or ["cpu"]
    both = [{"device": device, "precision": precision} for device in devices for precision in precisions]
    products: list[Case] = [
        {"job": job, **each, "used": each["precision"] in used} for job in ("matmul", "lora") for each in both
    ]
    products += [
        {"job": "memory", "precision": "all", "gib": card.memory_gib, "device": device, "used": True}
        for device, card in zip(devices, machine.devices, strict=False)
        if card.integrated
    ]
    return products + [
        {"job": "attention", "path": path, **each, "used": path == used.get(each["precision"])}
        for each in both
        for path in PATHS
    ]


def _used(machine: Machine) -> dict[str, str]:
    """The precisions that `auto` trains in or falls back to, each with its form of attention."""
    precisions = {str(decide_precision(machine)[0].value), "fp32"}
    chosen = {each: str(decide_attention(machine, each)[0].value) for each in precisions}
    return {each: "eager" if attention == "disabled" else attention for each, attention in chosen.items()}


def _one_by_one(cases: Sequence[Case], environment: Mapping[str, str], folder: Path) -> list[Tried]:
    """All cases in one child; after a crash or a hang another child goes on with the next case."""
    found: list[Tried] = []
    while rest := cases[len(found) :]:
        [(returncode, printed)] = _run([_command(rest)], IMPORT_SECONDS + CASES_SECONDS, environment, folder)
        answers = _answers(printed)
        if len(answers) < len(rest):
            state = "late" if returncode is None else "failed"
            answers.append({"state": state, "said": load_error(returncode, printed) or "no answer", "errors": []})
        found += [_judged(case, each) for case, each in zip(rest, answers, strict=False)]
        if not _answers(printed):  # it cannot even begin, and 15 more such children would say the same
            break
    return found


def _judged(case: Case, answer: Mapping[str, Any]) -> Tried:
    what = f"{case['precision']} {case['job']} {case.get('path', '')}".rstrip()
    error, backward = [*answer["errors"], None, None][:2]
    wrong = any(not each < TOLERANCE[case["precision"]] for each in answer["errors"])  # NaN is under no limit
    state = "wrong" if wrong else answer["state"]
    return Tried(what, case["device"], state, error, backward, answer["said"], case["used"])


def _summed(ended: Sequence[Ended], what: str, device: str) -> Tried:
    answers = [answer for _, printed in ended for answer in _answers(printed)]
    if any(returncode is None for returncode, _ in ended):
        return Tried(what, device, "late", said="it did not end in time")
    said = [each["said"] for each in answers] + [load_error(*each) for each in ended]
    errors = [error for answer in answers for error in answer["errors"]]
    if len(errors) < len(ended):
        return Tried(what, device, "failed", said=next(filter(None, said), "no answer"))
    return Tried(what, device, "fine" if max(errors) < TOLERANCE["fp32"] else "wrong", max(errors))


def _command(cases: Sequence[Case]) -> list[str]:
    return [sys.executable, "-P", str(PROBE), json.dumps(cases)]


def _answers(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith('{"state": ')]


def _run(commands: Sequence[list[str]], seconds: float, environment: Mapping[str, str], folder: Path) -> list[Ended]:
    """Run them side by side; exit code (None: killed when the time was over) and everything printed, of each.

    Waits by process id and never for the end of a killed one, which a hung driver may keep for ever.
    """
    logs = [folder / f"{len(list(folder.iterdir()))}-{number}.log" for number in range(len(commands))]
    launches = [process.Launch(command, environment, folder, log) for command, log in zip(commands, logs, strict=True)]
    children = [process.start(each) for each in launches]
    known = [who for who in (process.identity(child.pid) for child in children) if who]
    try:
        late = {who.pid for who in process.wait_gone(known, seconds)}
    finally:
        process.end([each for who in known for each in process.tree(who)], 2)
    codes = [(child.poll(), child.pid) for child in children]  # asked of the killed ones too, or they stay as zombies
    return [
        (None if pid in late else code, log.read_text(errors="replace"))
        for (code, pid), log in zip(codes, logs, strict=True)
    ]

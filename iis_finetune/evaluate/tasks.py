"""Benchmarks by lm_eval: base and tuned on the same rows of its tasks, each difference with its interval."""

import hashlib
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from .. import launch, process
from ..errors import COMMAND_LINE, KitError, Misused, Place, Problem, ProblemsFound, RunFailed
from ..machine import package_version
from ..models import fingerprint
from ..observe import last_lines, measuring, raised
from ..plan import after
from ..plan.after import Trained
from ..runs import read_json, write_json
from . import path_of, sides_of, told
from .answers import Evaluation, answering, attend
from .compare import Comparison, compare
from .metrics import is_number

NAME = "lm_eval"  # of the folder beside those of the data sets
SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234, "fewshot_random_seed": 1234}  # its own
PACKAGES = ("lm_eval", "transformers", "peft", "torch")
TELL_SECONDS = 10.0


class Benchmarks(Struct, frozen=True, kw_only=True):
    """Which tasks, and how they are asked, in lm_eval's own words."""

    tasks: Sequence[str]
    include_path: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False


def measure(asked: Evaluation, wanted: Benchmarks, tell: Callable[[str], None]) -> dict[str, Any]:
    """Have lm_eval measure both sides task by task, and compare them; returns what is kept beside the other scores.

    Goes on where an earlier call with the same settings stopped. Raises ProblemsFound, RunFailed.
    """
    if importlib.util.find_spec(NAME) is None:
        raise _missing("lm_eval, which measures tasks, is not installed", "make setup EXTRA=lm_eval")
    base, tuned = sides_of(asked)
    quantised = answering(asked, tuned)["quantization_bit"]
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    how = {side.name: _how(side, tuned, wanted) for side in (base, tuned) if side}
    write_json(folder / "spec.json", {**to_builtins(wanted), "seeds": SEEDS, "sides": how})
    state = _measured(asked, folder, tell)
    found = [each for item in _items(folder, state, list(how)) for each in _compared(*item)]
    scores = {"data": NAME, "base": base.name if base else None, "tuned": tuned.name, "metrics": told(found)}
    notes = [_manner(wanted), *(["the base was quantised in training; here it is as saved"] if quantised else ())]
    scores |= {"cut": notes, "without_leaks": [], "benchmarks": to_builtins(wanted) | {"sides": how}}
    write_json(path_of(asked, base, tuned), scores)
    return scores


def _missing(what: str, fix: str) -> ProblemsFound:
    return ProblemsFound([Problem(what, fix, Place(COMMAND_LINE, key="--tasks"), kind="missing")])


def _manner(wanted: Benchmarks) -> str:
    """How the tasks were asked, in a sentence."""
    examples = "as each task says" if wanted.num_fewshot is None else str(wanted.num_fewshot)
    rows = f", the first {wanted.limit} rows of each task" if wanted.limit else ""
    chat = ", in the chat template of the tuned model" if wanted.apply_chat_template else ""
    return f"measured by lm_eval {package_version(NAME)}{rows}; examples before each question: {examples}{chat}"


def _how(side: Trained, tuned: Trained, wanted: Benchmarks) -> dict[str, Any]:
    """How a side is loaded, and all of it that decides the figures beside the tasks themselves."""
    if len(side.weights.adapters) > 1:
        what = f"{side.name} is {len(side.weights.adapters)} adapters on one base, and lm_eval loads one"
        raise Misused(what, "iis-finetune export, and lm_eval's own command on that folder", "--tasks")
    model = after.benchmarked(side)
    if wanted.apply_chat_template:  # which the base may lack: both are asked the same
        model["tokenizer"] = (*tuned.weights.adapters, tuned.weights.model)[0]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in _adapter_files(side)]
    asked = {**to_builtins(replace(wanted, tasks=())), "seeds": SEEDS}
    versions = {name: package_version(name) for name in PACKAGES}
    known = {"model_sha256": fingerprint(Path(side.weights.model)), "adapter_sha256": hashes, "versions": versions}
    return {"model": model, "measured_with": {"model": model, **known, **asked}}


def _adapter_files(side: Trained) -> Iterator[Path]:
    for folder in side.weights.adapters:
        yield from sorted(Path(folder).glob("adapter_*"))


def _measured(asked: Evaluation, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """What lm_eval says at its end."""
    state, log = folder / "state.json", folder / "lm_eval.log"
    for earlier in (state, log):
        earlier.unlink(missing_ok=True)
    environment = after.one_process(asked.environment)
    environment["PYTHONPATH"] = ":".join([str(launch.KIT.parent), *filter(None, [environment["PYTHONPATH"]])])
    words = [sys.executable, "-m", "iis_finetune.probe.benchmark", str(folder / "spec.json")]
    program = process.Launch(process.bound(words), environment, Path.cwd(), log)  # tasks name their files from here
    code = attend(asked, program, _teller(folder, tell))
    found = read_json(state) or {}
    if code:
        raise _failure(found, raised(log) or " ".join(last_lines(log, 1)) or f"exit code {code}", log)
    return found


def _teller(folder: Path, tell: Callable[[str], None]) -> Callable[[], None]:
    """Tells of each task and side when it begins, and now and then how much of it is done."""
    last, when = [""], 0.0

    def look() -> None:
        nonlocal last, when
        now = measuring(folder) or [""]
        if now[0] != last[0] or (now != last and time.monotonic() - when > TELL_SECONDS):
            last, when = now, time.monotonic()
            tell(" ".join(now))

    return look


def _failure(state: Mapping[str, Any], why: str, log: Path) -> KitError:
    if name := state.get("unknown"):
        near = " or ".join(f"'{each}'" for each in state["near"])
        fix = f"did you mean {near}?" if near else "`lm_eval ls tasks` lists them; a file of your own: its path"
        return Misused(f"lm_eval has no task '{name}', and there is no such file", fix, "--tasks")
    if name := state.get("reading"):
        why = why.partition(". ")[0]
        if Path(name).is_file():
            return Misused(f"the task {name} cannot be used: {why}", f"see {log}", "--tasks")
        fix = f"a way to the network, HF_ENDPOINT for a mirror, or a task file with data of your own; see {log}"
        return _missing(f"the task '{name}' cannot be had: {why}", fix)
    task = f"{state['task']}, {state['side']}," if "task" in state else "what was asked"
    return RunFailed(f"{task} could not be measured: {why}; see {log}")


def _items(folder: Path, state: Mapping[str, Any], sides: Sequence[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each task and then each group, with what was measured of its sides; a group has the rows of its tasks."""
    kept = {}
    for task in state["tasks"]:
        file = f"{quote(task, safe='')}.json"
        kept[task] = [read_json(folder / side / file) or {} for side in sides]
    yield from kept.items()
    for name, group in state["groups"].items():
        pooled = []
        for at, side in enumerate(sides):
            rows: dict[str, list[float | None]] = {}
            for each in (kept[task][at] for task in group["tasks"]):
                for key, values in each["rows"].items():
                    rows.setdefault(key, []).extend(values)
            pooled.append({**kept[group["tasks"][0]][at], "figures": group[side], "rows": rows})
        yield name, pooled


def _compared(title: str, sides: Sequence[Mapping[str, Any]]) -> Iterator[Comparison]:
    """Each metric; with an interval where lm_eval's figure is the mean over rows: only then rows can be paired."""
    for key, figure in sides[-1]["figures"].items():
        metric, _, answer = key.partition(",")
        if not answer or not is_number(figure):
            continue
        name = f"{title}: {metric}" + f" ({answer})" * (answer != "none")
        own = [side["figures"].get(key) for side in sides]
        columns = [side["rows"].get(key, ()) for side in sides]
        higher = sides[-1]["higher_is_better"].get(metric)
        if all(_is_mean(values, mean) for values, mean in zip(columns, own, strict=True)):
            base = {name: columns[0]} if len(sides) > 1 else None
            (one,) = compare(base, {name: columns[-1]}, () if higher else (name,))
        else:
            first = own[0] if len(sides) > 1 else None
            one = Comparison(name, bool(higher), len(columns[-1]), first, figure)
        yield one if higher is not None else replace(one, verdict=None)  # which way is better nobody says


def _is_mean(values: Sequence[float | None], figure: Any) -> bool:
    known = [value for value in values if value is not None]
    return len(known) == len(values) > 0 and is_number(figure) and math.isclose(sum(known) / len(known), figure)

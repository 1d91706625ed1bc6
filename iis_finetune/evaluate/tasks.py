"""Benchmarks by lm_eval: base and tuned on the same rows of its tasks, each difference with its interval."""

import hashlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from msgspec.structs import replace

from .. import launch, process
from ..arguments import trained_with
from ..errors import COMMAND_LINE, KitError, Misused, Place, Problem, ProblemsFound, RunFailed
from ..machine import package_version
from ..models import fingerprint
from ..observe import last_lines, raised
from ..plan import after
from ..plan.after import Trained
from ..preflight import fitting
from ..runs import read_json, write_json
from . import path_of, sides_of, told
from .answers import Evaluation, attend
from .compare import Comparison, compare
from .metrics import is_number

NAME = "lm_eval"  # of the package, and of the folder beside those of the data sets
SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234, "fewshot_random_seed": 1234}  # its own
PACKAGES = (NAME, "transformers", "peft", "torch")


def measure(asked: Evaluation, how: Mapping[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    """Have lm_eval measure both sides, and compare them; `how` has `tasks` (`A,B`), `limit` and the like as it does.

    Goes on where an earlier call with the same settings stopped. Raises ProblemsFound, RunFailed.
    """
    if importlib.util.find_spec(NAME) is None:
        raise _missing("lm_eval, which measures tasks, is not installed", "pip install lm_eval")
    base, tuned = sides_of(asked)
    folder, sides = asked.folder.resolve(), {side.name: _loading(side, tuned, how) for side in (base, tuned) if side}
    folder.mkdir(parents=True, exist_ok=True)
    own = dict(how)
    names, include = own.pop("tasks").split(","), own.pop("include_path")
    named = {"tasks": [name.strip() for name in names], "include_path": include and str(include)}
    write_json(folder / "spec.json", {**named, "asked": {**own, **SEEDS}, "sides": sides})
    found = [each for name in _run(asked, folder, tell) for each in _compared(name, _kept(folder, sides, name))]
    manner = "".join(f", {name} {value}" for name, value in own.items() if value is not None and value is not False)
    scores: dict[str, Any] = {"data": NAME, "base": base and base.name, "tuned": tuned.name, "metrics": told(found)}
    scores |= {"cut": [f"measured by lm_eval {package_version(NAME)}{manner}"], "without_leaks": [], "sides": sides}
    path = path_of(asked, base, tuned)
    scores["metrics"] = [*_others(read_json(path) or {}, scores), *scores["metrics"]]
    write_json(path, scores)
    return scores


def _others(before: Mapping[str, Any], scores: Mapping[str, Any]) -> list[Any]:
    """What was found of other tasks earlier, where the same models were asked in the same way."""
    alike = all(before.get(name) == scores[name] for name in ("sides", "cut"))
    names = {each["name"] for each in scores["metrics"]}
    return [each for each in before["metrics"] if each["name"] not in names] if alike else []


def _missing(what: str, fix: str, code: Literal[2, 3] = 3) -> ProblemsFound:
    problem = Problem(what, fix, Place(COMMAND_LINE, key="--tasks"), kind="missing", code=code)
    return ProblemsFound([fitting(problem, Path(sys.prefix))])


def _loading(side: Trained, tuned: Trained, how: Mapping[str, Any]) -> dict[str, Any]:
    """How a side is loaded, and what of it decides the figures."""
    settings, adapters = trained_with(side.arguments), side.weights.adapters
    if settings["stage"] == "rm" or len(adapters) > 1:
        what = "a reward model, which gives no answers" if settings["stage"] == "rm" else "several adapters on one base"
        raise Misused(f"{side.name} is {what}: lm_eval cannot measure it", "name another run", "--tasks")
    model = after.benchmarked(side)
    if how["apply_chat_template"]:  # which the base may lack: both are asked the same
        model["tokenizer"] = (*tuned.weights.adapters, tuned.weights.model)[0]
    files = [path for folder in adapters for path in sorted(Path(folder).glob("adapter_*"))]
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    versions = {name: package_version(name) for name in PACKAGES}
    known = {"base_sha256": fingerprint(Path(side.weights.model)), "sha256": hashes, "versions": versions}
    return {"model": model, "measured_with": {"model": model, **known}}


def _run(asked: Evaluation, folder: Path, tell: Callable[[str], None]) -> Sequence[str]:
    """Let lm_eval measure; the names of tasks and groups that there are then."""
    file, log = folder / "state.json", folder / "lm_eval.log"
    for earlier in (file, log):
        earlier.unlink(missing_ok=True)
    environment = after.one_process(asked.environment)
    environment["PYTHONPATH"] = ":".join([str(launch.KIT.parent), *filter(None, [environment["PYTHONPATH"]])])
    words = [sys.executable, "-P", "-m", "iis_finetune.probe.benchmark", str(folder / "spec.json")]
    last = ""

    def look() -> None:
        nonlocal last
        doing = (read_json(file) or {}).get("doing", last)
        if doing != last:
            tell(doing)
        last = doing

    # A task names its files from the current folder.
    code = attend(asked, process.Launch(process.bound(words), environment, Path.cwd(), log), look)
    state = read_json(file) or {}
    if code or "found" not in state:
        raise _failure(state, raised(log) or " ".join(last_lines(log, 1)) or f"exit code {code}", log)
    return list(state["found"])


def _failure(state: Mapping[str, Any], why: str, log: Path) -> KitError:
    if name := state.get("unknown"):
        near = " or ".join(f"'{each}'" for each in state["near"])
        fix = f"did you mean {near}?" if near else "`lm_eval ls tasks` lists them; a file of your own: its path"
        return Misused(f"lm_eval has no task '{name}', and there is no such file", fix, "--tasks")
    if name := state.get("reading"):
        what = f"the task '{name}' cannot be had: {why.partition('. ')[0]}"
        fix = f"see {log}; rows of a hub need the network, or HF_ENDPOINT set to a mirror of it"
        return _missing(what, fix, 2 if Path(name).is_file() else 3)
    return RunFailed(f"lm_eval could not measure {state.get('doing', 'anything')}: {why}; see {log}")


def _kept(folder: Path, sides: Iterable[str], name: str) -> list[dict[str, Any]]:
    return [read_json(folder / side / f"{quote(name, safe='')}.json") or {} for side in sides]


def _compared(title: str, sides: Sequence[Mapping[str, Any]]) -> Iterator[Comparison]:
    """Each metric of a task; with an interval where it is the mean over the rows: only then they can be paired."""
    for key, figure in sides[-1]["figures"].items():
        metric, _, answer = key.partition(",")
        if not answer or "_stderr" in metric or not is_number(figure):
            continue
        name = f"{title}: {metric}" + f" ({answer})" * (answer != "none")
        higher = sides[-1]["higher_is_better"].get(metric)
        base, tuned = ({name: side["rows"].get(key, [])} for side in (sides[0], sides[-1]))
        if all(_is_mean(side, key) for side in sides):
            (one,) = compare(base if len(sides) > 1 else None, tuned, () if higher else (name,))
        else:
            first = sides[0]["figures"].get(key) if len(sides) > 1 else None
            one = Comparison(name, bool(higher), len(tuned[name]), first, figure)
        yield one if higher is not None else replace(one, verdict=None)  # nobody says which way is better


def _is_mean(side: Mapping[str, Any], key: str) -> bool:
    values, figures = side["rows"].get(key, ()), side["figures"]
    every = len(values) == figures["sample_len"] > 0 and None not in values
    return every and is_number(figures.get(key)) and math.isclose(sum(values) / len(values), figures[key])

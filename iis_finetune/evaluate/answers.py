"""Have rows answered through LLaMA-Factory: in parts, so that what was interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import dataset, launch, process
from ..arguments import trained_with
from ..errors import COMMAND_LINE, Place, ProblemsFound, RunFailed, errors_of
from ..observe import raised
from ..plan import after
from ..runs import read_json, read_lines, write
from ..supervise import Stop

POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0
PART_ROWS = 200
LOSS_SLICES = 20
UNSLICEABLE = ("split", "num_samples")  # entries that already choose among their rows


@dataclass(frozen=True)
class Side:
    """One of the models compared: a name for its files, the training's arguments, what is loaded."""

    name: str
    arguments: Mapping[str, Any]
    weights: after.Weights


@dataclass(frozen=True)
class Job:
    """Where an evaluation works (`<run>/evaluation/<data>`), on what, in which environment, until when."""

    folder: Path
    data: str
    environment: Mapping[str, str]
    stop: Stop
    part_rows: int = PART_ROWS


@dataclass(frozen=True)
class Material:
    """The rows made ready: part name -> number of rows, slices for the loss, longest answer in tokens, what is cut."""

    dataset_dir: str
    parts: Mapping[str, int | None]
    slices: Mapping[str, int | None]
    max_new_tokens: int | None
    sha256: Mapping[str, str]
    cut: tuple[str, ...]


def material(job: Job, arguments: Mapping[str, Any]) -> Material:
    """Register slices of the data set in a folder of the job's own; raises ProblemsFound when it cannot be read."""
    data_dir = str(arguments["dataset_dir"])
    plain = arguments.get("stage") == "pt"  # text without answers
    place = Place(COMMAND_LINE, key="--data")
    sources, problems = dataset.check_registered(job.data, data_dir, "pt" if plain else "sft", place)
    if errors_of(problems):
        raise ProblemsFound(problems)
    if not sources:  # on a hub: nothing to slice or to count here
        return Material(data_dir, {job.data: None}, {job.data: None}, None, {}, ())
    source = sources[0]
    entry = dict(dataset.read_registry(Path(data_dir)).entries[job.data].value)
    entry["file_name"] = str((Path(data_dir) / entry["file_name"]).resolve())
    reading = _look(source, arguments)
    count = min(reading.rows, int(arguments.get("max_samples") or 10**9))
    whole = any(key in entry for key in UNSLICEABLE)
    parts = {"part-00000": count} if whole else _slices("part", count, job.part_rows)
    slices = {"slice-00000": count} if whole else _slices("slice", count, -(-count // LOSS_SLICES))
    registry = {name: entry if whole else _slice(entry, name, length) for name, length in (parts | slices).items()}
    folder = job.folder / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / dataset.REGISTRY_FILE, json.dumps(registry, indent=1, ensure_ascii=True) + "\n")
    longest, cut = reading.truncation.longest_answer, tuple(each.what for each in reading.truncation.problems)
    # An answer longer than the longest expected one is wrong already; half as long again still shows how it goes on.
    tokens = None if longest is None else longest * 3 // 2 + 8
    return Material(str(folder.resolve()), parts, slices, tokens, dataset.Readings().sha256(source), cut)


def _slices(kind: str, count: int, size: int) -> dict[str, int]:
    return {f"{kind}-{start:05d}": min(size, count - start) for start in range(0, count, max(size, 1))}


def _slice(entry: Mapping[str, Any], name: str, length: int) -> dict[str, Any]:
    start = int(name.rpartition("-")[2])
    return {**entry, "split": f"train[{start}:{start + length}]"}


def _look(source: dataset.Source, arguments: Mapping[str, Any]) -> dataset.Reading:
    """How many rows there are; of answers, how long the longest expected one is and what cutoff_len would cut."""
    settings = trained_with(arguments)
    if settings["stage"] == "pt":
        return dataset.check_rows(source, dataset.options_of(settings, "pt", None))
    options = replace(dataset.options_of(settings, "sft", None), generate=True)
    return dataset.check_rows(source, options, Path(arguments["model_name_or_path"]) / "tokenizer.json")


def answers(job: Job, side: Side, given: Material) -> list[dict[str, Any]]:
    """The side's answers, as LLaMA-Factory wrote them (prompt, predict, label); kept, and read again if still valid."""
    kept = job.folder / f"{side.name}.jsonl"
    settings = settings_of(side, given)
    if not (kept.is_file() and read_json(_settings(job, side)) == settings):
        _begin(job, side, settings)
        for part in given.parts:
            _answer_part(job, side, given, part)
        lines = [path.read_text(encoding="utf-8") for path in sorted(_parts(job, side).glob("part-*.jsonl"))]
        write(kept, "".join(lines))
        shutil.rmtree(_parts(job, side))
    return list(read_lines(kept))


def settings_of(side: Side, given: Material) -> dict[str, Any]:
    """All that decides the answers: two equal settings give equal answers."""
    rows = after.Rows("", (), "", given.max_new_tokens)
    arguments = after.predict(side.arguments, side.weights, rows)
    for key in ("dataset_dir", "eval_dataset", "output_dir"):
        arguments.pop(key, None)
    settings = {
        "arguments": arguments,
        "data_sha256": dict(given.sha256),
        "parts": dict(given.parts),
        "weights": [_stamp(Path(folder)) for folder in (side.weights.model, *side.weights.adapters)],
    }
    settings["sha256"] = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    return json.loads(json.dumps(settings, default=str))  # type: ignore[no-any-return]


def _stamp(folder: Path) -> list[list[Any]]:
    """Names, sizes and times of a folder's weight files: other weights have another stamp."""
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _settings(job: Job, side: Side) -> Path:
    return job.folder / f"{side.name}.settings.json"


def _parts(job: Job, side: Side) -> Path:
    return job.folder / "parts" / side.name


def _begin(job: Job, side: Side, settings: Mapping[str, Any]) -> None:
    """Keep the parts of an interrupted evaluation with the same settings; throw away those of any other."""
    if read_json(_settings(job, side)) != settings:
        shutil.rmtree(_parts(job, side), ignore_errors=True)
        (job.folder / f"{side.name}.jsonl").unlink(missing_ok=True)
        write(_settings(job, side), json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
    _parts(job, side).mkdir(parents=True, exist_ok=True)


def _answer_part(job: Job, side: Side, given: Material, part: str) -> None:
    done = _parts(job, side) / f"{part}.jsonl"
    if done.is_file():
        return
    output = _parts(job, side) / part
    rows = after.Rows(given.dataset_dir, (part,), str(output.resolve()), given.max_new_tokens)
    run_llamafactory(job, side.name, after.predict(side.arguments, side.weights, rows), output)
    (output / after.PREDICTIONS).replace(done)


def losses(job: Job, side: Side, given: Material) -> list[float | None]:
    """The loss of each slice of the rows, as LLaMA-Factory's own evaluation computes it."""
    output = job.folder / "losses" / side.name
    rows = after.Rows(given.dataset_dir, tuple(given.slices), str(output.resolve()))
    run_llamafactory(job, f"{side.name}-loss", after.losses(side.arguments, side.weights, rows), output)
    results = read_json(output / after.LOSSES) or {}
    return [after.loss_of(results, name) for name in given.slices]


def run_llamafactory(job: Job, name: str, arguments: Mapping[str, Any], folder: Path) -> None:
    """One LLaMA-Factory child in a folder of its own, ended when the job is asked to stop; raises RunFailed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write(folder / "arguments.yaml", launch.yaml_text(arguments))
    log = job.folder / f"{name}.log"
    log.unlink(missing_ok=True)
    wanted = process.Launch(
        launch.program("train", "arguments.yaml"), after.one_process(job.environment), folder.resolve(), log.resolve()
    )
    child = process.start(wanted)
    who = process.identity(child.pid)
    try:
        while child.poll() is None and not job.stop.asked:
            time.sleep(POLL_SECONDS)
    finally:
        if who:
            process.end(process.tree(who), GRACE_SECONDS)
    if job.stop.asked:
        raise RunFailed(f"the evaluation was asked to stop ({job.stop.asked}); started again it goes on from here")
    if child.wait() != 0:
        raise RunFailed(f"{name} could not be evaluated: {raised(log) or f'exit code {child.returncode}'}; see {log}")

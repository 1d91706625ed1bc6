"""Have rows answered through LLaMA-Factory: in parts, so that what was interrupted goes on where it stopped."""

import json
import shutil
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from .. import dataset, launch, models, process
from .. import recipe as recipes
from ..arguments import Settings, trained_with
from ..errors import COMMAND_LINE, Misused, Place, ProblemsFound, RunFailed, errors_of
from ..observe import raised
from ..plan import after
from ..plan.after import Trained
from ..runs import Run, Workspace, read_json, read_lines, write
from ..supervise import Stop
from .metrics import Declared

BASE = "base"
POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0
PART_ROWS = 200
LOSS_SLICES = 20
NEAR_ROWS = 20_000  # training rows among which nearly equal ones are looked for: 0.3 ms each
Seen = tuple[tuple[str, ...], dataset.Leaks | None, tuple[int, ...]]
NOT_SOUGHT = "leaks could not be looked for in all training rows"
UNSLICEABLE = ("split", "num_samples")  # entries that already choose among their rows


class Evaluation(Struct, frozen=True):
    """What is evaluated, on which data set, in which environment, until when; against what and how."""

    run: Run
    data: str
    environment: Mapping[str, str]
    stop: Stop = field(default_factory=Stop)
    checkpoint: int | None = None  # None: the result
    baseline: Run | str | None = BASE  # BASE, another run, or None for the tuned model alone
    declared: Declared = field(default_factory=Declared)
    with_losses: bool = True
    guards: bool = False  # rows of something else: did it forget them?
    part_rows: int = PART_ROWS

    @property
    def folder(self) -> Path:
        return self.run.evaluation / self.data


class Material(Struct, frozen=True):
    """The rows made ready: part name -> number of rows, slices for the loss, longest answer in tokens, what is cut."""

    dataset_dir: str
    parts: Mapping[str, int | None]
    slices: Mapping[str, int | None]
    max_new_tokens: int | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    cut: tuple[str, ...] = ()
    leaks: dataset.Leaks | None = None
    seen: tuple[int, ...] = ()  # the places of the rows that leak among the answers, where those are known

    @property
    def clean(self) -> list[int]:
        """The places of the slices without a row that leaks, where some leak."""
        starts = [int(name.rpartition("-")[2]) for name in self.slices] if self.leaks and self.seen else []
        touched = {bisect_left(starts, leak.row) - 1 for leak in (self.leaks.found if self.leaks else ())}
        return [at for at in range(len(starts)) if at not in touched]


def material(asked: Evaluation, trained: Trained) -> Material:
    """Register slices of the data set in the evaluation's own folder; raises ProblemsFound when it cannot be read."""
    settings = trained_with(trained.arguments)
    if settings["stage"] == "rm":
        what = f"{asked.run.name} is a reward model: it scores answers and gives none"
        raise Misused(what, "evaluate a run of another stage")
    stage = "pt" if settings["stage"] == "pt" else "sft"  # text without answers, or with
    data_dir = Path(settings["dataset_dir"])
    sources, problems = dataset.check_registered(asked.data, str(data_dir), stage, Place(COMMAND_LINE, key="--data"))
    if errors_of(problems):
        raise ProblemsFound(problems)
    folder = asked.folder / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    if not sources:  # on a hub: nothing to slice or to count here
        cut = tuple(f"{NOT_SOUGHT}: {each.what}" for each in problems)
        return Material(str(data_dir), {asked.data: None}, {asked.data: None}, cut=cut)
    entry = dataset.known(data_dir).entries[asked.data].whole
    reading = (read := _look(sources[0], trained)).reading
    count = min(reading.rows, settings["max_samples"] or reading.rows)
    whole = any(key in entry for key in UNSLICEABLE)
    parts = slices_of("part", count, count if whole else asked.part_rows, reading.dropped)
    taught = dataset.check_rows(sources[0], dataset.options_of(settings, stage, settings["max_samples"]))
    slices = slices_of("slice", count, count if whole else -(-count // LOSS_SLICES), taught.dropped)
    registry = {name: entry if whole else _slice(entry, name, length) for name, length in (parts | slices).items()}
    write(folder / dataset.REGISTRY_FILE, json.dumps(registry, indent=1, ensure_ascii=True) + "\n")
    longest, sha256 = reading.truncation.longest_answer, dataset.Readings().sha256(sources[0])
    # An answer longer than the longest expected one is wrong already; half as long again still shows how it goes on.
    tokens = None if longest is None else longest * 3 // 2 + 8
    return Material(str(folder.resolve()), parts, slices, tokens, sha256, *_seen(read, asked.run, settings, whole))


def slices_of(kind: str, count: int, size: int, dropped: int = 0) -> dict[str, int]:
    """The names of slices of so many rows, and how many rows each has; no slice is all rows that are dropped."""
    starts = list(range(0, count, max(size, dropped + 1)))
    if len(starts) > 1 and count - starts[-1] <= dropped:
        starts.pop()
    ends = [*starts[1:], count]
    return {f"{kind}-{start:05d}": end - start for start, end in zip(starts, ends, strict=False)}


def _slice(entry: Mapping[str, Any], name: str, length: int) -> dict[str, Any]:
    start = int(name.rpartition("-")[2])
    return {**entry, "split": f"train[{start}:{start + length}]"}


def _look(source: dataset.Source, trained: Trained) -> dataset.Read:
    """How many rows there are; of answers, how long the longest expected one is and what cutoff_len would cut."""
    settings = trained_with(trained.arguments)
    stage = "pt" if settings["stage"] == "pt" else "sft"
    options = replace(dataset.options_of(settings, stage, settings["max_samples"]), generate=stage != "pt", keyed=True)
    tokenizer_json = None if stage == "pt" else Path(trained.arguments["model_name_or_path"]) / "tokenizer.json"
    return dataset.Read(source, options, dataset.check_rows(source, options, tokenizer_json))


def _seen(read: dataset.Read, run: Run, settings: Settings, whole: bool) -> Seen:
    """What to know of the rows, which of them the training saw as far as its data are here, and their places."""
    learnt, lacking = dataset.learnt(None, settings, settings["dataset_dir"])
    around = Workspace(Path(), Path("models"), run.folder.parent)
    base, wrong = models.base_of(recipes.read(str(run.recipe))[0], around) if run.recipe.is_file() else (None, [])
    for each in base.chain if base else ():
        more, gone = dataset.learnt(each.recipe.name, each.settings, each.settings["dataset_dir"])
        learnt, lacking = learnt + more, lacking + gone
    cut = tuple(each.what for each in read.reading.truncation.problems)
    cut += tuple(f"{NOT_SOUGHT}: {each.what}" for each in (*lacking, *(wrong if base is None else ())))
    leaks = dataset.leaks_of(read, learnt, sum(each.reading.kept for each in learnt) <= NEAR_ROWS)
    if not leaks.found:
        return cut, leaks if learnt else None, ()
    rows = set() if whole else {leak.row for leak in leaks.found}
    seen = tuple(at for at, (row, _) in enumerate(read.keyed()) if row in rows)
    return (*cut, f"{leaks.sentence}: these figures are too good"), leaks, seen


def answers(asked: Evaluation, side: Trained, given: Material) -> list[dict[str, Any]]:
    """A side's answers, as LLaMA-Factory wrote them (prompt, predict, label); those with the same settings are kept."""
    kept, parts = asked.folder / f"{side.name}.jsonl", asked.folder / "parts" / side.name
    record, settings = asked.folder / f"{side.name}.settings.json", settings_of(side, given)
    if read_json(record) != settings:
        shutil.rmtree(parts, ignore_errors=True)
        kept.unlink(missing_ok=True)
        write(record, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
    if not kept.is_file():
        parts.mkdir(parents=True, exist_ok=True)
        write(kept, "".join(_part(asked, side, given, parts / name) for name in given.parts))
        shutil.rmtree(parts)
    return list(read_lines(kept))


def settings_of(side: Trained, given: Material) -> dict[str, Any]:
    """All that decides the answers: two equal settings give equal answers."""
    settings = {
        "arguments": after.predict(side.arguments, side.weights, after.Rows("", (), "", given.max_new_tokens)),
        "data_sha256": given.sha256,
        "parts": given.parts,
        "weights": [_stamp(Path(folder)) for folder in (side.weights.model, *side.weights.adapters)],
    }
    read_back: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return read_back


def _stamp(folder: Path) -> list[list[Any]]:
    """Names, sizes and times of a folder's weight files: other weights have another stamp."""
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _part(asked: Evaluation, side: Trained, given: Material, output: Path) -> str:
    """The answers to one part of the rows as JSON lines; a part that was answered before is only read."""
    done = output.with_name(f"{output.name}.jsonl")
    if not done.is_file():
        rows = after.Rows(given.dataset_dir, (output.name,), str(output.resolve()), given.max_new_tokens)
        run_llamafactory(asked, side.name, after.predict(side.arguments, side.weights, rows), output)
        if not (output / after.PREDICTIONS).is_file():
            what = f"{side.name} could not be evaluated: LLaMA-Factory ended without an error and without an answer"
            raise RunFailed(f"{what}; see {asked.folder / f'{side.name}.log'}")
        (output / after.PREDICTIONS).replace(done)
    return done.read_text(encoding="utf-8")


def losses(asked: Evaluation, side: Trained, given: Material) -> list[float | None]:
    """The loss of each slice of the rows, as LLaMA-Factory's own evaluation computes it."""
    output = asked.folder / "losses" / side.name
    rows = after.Rows(given.dataset_dir, tuple(given.slices), str(output.resolve()))
    run_llamafactory(asked, f"{side.name}-loss", after.losses(side.arguments, side.weights, rows), output)
    results = read_json(output / after.LOSSES) or {}
    return [after.loss_of(results, name) for name in given.slices]


def run_llamafactory(asked: Evaluation, name: str, arguments: Mapping[str, Any], folder: Path) -> None:
    """One LLaMA-Factory child in a folder of its own, ended when it is asked to stop; raises RunFailed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write(folder / "arguments.yaml", launch.yaml_text(arguments))
    log = asked.folder / f"{name}.log"
    log.unlink(missing_ok=True)
    words, environment = launch.program("train", "arguments.yaml"), after.one_process(asked.environment)
    code = attend(asked, process.Launch(process.bound(words), environment, folder.resolve(), log.resolve()))
    if code:
        raise RunFailed(f"{name} could not be evaluated: {raised(log) or f'exit code {code}'}; see {log}")


def attend(asked: Evaluation, program: process.Launch, look: Callable[[], None] = lambda: None) -> int:
    """A child's exit code; it is looked at meanwhile, and ended when it is asked to stop: that raises RunFailed."""
    child = process.start(program)
    who = process.identity(child.pid)
    try:
        while child.poll() is None and not asked.stop.asked:
            look()
            time.sleep(POLL_SECONDS)
    finally:
        if who:
            process.end(process.tree(who), GRACE_SECONDS)
    if asked.stop.asked:
        raise RunFailed(f"the evaluation was asked to stop ({asked.stop.asked}); start it again to go on from here")
    return child.wait()

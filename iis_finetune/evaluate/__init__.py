"""Base against tuned on the same rows: answers through LLaMA-Factory, metrics, intervals, a few lines to read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import COMMAND_LINE, KitError, Place, Problem, ProblemsFound, RunFailed
from ..plan import after
from ..runs import Run, note, step_of, write
from ..supervise import Stop
from .answers import PART_ROWS, Job, Material, Side, answers, losses, material
from .compare import Comparison, compare, macro_f1, weighted
from .metrics import Declared, confusion, kind_of, parse, row_values, score
from .summary import name_of, newest_scores, summary_lines

BASE, TUNED = "base", "tuned"
NOT_GENERATED = ("pt", "rm")  # stages whose data has no answers to generate


@dataclass(frozen=True)
class Wanted:
    """What is evaluated: a data set; which checkpoint (None: the result); against what; how."""

    data: str
    environment: Mapping[str, str]
    stop: Stop = field(default_factory=Stop)
    checkpoint: int | None = None
    baseline: Run | str | None = BASE  # BASE, another run, or None for the tuned model alone
    declared: Declared = field(default_factory=Declared)
    with_losses: bool = True
    part_rows: int = PART_ROWS


def after_training(run: Run, data: str, environment: Mapping[str, str], stop: Stop) -> None:
    """Predict the data set's rows with base and tuned and keep the scores; a failure is told, never raised."""
    note(run, "evaluating", data=data)
    try:
        evaluate(run, Wanted(data, environment, stop, with_losses=False))
    except (KitError, OSError) as error:
        folder = run.evaluation / data
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "scores.json", json.dumps({"data": data, "problem": str(error)}, ensure_ascii=False) + "\n")
        note(run, "evaluation failed", data=data, why=str(error))
    else:
        note(run, "evaluated", data=data)


def evaluate(run: Run, wanted: Wanted) -> dict[str, Any]:
    """Answer, measure, compare; returns what it writes into `<run>/evaluation/<data>/scores.json`.

    Goes on where an earlier evaluation with the same settings stopped. Raises ProblemsFound, RunFailed.
    """
    tuned, base = _sides(run, wanted)
    if tuned.arguments.get("stage") == "rm":
        what = f"{run.name} is a reward model: it scores answers and gives none"
        raise ProblemsFound([Problem(what, "evaluate a run of another stage", Place(COMMAND_LINE))])
    job = Job(run.evaluation / wanted.data, wanted.data, wanted.environment, wanted.stop, wanted.part_rows)
    given = material(job, tuned.arguments)
    scores: dict[str, Any] = {"data": wanted.data, "base": base.name if base else None, "tuned": tuned.name}
    scores |= {"cut": list(given.cut), "metrics": []}
    if tuned.arguments.get("stage") not in NOT_GENERATED:
        scores |= _judged(job, (base, tuned), given, wanted.declared)
    if wanted.with_losses or tuned.arguments.get("stage") in NOT_GENERATED:
        scores["metrics"] += _told(_losses(job, (base, tuned), given))
    write(_path(job, base, tuned), json.dumps(scores, indent=1, ensure_ascii=False) + "\n")
    return scores


def _path(job: Job, base: Side | None, tuned: Side) -> Path:
    """`scores.json` is the run's result against its base; every other comparison has its names in the file's."""
    usual = (base.name if base else None, tuned.name) == (BASE, TUNED)
    against = f"-against-{base.name}" if base else ""
    return job.folder / ("scores.json" if usual else f"scores-{tuned.name}{against}.json")


def _sides(run: Run, wanted: Wanted) -> tuple[Side, Side | None]:
    arguments = _arguments(run)
    result, name = run.result, TUNED
    if wanted.checkpoint is not None:
        name = f"checkpoint-{wanted.checkpoint}"
        result = run.output / name
        if not result.is_dir():
            there = ", ".join(str(step_of(path)) for path in run.checkpoints()) or "none"
            what = f"{run.name} has no checkpoint {wanted.checkpoint}"
            raise ProblemsFound([Problem(what, f"checkpoints: {there}", Place(COMMAND_LINE, key="--checkpoint"))])
    tuned = Side(name, arguments, after.tuned_weights(arguments, result.resolve()))
    if isinstance(wanted.baseline, Run):
        theirs = _arguments(wanted.baseline)
        weights = after.tuned_weights(theirs, wanted.baseline.result.resolve())
        return tuned, Side(wanted.baseline.name, theirs, weights)
    return tuned, Side(BASE, arguments, after.base_weights(arguments)) if wanted.baseline else None


def _arguments(run: Run) -> dict[str, Any]:
    try:
        return after.read_arguments(run)
    except OSError:
        what = f"{run.name} has no {run.arguments.name}: it is not a run of this kit"
        raise ProblemsFound([Problem(what, "see `iis-finetune runs`", Place(COMMAND_LINE))]) from None


def _judged(job: Job, sides: tuple[Side | None, Side], given: Material, declared: Declared) -> dict[str, Any]:
    """The answers of both sides and what they are worth; rows that stand out are numbered from 0."""
    base, tuned = (answers(job, side, given) if side else None for side in sides)
    if not tuned:
        raise RunFailed(f"the data set '{job.data}' has no row that can be answered")
    references = [row["label"] for row in tuned]
    if base is not None and [row["label"] for row in base] != references:
        what = f"the two models did not answer the same rows ({len(base)} and {len(tuned)})"
        fix = "evaluate both again with the same data set and cutoff_len"
        raise ProblemsFound([Problem(what, fix, Place(COMMAND_LINE))])
    theirs, ours = [row["predict"] for row in base] if base else None, [row["predict"] for row in tuned]
    first, second = score(theirs, references, declared) if theirs else None, score(ours, references, declared)
    kind, labelled = kind_of(references, declared), bool(declared.labels or declared.field)
    values = zip(row_values(first, kind), row_values(second, kind), strict=True) if first else ()
    found = compare(first, second)
    if labelled:
        found.append(macro_f1(theirs, ours, references, declared))
    return {
        "rows": len(tuned),
        "kind": kind,
        "worse_rows": [row for row, (one, other) in enumerate(values) if other < one],
        "invalid_rows": [row for row, text in enumerate(ours) if kind == "json" and parse(text) is None],
        "metrics": _told(found),
        "decoding": "greedy",
        "longest_answer_tokens": given.max_new_tokens,
        **({"confusion": confusion(ours, references, declared)} if labelled else {}),
    }


def _told(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    return [{"title": name_of(each.name), **asdict(each)} for each in found]


def _losses(job: Job, sides: tuple[Side | None, Side], given: Material) -> list[Comparison]:
    """Mean loss with an interval over slices of the rows, and the perplexity that belongs to it."""
    base, tuned = (losses(job, side, given) if side else None for side in sides)
    ours, rows = tuned or [], list(given.slices.values())
    found = compare({"loss": base} if base else None, {"loss": ours}, ["loss"])[0]
    means = [weighted(values, rows) if values else None for values in (base, ours)]
    return [replace(found, base=means[0], tuned=means[1]), _perplexity(found, means)]


def _perplexity(loss: Comparison, means: Sequence[float | None]) -> Comparison:
    """e to the loss; its interval follows from the loss's, which it grows with."""
    base, tuned = (None if value is None else math.exp(min(value, 700.0)) for value in means)
    low, difference, high = (
        None if base is None or value is None else base * math.expm1(value)
        for value in (loss.low, loss.difference, loss.high)
    )
    return Comparison("perplexity", False, loss.rows, base, tuned, difference, low, high, loss.verdict)


__all__ = [
    "BASE",
    "PART_ROWS",
    "TUNED",
    "Declared",
    "Wanted",
    "after_training",
    "evaluate",
    "newest_scores",
    "summary_lines",
]

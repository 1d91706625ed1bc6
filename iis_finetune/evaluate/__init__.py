"""Base against tuned on the same rows: answers through LLaMA-Factory, metrics, intervals, a few lines to read."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import to_builtins
from msgspec.structs import replace

from ..arguments import trained_with
from ..errors import COMMAND_LINE, KitError, Misused, Place, Problem, ProblemsFound, RunFailed
from ..plan import after
from ..plan.after import Trained
from ..runs import Run, note, step_of, write
from ..supervise import Stop
from .answers import BASE, PART_ROWS, Evaluation, Material, answers, losses, material
from .compare import Comparison, compare, compare_losses, forgotten, macro_f1
from .metrics import Declared, confusion, kind_of, name_of, parse, row_values, score

TUNED = "tuned"
Sides = tuple[Trained | None, Trained]


def after_training(asked: Evaluation) -> None:
    """Answer the data set's rows with base and tuned and keep the scores; a failure is noted, never raised."""
    run, data = asked.run, asked.data
    note(run, "evaluating", data=data)
    try:
        evaluate(replace(asked, with_losses=asked.guards))
    except (KitError, OSError) as error:
        asked.folder.mkdir(parents=True, exist_ok=True)
        write(asked.folder / "scores.json", _json({"data": data, "problem": str(error)}))
        note(run, "evaluation failed", data=data, why=str(error))
    else:
        note(run, "evaluated", data=data)


def evaluate(asked: Evaluation) -> dict[str, Any]:
    """Answer, measure, compare; returns what it writes into `<run>/evaluation/<data>/scores.json`.

    Goes on where an earlier evaluation with the same settings stopped. Raises ProblemsFound, RunFailed.
    """
    base, tuned = sides_of(asked)
    stage = trained_with(tuned.arguments)["stage"]
    given = material(asked, tuned)
    scores: dict[str, Any] = {"data": asked.data, "base": base.name if base else None, "tuned": tuned.name}
    scores |= {"cut": list(given.cut), "leaks": to_builtins(given.leaks), "metrics": [], "without_leaks": []}
    if stage != "pt":  # whose data has no answers
        scores |= _judged(asked, (base, tuned), given)
        if 0 < len(given.seen) < scores["rows"]:
            scores["without_leaks"] += _judged(asked, (base, tuned), given, given.seen)["metrics"]
    if asked.with_losses or stage == "pt":
        first, second = (losses(asked, side, given) if side else None for side in (base, tuned))
        rows = list(given.slices.values())
        scores["metrics"] += told(compare_losses(first, second or [], rows))
        if clean := given.clean:
            theirs, ours = ([side[at] for at in clean] if side else None for side in (first, second))
            scores["without_leaks"] += told(compare_losses(theirs, ours or [], [rows[at] for at in clean]))
        if asked.guards and first and second:
            scores["guard"] = forgotten(first, second, rows)
    write(path_of(asked, base, tuned), _json(scores))
    return scores


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def path_of(asked: Evaluation, base: Trained | None, tuned: Trained) -> Path:
    """`scores.json` is the run's result against its base; every other comparison has its names in the file's."""
    usual = (base.name if base else None, tuned.name) == (BASE, TUNED)
    against = f"-against-{base.name}" if base else ""
    return asked.folder / ("scores.json" if usual else f"scores-{tuned.name}{against}.json")


def sides_of(asked: Evaluation) -> Sides:
    name = TUNED if asked.checkpoint is None else f"checkpoint-{asked.checkpoint}"
    tuned = replace(result_of(asked.run, asked.checkpoint), name=name)
    if isinstance(asked.baseline, Run):
        return result_of(asked.baseline), tuned
    return replace(tuned, name=BASE, weights=after.base_weights(tuned.arguments)) if asked.baseline else None, tuned


def result_of(run: Run, checkpoint: int | None = None) -> Trained:
    """What a run made, or one checkpoint of it; raises ProblemsFound where there is no such thing."""
    result = run.result if checkpoint is None else run.output / f"checkpoint-{checkpoint}"
    if checkpoint is not None and not result.is_dir():
        what = f"{run.name} has no checkpoint {checkpoint}"
        there = ", ".join(str(step_of(path)) for path in run.checkpoints()) or "none"
        raise Misused(what, f"checkpoints: {there}", "--checkpoint")
    try:
        return after.trained_by(run, result)
    except OSError:
        what = f"{run.name} has no {run.arguments.name}: it is not a run of this kit"
        raise Misused(what, "see `iis-finetune runs`") from None


def _judged(asked: Evaluation, sides: Sides, given: Material, but: Collection[int] = ()) -> dict[str, Any]:
    """The answers of both sides and what they are worth; rows that stand out are numbered from 0."""
    every = (answers(asked, side, given) if side else None for side in sides)
    base, tuned = ([row for at, row in enumerate(side) if at not in but] if side else None for side in every)
    if not tuned:
        raise RunFailed(f"the data set '{asked.data}' has no row that can be answered")
    references, declared = [row["label"] for row in tuned], asked.declared
    if base is not None and [row["label"] for row in base] != references:
        what = f"the two models did not answer the same rows ({len(base)} and {len(tuned)})"
        fix = "evaluate both again with the same data set and cutoff_len"
        raise Misused(what, fix)
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
        "metrics": told(found),
        "decoding": "greedy",
        "longest_answer_tokens": given.max_new_tokens,
        **({"confusion": confusion(ours, references, declared)} if labelled else {}),
    }


def told(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    return [{"title": name_of(each.name), **to_builtins(each)} for each in found]

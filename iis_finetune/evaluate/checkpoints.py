"""Which checkpoint of a run is the best on held-out rows, and which ones cannot be told apart from it."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from ..errors import Misused, RunFailed
from ..observe import held_out, losses_of
from ..plan.after import Trained
from ..runs import step_of, write_json
from . import result_of
from .answers import Evaluation, Material, answers, losses, material
from .compare import By, Comparison, compare, compare_losses
from .metrics import kind_of, row_values, score

Values = Sequence[float | None]
Weights = Sequence[int | None]


def compare_checkpoints(asked: Evaluation, last: int, by: By) -> dict[str, Any]:
    """Measure the last saved checkpoints, each against the best of them; returns what it writes beside the scores.

    `answers` is the share of an answer that is right, row by row. Raises Misused, ProblemsFound, RunFailed.
    """
    steps = [step_of(path) for path in asked.run.checkpoints()][-last:]
    if not steps:
        raise Misused(f"{asked.run.name} has no checkpoints", "a next run: save_steps=N, save_total_limit=M")
    sides = {step: replace(result_of(asked.run, step), name=f"checkpoint-{step}") for step in steps}
    given = material(asked, sides[steps[0]])
    values = {step: _values(asked, side, given, by) for step, side in sides.items()}
    found = {"data": asked.data, "by": by, **judged(values, list(given.slices.values()), by)}
    held = {row["step"]: row["value"] for row in found["checkpoints"] if row["value"] is not None}
    seen = held_out(losses_of(asked.run)[0], held) if by == "loss" else None
    rises = found["checkpoints"][-1]["verdict"] == "worse"
    found["overfits"] = seen.overfits if seen and rises else None
    write_json(asked.folder / "checkpoints.json", found)
    return found


def _values(asked: Evaluation, side: Trained, given: Material, by: By) -> Values:
    if by == "loss":
        return losses(asked, side, given)
    rows = answers(asked, side, given)
    texts, references = [row["predict"] for row in rows], [row["label"] for row in rows]
    return row_values(score(texts, references, asked.declared), kind_of(references, asked.declared))


def judged(values: Mapping[int, Values], weights: Weights, by: By) -> dict[str, Any]:
    """Each checkpoint's mean with its interval, its difference to the best, and which one to keep; raises RunFailed."""
    own = {step: _against([0.0] * len(each), each, weights, by) for step, each in values.items()}
    means = {step: each.tuned for step, each in own.items() if each.tuned is not None}
    if not means:
        raise RunFailed("no checkpoint could be measured: LLaMA-Factory gives no loss for these rows")
    best = min(means, key=lambda step: means[step] if by == "loss" else -means[step])
    paired = {step: _against(values[best], each, weights, by) for step, each in values.items()}
    verdicts = {step: "best" if step == best else each.verdict for step, each in paired.items()}
    rows = [
        {
            "step": step,
            "value": alone.tuned,
            "low": alone.low,
            "high": alone.high,
            "difference": (paired[step].low, paired[step].high),
            "verdict": verdicts[step],
        }
        for step, alone in own.items()
    ]
    keep = min(step for step, verdict in verdicts.items() if verdict in ("best", "cannot tell"))
    told = f"step {keep} and {best} cannot be told apart: keep the earlier?" if keep < best else f"best: step {best}"
    return {"checkpoints": rows, "best": best, "keep": keep, "told": told}


def _against(one: Values, other: Values, weights: Weights, by: By) -> Comparison:
    return compare_losses(one, other, weights)[0] if by == "loss" else compare({by: [*one]}, {by: [*other]})[0]

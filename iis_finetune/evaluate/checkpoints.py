"""Which checkpoint of a run is the best on held-out rows, and which ones cannot be told apart from it."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import to_builtins
from msgspec.structs import replace

from ..errors import Misused, RunFailed
from ..observe import held_out, losses_of
from ..runs import step_of, write_json
from . import result_of
from .answers import Evaluation, losses, material
from .compare import FEWEST_ROWS, compare_losses, weighted


def compare_checkpoints(asked: Evaluation, last: int) -> dict[str, Any]:
    """The loss of the last saved checkpoints, each against the best of them, kept beside the scores."""
    steps = [step_of(path) for path in asked.run.checkpoints()][-last:]
    if not steps:
        raise Misused(f"{asked.run.name} has no checkpoints", "a next run: save_steps=N, save_total_limit=M")
    sides = {step: replace(result_of(asked.run, step), name=f"checkpoint-{step}") for step in steps}
    given = material(asked, sides[steps[0]])
    measured = {step: losses(asked, side, given) for step, side in sides.items()}
    found = {"data": asked.data, **judged(measured, list(given.slices.values()))}
    means = {each["step"]: each["alone"]["tuned"] for each in found["checkpoints"]}
    seen = held_out(losses_of(asked.run)[0], means) if found["checkpoints"][-1]["verdict"] == "worse" else None
    found["overfits"] = seen.overfits if seen else None
    write_json(asked.folder / "checkpoints.json", found)
    return found


def judged(measured: Mapping[int, Sequence[float | None]], rows: Sequence[int | None]) -> dict[str, Any]:
    """Each checkpoint's loss with its interval, its difference to the best's, and which one to keep."""
    means = {step: weighted(each, rows) for step, each in measured.items()}
    known = [(mean, step) for step, mean in means.items() if mean is not None]
    if len(known) < len(means):
        raise RunFailed("LLaMA-Factory gives no loss for these rows")
    best = min(known)[1]
    alone = {step: compare_losses([0.0] * len(each), each, rows)[0] for step, each in measured.items()}
    against = {step: compare_losses(measured[best], each, rows)[0] for step, each in measured.items()}
    checkpoints = [
        {
            "step": step,
            "verdict": "best" if step == best else against[step].verdict,
            "alone": to_builtins(alone[step]),
            "against_best": to_builtins(against[step]),
        }
        for step in measured
    ]
    equal = ["best", *["cannot tell"] * (len(rows) >= FEWEST_ROWS)]
    keep = next(each["step"] for each in checkpoints if each["verdict"] in equal)
    told = f"step {keep} and {best} cannot be told apart: keep the earlier?" if keep != best else f"best: step {best}"
    return {"checkpoints": checkpoints, "best": best, "keep": keep, "told": told}

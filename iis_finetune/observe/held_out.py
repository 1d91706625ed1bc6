"""The loss on held-out rows while a run trains: the newest, the best so far, and whether the run over-fits."""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from msgspec import Struct

from ..runs import Run, read_lines
from .signs import number

ByStep = dict[int, float]
LEAST_LOOKS, LEAST_RISE = 2, 0.01  # after the best one, and above it: less is chance


class HeldOut(Struct, frozen=True):
    """The newest loss on held-out rows and the best one, and in words; `overfits` is None while nothing says so."""

    step: int
    loss: float
    best_step: int
    best_loss: float
    overfits: str | None
    told: str


def take(line: Mapping[str, Any], trained: ByStep, held: ByStep) -> None:
    """Add a line of the trainer's log to the losses; what an attempt logged that was gone back behind is dropped."""
    step = number(line.get("current_steps")) or 0
    for key, losses in (("loss", trained), ("eval_loss", held)) if step else ():
        while losses and next(reversed(losses)) > step - (key in line):
            losses.popitem()
        loss = number(line.get(key))
        if loss is not None and math.isfinite(loss):
            losses[int(step)] = loss


def losses_of(run: Run) -> tuple[ByStep, ByStep]:
    """A run's training and held-out losses by step, in order."""
    trained, held = ByStep(), ByStep()
    for line in read_lines(run.trainer_log):
        take(line, trained, held)
    return trained, held


def held_out(trained: ByStep, held: ByStep) -> HeldOut | None:
    """What the losses by step say so far; it over-fits when held-out loss rises for a while and training loss falls."""
    if not held:
        return None
    last, best = max(held), min(held, key=lambda step: (held[step], step))
    before = [loss for step, loss in trained.items() if 2 * best - last < step <= best]  # as many steps on both sides
    later = [loss for step, loss in trained.items() if best < step <= last]
    rises = sum(step > best for step in held) >= LEAST_LOOKS and held[last] > held[best] * (1 + LEAST_RISE)
    overfits = None
    if rises and before and later and fmean(later) < fmean(before):
        rose, fell = f"{held[best]:.4g} -> {held[last]:.4g}", f"{fmean(before):.4g} -> {fmean(later):.4g}"
        overfits = f"over-fitting since step {best}: held-out loss {rose}, training loss {fell}"
    told = f"held-out loss {held[last]:.4g} at step {last}, best {held[best]:.4g} at step {best}"
    told += f"\nwarning: {overfits}" if overfits else ""
    return HeldOut(last, held[last], best, held[best], overfits, told)

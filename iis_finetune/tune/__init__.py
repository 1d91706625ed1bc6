"""Short real trainings of a recipe on this machine: what its settings cost, and the best of them kept for the plan."""

import datetime
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..machine import Row
from ..plan.measured import ACCUMULATION, MICRO_BATCH, global_batch, key_of, now_of
from ..preflight import Examined, Question
from ..runs import Measured, load, save
from .levers import levers_for, typed
from .search import CardFault, Search
from .trial import Bench, bench, words_of

TRIALS = "trials.jsonl"  # in the folder of what was measured: what each trial gave
Tell = Callable[[dict[str, Any]], None]


def tune(asked: tuple[Question, Examined, Path | None], levers: Sequence[Row], minutes: float, tell: Tell) -> Measured:
    """Search, and keep the best; the third asked is what `words_of` gives, `tell` gets each row of the table.

    Raises CardFault, RunFailed and ProblemsFound; what finished trials gave stays known.
    """
    (question, examined, words), began = asked, time.monotonic()
    folder = question.workspace.measured
    with bench(question, examined, words) as at:
        search = Search(at, folder / TRIALS, minutes, tell)
        search.start()
        before = _before(folder, at)
        if before and not search.again(before.settings):
            return before
        for lever in levers:
            search.pull(lever)
        search.settle()
    found = _measured(at.examined, search, (time.monotonic() - began) / 60)
    save(folder, found)
    return found


def _before(folder: Path, at: Bench) -> Measured | None:
    """What was found of this training before, where that is more than its start."""
    key, (rows, _) = key_of(at.examined.plan), load(folder)
    return next((row for row in rows if row.key == key and row.settings), None)


def _measured(examined: Examined, search: Search, minutes: float) -> Measured:
    plan, settings, best = examined.plan, dict(search.best.settings), search.best.whole
    if {MICRO_BATCH, "kit.devices"} & settings.keys():
        rows = settings.setdefault(MICRO_BATCH, plan.settings[MICRO_BATCH])
        settings[ACCUMULATION] = global_batch(plan) // (rows * settings.get("kit.devices", plan.processes))
    return Measured(
        key=key_of(plan),
        settings=settings,
        start_settings={name: now_of(plan, name) for name in settings},
        global_batch_size=global_batch(plan),
        seconds_per_step=best.seconds_per_step,
        start_seconds_per_step=search.accepted[0].whole.seconds_per_step,
        start_up_seconds=best.start_up_seconds,
        tokens_per_second=best.tokens_per_step / best.seconds_per_step,
        peak_gib=best.held_gib,
        measured_on=datetime.datetime.now().astimezone().date(),
        minutes=round(minutes, 1),
        trials=search.rows,
        dataset=plan.settings.names("dataset"),
        rows=examined.data[1] if examined.data else None,
    )

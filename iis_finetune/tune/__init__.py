"""Short real trainings of a recipe on this machine: what its settings cost, and the best of them kept for the plan."""

import datetime
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..machine import Row
from ..plan.measured import ACCUMULATION, MICRO_BATCH, key_of, now_of
from ..preflight import Examined, Question
from ..runs import Measured, save
from .levers import levers_for, typed
from .search import CardFault, Search
from .trial import bench

TRIALS = "trials.jsonl"  # in the folder of what was measured: what each trial gave


def tune(
    question: Question,
    examined: Examined,
    levers: Sequence[Row],
    limits: tuple[float, Callable[[dict[str, Any]], None]],
) -> Measured:
    """Search, hold the best to the gate, keep it. Raises RunFailed and ProblemsFound; what is known by then stays."""
    minutes, tell = limits
    began, folder, plan = time.monotonic(), question.workspace.measured, examined.plan
    with bench(question, examined) as at:
        search = Search(at, folder / TRIALS, minutes, tell)
        search.start()
        for lever in levers:
            search.pull(lever)
        search.settle()
        whole_batch = at.global_batch_size
    settings, best = dict(search.best.settings), search.best.whole
    if {MICRO_BATCH, "kit.devices"} & settings.keys():
        rows = settings.setdefault(MICRO_BATCH, plan.settings[MICRO_BATCH])
        rows *= settings.get("kit.devices", plan.processes)
        settings[ACCUMULATION] = whole_batch // rows
    measured = Measured(
        key=key_of(plan),
        settings=settings,
        start_settings={name: now_of(plan, name) for name in settings},
        global_batch_size=whole_batch,
        seconds_per_step=best.seconds_per_step,
        start_seconds_per_step=search.accepted[0].whole.seconds_per_step,
        start_up_seconds=best.start_up_seconds,
        tokens_per_second=best.tokens_per_step / best.seconds_per_step,
        peak_gib=best.held_gib,
        measured_on=datetime.datetime.now().astimezone().date(),
        minutes=round((time.monotonic() - began) / 60, 1),
        trials=search.rows,
        dataset=plan.settings.names("dataset"),
        rows=examined.data[1] if examined.data else None,
    )
    save(folder, measured)
    return measured

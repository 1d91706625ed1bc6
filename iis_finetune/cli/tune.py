"""The verb tune: short real trainings on this machine, the table of what they gave, the best."""

from typing import Annotated, Any

import typer
from msgspec import to_builtins
from msgspec.structs import replace

from .. import preflight, session
from .. import tune as tuning
from ..errors import INPUT, INTERRUPTED, MACHINE, Misused, ProblemsFound, exit_code
from ..plan.measured import stated
from ..process import ends_alike
from ..runs import Measured
from . import show
from .words import AsJson, Overrides, RecipeName, question, workspace
from .words import typed as as_typed

Minutes = Annotated[float, typer.Option("--minutes", min=0.1, metavar="N", help="How long it may take.")]
Levers = Annotated[
    str | None, typer.Option("--levers", metavar="A,B,..", help="Try these only; a wrong one lists those there are.")
]
HEAD = f"{'tokens/s':>9} {'peak GiB':>9} {'loss':>9} {'time left':>10}  trial"


def tune(
    recipe: RecipeName,
    overrides: Overrides = None,
    minutes: Minutes = 20.0,
    levers: Levers = None,
    as_json: AsJson = False,
) -> None:
    """Measure a recipe with short real trainings on this machine; `plan` and `train` then use the best."""
    asked = question(recipe, [*(overrides or ()), "kit.tuned=false"])
    with show.meter("reading rows") as progress:
        examined = preflight.examine(replace(asked, progress=progress))
    if exit_code(examined.problems) == INPUT:
        raise ProblemsFound(examined.problems)
    stage = examined.plan.settings["stage"]
    if stage == "ppo":
        raise Misused("stage ppo cannot be tuned: its steps are not the trainer's", "tune the stages before it")
    session.check_devices(examined, workspace())
    chosen = tuning.levers_for(examined.machine, stage, levers.split(",") if levers else ())
    ends_alike()
    tell = show.aside if as_json else show.line
    tell(f"{examined.recipe.name} on {examined.machine.title}: {', '.join(row['name'] for row in chosen)}\n{HEAD}")
    try:
        measured = tuning.tune(asked, examined, chosen, (minutes, lambda row: tell(_text(row))))
    except KeyboardInterrupt:
        show.aside("ended; what the finished trials gave is kept: the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    except tuning.CardFault as fault:
        show.aside(f"error: {fault}")
        raise typer.Exit(MACHINE) from None
    if as_json:
        show.document({"recipe": examined.recipe.name, "measured": to_builtins(measured)})
    else:
        _tell(examined, measured, as_typed(recipe, overrides))


def _text(row: dict[str, Any]) -> str:
    """A line of the table."""
    rate, peak, loss = (row.get(name) for name in ("tokens_per_second", "peak_gib", "loss_difference"))
    cells = (
        f"{rate:9.1f}" if rate else f"{'-':>9}",
        f"{peak:9.2f}" if peak else f"{'-':>9}",
        f"{loss:+9.0e}" if loss is not None else f"{'-':>9}",
        f"{show.duration(row['left_seconds']):>10}",
    )
    settings = ", ".join(f"{name}={value}" for name, value in row["settings"].items())
    return f"{' '.join(cells)}  {row['name']}{f' ({settings})' if settings else ''}: {row['verdict']}"


def _tell(examined: preflight.Examined, measured: Measured, command: str) -> None:
    faster = measured.start_seconds_per_step / measured.seconds_per_step
    show.line(
        f"a step of {measured.global_batch_size} rows: {measured.start_seconds_per_step:.3g} s as it stands, ",
    )
    show.line(f"{measured.seconds_per_step:.3g} s at best ({faster:.2f} times as fast)")
    words = " ".join(tuning.typed(measured.settings, examined.recipe))
    show.line(
        f"to have it by hand: {words}" if words else "nothing that was tried is better than the recipe as it stands"
    )
    for name in stated(examined.recipe, measured.settings):
        show.line(f"note: the recipe states {name}, which goes before what was measured: remove that line to use it")
    show.line(f"next: iis-finetune plan {command}")

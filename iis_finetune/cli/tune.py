"""The verb tune: short real trainings on this machine, the table of what they gave, the best."""

import contextlib
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from msgspec import to_builtins
from msgspec.structs import replace

from .. import preflight, report, session
from .. import tune as tuning
from ..errors import INPUT, INTERRUPTED, MACHINE, Misused, ProblemsFound, exit_code
from ..plan.measured import expected, key_of, stated
from ..process import ends_alike
from ..runs import Measured, matching, share
from . import show, words
from .meter import DownloadMeter
from .words import AsJson, Overrides, RecipeName

Minutes = Annotated[float, typer.Option("--minutes", min=0.1, metavar="N", help="How long it may take.")]
Levers = Annotated[str, typer.Option("--levers", metavar="A,B,..", help="Try these only; a wrong name lists them all.")]
Share = Annotated[str, typer.Option("--share", metavar="NAME", help="Print what was measured before, to be shared.")]

HEADER = f"""\
each row is a short real training; the first may take minutes, most of them to load the model
{"tokens/s":>10} {"peak GiB":>9} {"loss off":>8}  what was tried: what became of it; time left"""


def tune(
    recipe: RecipeName,
    overrides: Overrides = None,
    minutes: Minutes = 20.0,
    levers: Levers = "",
    share_as: Share = "",
    as_json: AsJson = False,
) -> None:
    """Measure a recipe with short real trainings on this machine; `plan` and `train` then use the best."""
    asked = words.question(recipe, [*(overrides or ()), "kit.tuned=false"])
    if share_as:
        _share(asked, share_as)
    examined = _examined(asked)
    named, tell = levers.split(",") if levers else (), show.aside if as_json else show.line
    chosen = tuning.levers_for(examined.machine, examined.plan.settings["stage"], named)
    tell(f"{examined.recipe.name} on {examined.machine.title}: {', '.join(row['name'] for row in chosen)}")
    ends_alike()
    try:
        words_of = _words(asked, examined, tell)
        tell(HEADER)
        measured = tuning.tune((asked, examined, words_of), chosen, minutes, lambda row: tell(_text(row)))
    except KeyboardInterrupt:
        show.aside("ended; what the finished trials gave is kept: the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    except tuning.CardFault as fault:
        show.aside(f"error: {fault}")
        raise typer.Exit(MACHINE) from None
    show.answer({"recipe": examined.recipe.name, "measured": to_builtins(measured)}, as_json)
    _tell(examined, measured, words.typed(recipe, overrides))


def page(recipe: str, overrides: Sequence[str]) -> tuple[str, str]:
    """The recipe's name, and the page of what was measured of it."""
    seen, row = _known(words.question(recipe, [*overrides, "kit.tuned=false"]), "--tuning")
    return seen.recipe.name, report.tuning(seen.recipe.name, row, seen.plan.memory.limit_gib)


def _share(asked: preflight.Question, by: str) -> NoReturn:
    """Print the row of this training as a file that others can use."""
    show.document(share(_known(asked, "--share")[1], by))
    show.aside("for iis_finetune/tables/measured/: read it, then see CONTRIBUTING.md")
    raise typer.Exit


def _known(asked: preflight.Question, word: str) -> tuple[preflight.Examined, Measured]:
    """What was measured on this machine of this training. Raises Misused."""
    seen = preflight.look(asked)
    match = matching((row for row in seen.plan.inputs.measured or () if not row.reported_by), key_of(seen.plan))
    if match is None or match[1]:
        why = f": {'; '.join(match[1])}" if match else ""
        what = f"nothing that fits was measured on this machine{why}"
        raise Misused(what, f"iis-finetune tune {shlex.quote(asked.recipe)}", word)
    return seen, match[0]


def _examined(asked: preflight.Question) -> preflight.Examined:
    """What is to be tuned; it need neither fit nor be downloaded. Raises ProblemsFound."""
    with show.meter("reading rows") as progress:
        examined = preflight.examine(replace(asked, progress=progress))
    if exit_code(examined.problems) == INPUT:
        raise ProblemsFound(examined.problems)
    if examined.plan.settings["stage"] == "ppo":
        raise Misused("stage ppo cannot be tuned: its steps are not the trainer's", "tune the stages before it")
    session.check_devices(examined, asked.workspace)
    return examined


def _words(asked: preflight.Question, examined: preflight.Examined, tell: Callable[[str], None]) -> Path | None:
    """The folder of the model's tokenizer, if it can be had; raises ProblemsFound where nothing is known without it."""
    try:
        with contextlib.closing(DownloadMeter(tell)) as meter:
            return tuning.words_of(asked, examined, meter)
    except ProblemsFound as absent:
        if not examined.model.shapes:
            raise
        tell(f"note: no tokenizer of {examined.model.name}: {absent.problems[0].what}")
        tell("note: one made from the rows stands in for it, so tokens are counted only about right")
        return None


def _text(row: dict[str, Any]) -> str:
    """A line of the table: rate, memory, the first loss against the start's, what was tried, the verdict."""
    figures = f"{'-':>10} {'-':>9} {'-':>8}"
    if "peak_gib" in row:
        figures = f"{row['tokens_per_second']:10.1f} {row['peak_gib']:9.2f} {row['loss_difference']:+8.0e}"
    tried = ", ".join(f"{name}={value}" for name, value in row["settings"].items()) or row["name"]
    return f"{figures}  {tried}: {row['verdict']}; {show.duration(row['left_seconds'])} left"


def _tell(examined: preflight.Examined, found: Measured, command: str) -> None:
    """Start against best, how to have it by hand, and what the recipe keeps from being used."""
    faster, rows = found.start_seconds_per_step / found.seconds_per_step, found.global_batch_size
    pair = f"{found.start_seconds_per_step:.3g} s as it stands, {found.seconds_per_step:.3g} s at best"
    show.line(f"a step of {rows} rows takes {pair}: {faster:.2f} times as fast")
    costs = (found.start_seconds_per_step, found.seconds_per_step)
    if lengths := [length for each in costs if (length := expected(examined.plan, found, each))]:
        before, after = (show.duration(seconds) for _, seconds in lengths)
        show.line(f"the whole recipe, of {lengths[0][0]} steps: {before} as it stands, {after} at best")
    by_hand = shlex.join(tuning.typed(found.settings, examined.recipe))
    show.line(f"by hand: {by_hand or 'nothing, it is best as it stands'}")
    for name in stated(examined.recipe, found.settings):
        show.line(f"note: the recipe states {name}, which goes before what was measured: remove that line to use it")
    show.line(f"next: iis-finetune plan {command}")

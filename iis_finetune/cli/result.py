"""How an ending is told: finished, stopped, failed, evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import evaluate
from ..errors import Place, Problem
from ..runs import Run, weights
from . import show


def tell(told: dict[str, Any], folder: Path) -> None:
    """Print one ending that a request told."""
    if "finished" in told:
        _finished(Run(folder / told["finished"]))
    elif "evaluated" in told:
        _evaluated(Run(folder / told["evaluated"]))
    elif "smoked" in told:
        run = Run(folder / told["smoked"])
        show.line(
            f"{run.recipe_name} went the whole way: what it stands on, its data, its arguments and its result fit"
        )
        show.line(f"next: iis-finetune train {run.recipe_name}")
    elif "stopped" in told:
        show.line(f"{told['stopped']}: stopped" + (f": {told['why']}" if told.get("why") else ""))
        show.line(f"next: iis-finetune resume {Run(folder / told['stopped']).number:04d}")
    elif "problems" in told:
        show.problems([problem(each) for each in told["problems"]], nothing_started=False)
    elif "failed" in told:
        _failed(told)


def problem(told: dict[str, Any]) -> Problem:
    """A problem as it was before it became JSON."""
    place = Place(told["file"], told["line"], told["key"])
    return Problem(told["what"], told["fix"], place, told["severity"], told["kind"])


def _finished(run: Run) -> None:
    show.line(f"{run.name}: finished")
    names = ", ".join(path.name for path in weights(run.output))
    show.line(f"  result: {run.output} ({names})")
    picture = run.output / "training_loss.png"
    if picture.is_file():
        show.line(f"  loss:   {picture}")
    text = run.recipe.read_text(encoding="utf-8")
    if "evaluate_after:" not in text and not run.smoke:
        merges = (run.output / "adapter_config.json").is_file()
        verb = "evaluate" if "eval_dataset:" in text else "export" if merges else "report"
        show.line(f"next: iis-finetune {verb} {run.number:04d}")


def _evaluated(run: Run) -> None:
    for text in evaluate.summary_lines(run):
        show.line(text)
    show.line(f"next: iis-finetune export {run.number:04d}")


def _failed(told: dict[str, Any]) -> None:
    for text in told.get("lines", ()):
        show.aside(f"  | {text}")
    if "problem" in told:
        show.problems([problem(told["problem"])], nothing_started=False)
    else:
        show.aside(f"error: {told['failed']}")
    show.aside(f"  log:   {told['log']}")

"""The verb export."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from .. import export as exporting
from .. import process, runs
from ..errors import COMMAND_LINE, Place, Problem, ProblemsFound
from . import show
from .tuned import Checkpoint, RunOrRecipe, tuned
from .words import AsJson

Dtype = Annotated[Literal["auto", "fp16", "bf16", "fp32"], typer.Option("--dtype", help="auto: that of the training.")]
To = Annotated[Path | None, typer.Option("--to", metavar="DIR", help="A new folder; else the run's own export/.")]


def export(
    run: RunOrRecipe, dtype: Dtype = "auto", to: To = None, checkpoint: Checkpoint = None, as_json: AsJson = False
) -> None:
    """Merge the adapter into its base, and prove that the result is the same model."""
    process.ends_alike()
    subject = tuned(run, checkpoint)
    own = subject.trained.arguments.get("export_dir")
    if to is None and subject.run is None and own is None:
        raise ProblemsFound([Problem("no folder to export to", "--to DIR", Place(COMMAND_LINE))])
    target = to or (subject.run.export if subject.run else Path(str(own)))
    replaced = to is None and subject.run is not None
    wanted = exporting.Export(target.absolute(), subject.environment, dtype, subject.run, replaced)
    show.aside(f"merging {subject.trained.name}, then comparing it with base and adapter ...")
    with runs.claimed(subject.run, "exported") if subject.run else nullcontext():
        made = exporting.export(subject.trained, wanted)
    show.problems(made.problems, nothing_started=False)
    if as_json:
        show.document({"folder": str(made.folder), "dtype": made.dtype, **made.found})
        return
    for text in [*_told(made), *([f"next: iis-finetune report {subject.name}"] if subject.run else [])]:
        show.line(text)


def _told(made: exporting.Exported) -> Iterator[str]:
    found, cost = made.found, made.found["rounding"]
    yield f"{made.folder}: {made.dtype}"
    yield f"  largest difference of a logit: {found['logit_difference']:.2g} (allowed: {found['tolerance']:.2g})"
    ties = f", {found['near_ties']} part at a near tie" if found["near_ties"] else ""
    yield f"  equal greedy answers:          {found['equal_texts']} of {found['texts']}{ties}"
    yield f"  equal tensors:                 {found['weights']['compared']}"
    if cost:
        yield f"what rounding to {made.dtype} itself costs, against float32:"
        yield f"  largest difference of a logit: {cost['logit_difference']:.2g}"
        yield f"  equal greedy answers:          {cost['equal_texts']} of {cost['texts']}"
        loss = "not known: evaluate the run first" if cost["loss"] is None else "{loss:.4f} -> {rounded_loss:.4f}"
        yield f"  loss on {cost['rows']:2} held-out rows:      {loss.format(**cost)}"

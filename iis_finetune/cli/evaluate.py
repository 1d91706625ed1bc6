"""The verb evaluate."""

from typing import Annotated, Any

import typer

from .. import evaluate as evaluation
from .. import process, runs, session
from .. import recipe as recipes
from ..errors import COMMAND_LINE, INTERRUPTED, Place, Problem, ProblemsFound
from ..plan import after
from ..runs import Run
from . import show
from .tuned import Checkpoint, environment_of, run_of
from .words import AsJson, RunName, workspace

Data = Annotated[str | None, typer.Option("--data", metavar="NAME", help="A registered data set of held-out rows.")]
Baseline = Annotated[str, typer.Option("--baseline", metavar="base|RUN|none", help="What it is compared with.")]
Labels = Annotated[str | None, typer.Option("--labels", metavar="A,B,..", help="The labels that answers may be.")]
LabelField = Annotated[str | None, typer.Option("--label-field", metavar="NAME", help="Field that holds the label.")]
Part = Annotated[int, typer.Option("--part", min=1, metavar="ROWS", help="Rows answered between two saves.")]


def evaluate(
    run: RunName,
    checkpoint: Checkpoint = None,
    data: Data = None,
    baseline: Baseline = evaluation.BASE,
    labels: Labels = None,
    label_field: LabelField = None,
    part: Part = evaluation.PART_ROWS,
    as_json: AsJson = False,
) -> None:
    """Base against tuned on held-out rows, each difference with its 95 % interval."""
    found = run_of(run, checkpoint)
    process.ends_alike()
    declared = evaluation.Declared(tuple(labels.split(",")) if labels else (), label_field)
    named, environment = _data(found, data), environment_of(found)
    against = _baseline(baseline)
    how: dict[str, Any] = {"checkpoint": checkpoint, "baseline": against, "declared": declared, "part_rows": part}
    with runs.claimed(found, "evaluated"):
        scores = _evaluated(evaluation.Evaluation(found, named, environment, **how))
    if as_json:
        show.document(scores)
        return
    for text in [*evaluation.summary_lines(found), f"next: iis-finetune export {found.number:04d}"]:
        show.line(text)


def _evaluated(asked: evaluation.Evaluation) -> dict[str, Any]:
    try:
        return evaluation.evaluate(asked)
    except KeyboardInterrupt:
        show.aside("the evaluation was ended; start it again to go on from here")
        raise typer.Exit(INTERRUPTED) from None


def _data(run: Run, given: str | None) -> str:
    kit = recipes.read(str(run.recipe))[0].kit if run.recipe.is_file() else None
    named = given or (kit.evaluate_after if kit else None) or after.read_arguments(run).get("eval_dataset")
    if named:
        return session.first_name(named)
    what = f"{run.name} names no held-out rows"
    fix = "--data NAME, a registered data set it has not seen; a next run: kit.evaluate_after=NAME, or val_size=0.1"
    raise ProblemsFound([Problem(what, fix, Place(COMMAND_LINE))])


def _baseline(text: str) -> Run | str | None:
    if text == "none":
        return None
    return text if text == evaluation.BASE else runs.finished_run(workspace(), text)

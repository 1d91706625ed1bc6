"""The verbs evaluate and report: what a run is worth, as lines and as a page."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec.structs import replace

from .. import evaluate as evaluation
from .. import process, runs, session
from .. import recipe as recipes
from .. import report as reporting
from ..errors import INTERRUPTED, Misused
from ..evaluate.checkpoints import compare_checkpoints
from ..plan import after
from ..runs import Run
from . import show
from .summary import tell_checkpoints, tell_evaluation
from .tuned import Checkpoint, environment_of, run_of
from .words import AsJson, RunName, run_names, workspace

Data = Annotated[str | None, typer.Option("--data", metavar="NAME", help="A registered data set of held-out rows.")]
Guard = Annotated[
    str | None, typer.Option("--guard", metavar="NAME", help="Instead: rows of something else. Did it forget?")
]
Baseline = Annotated[str, typer.Option("--baseline", metavar="base|RUN|none", help="What it is compared with.")]
Labels = Annotated[str | None, typer.Option("--labels", metavar="A,B,..", help="The labels that answers may be.")]
LabelField = Annotated[str | None, typer.Option("--label-field", metavar="NAME", help="Field that holds the label.")]
Part = Annotated[int, typer.Option("--part", min=1, metavar="ROWS", help="Rows answered between two saves.")]
Checkpoints = Annotated[
    bool, typer.Option("--checkpoints", help="Which saved checkpoint is best, and which are equal?")
]
Last = Annotated[int, typer.Option("--last", min=1, metavar="N", help="With --checkpoints: of how many, the newest.")]
By = Annotated[evaluation.By, typer.Option("--by", help="With --checkpoints: by the loss, or by the answers.")]
Names = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="One run, or several to compare.", autocompletion=run_names)
]
To = Annotated[
    Path | None,
    typer.Option("--to", metavar="FILE.html|DIR", help="Else report.html of the run, or of several a file in runs/."),
]


def evaluate(
    run: RunName,
    checkpoint: Checkpoint = None,
    data: Data = None,
    guard: Guard = None,
    baseline: Baseline = evaluation.BASE,
    labels: Labels = None,
    label_field: LabelField = None,
    part: Part = evaluation.PART_ROWS,
    checkpoints: Checkpoints = False,
    last: Last = 5,
    by: By = "loss",
    as_json: AsJson = False,
) -> None:
    """Base against tuned on held-out rows, each difference with its 95 % interval."""
    if guard and (data or baseline == "none"):
        raise Misused("--guard names the rows, and compares with a base", "leave out --data and --baseline none")
    found = runs.find(workspace(), run) if checkpoints else run_of(run, checkpoint)
    process.ends_alike()
    asked = evaluation.Evaluation(found, guard or _data(found, data), environment_of(found), checkpoint=checkpoint)
    declared = evaluation.Declared(tuple(labels.split(",")) if labels else (), label_field)
    asked = replace(asked, baseline=_baseline(baseline), declared=declared, part_rows=part)
    with _going_on(found):
        if checkpoints:
            _tell(found, compare_checkpoints(asked, last, by), as_json)
        else:
            margin = evaluation.MARGIN if guard else None
            _tell(found, evaluation.evaluate(replace(asked, margin=margin)), as_json)


@contextmanager
def _going_on(run: Run) -> Iterator[None]:
    """The run is held; what Ctrl-C ends goes on when it is started again."""
    try:
        with runs.claimed(run, "evaluated"):
            yield
    except KeyboardInterrupt:
        show.aside("the evaluation was ended; start it again to go on from here")
        raise typer.Exit(INTERRUPTED) from None


def _tell(run: Run, found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show.document(found)
    elif "checkpoints" in found:
        tell_checkpoints(run, found)
    else:
        tell_evaluation(run)


def _data(run: Run, given: str | None) -> str:
    kit = recipes.read(str(run.recipe))[0].kit if run.recipe.is_file() else None
    named = given or (kit.evaluate_after if kit else None) or after.read_arguments(run).get("eval_dataset")
    if named:
        return session.first_name(named)
    fix = "--data NAME, a registered data set it has not seen; a next run: kit.evaluate_after=NAME, or val_size=0.1"
    raise Misused(f"{run.name} names no held-out rows", fix)


def _baseline(text: str) -> Run | str | None:
    if text == "none":
        return None
    return text if text == evaluation.BASE else runs.finished_run(workspace(), text)


def report(names: Names, to: To = None) -> None:
    """One HTML page that needs no network: curves, decisions, events, metrics, answers side by side."""
    found = list(dict.fromkeys(runs.find(workspace(), name) for name in names))
    numbers = "-".join(f"{run.number:04d}" for run in found)
    target = found[0].report if len(found) == 1 else workspace().runs / f"report-{numbers}.html"
    if to is not None:
        target = to if to.suffix.lower() in (".html", ".htm") and not to.is_dir() else to / target.name
    page = reporting.page(found)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        runs.write(target, page)
    except OSError as error:
        raise Misused(f"'{target}' cannot be written: {error.strerror}", "give --to another place", "--to") from None
    show.line(f"{target}: {target.stat().st_size / 1024:.0f} KB")

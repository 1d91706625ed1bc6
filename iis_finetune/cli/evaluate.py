"""The verbs evaluate and report: what a run is worth, as lines and as a page."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec.structs import replace

from .. import evaluate as evaluation
from .. import process, runs, session
from .. import recipe as recipes
from .. import report as reporting
from ..errors import INTERRUPTED, KitError, Misused
from ..evaluate import Evaluation
from ..evaluate.checkpoints import compare_checkpoints
from ..evaluate.tasks import NAME, measure
from ..plan import after
from ..preflight import rows as of_recipe
from ..report import blind
from ..runs import Run
from . import show, tune
from .summary import tell_found
from .tuned import Checkpoint, environment_of, run_of
from .words import AsJson, RunName, question, run_named, run_names, workspace

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
Votes = Annotated[list[Path] | None, typer.Option("--votes", metavar="FILE...", help="What people's votes say.")]
Files = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="More votes, behind --votes FILE.")]
Tasks = Annotated[
    str | None, typer.Option("--tasks", metavar="A,B,..", help="Instead: lm_eval's tasks, or task files of your own.")
]
Include = Annotated[
    Path | None, typer.Option("--include", exists=True, metavar="DIR", help="Of --tasks: more of them.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="With --tasks: rows of each task.")]
Shots = Annotated[int | None, typer.Option("--shots", min=0, metavar="N", help="With --tasks: examples before a row.")]
Chat = Annotated[bool, typer.Option("--chat-template", help="With --tasks: in the tuned model's chat template.")]
Blind = Annotated[bool, typer.Option("--blind", help="Instead: a page to vote on, which names no model.")]
Tuning = Annotated[bool, typer.Option("--tuning", help="Instead: what `tune` measured of a RECIPE [k=v ...].")]
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
    votes: Votes = None,
    files: Files = None,
    tasks: Tasks = None,
    include: Include = None,
    limit: Limit = None,
    shots: Shots = None,
    chat: Chat = False,
    as_json: AsJson = False,
) -> None:
    """Base against tuned on held-out rows, each difference with its 95 % interval."""
    found = run_named(run) if checkpoints else run_of(run, checkpoint)
    data = NAME if tasks and not (data or guard) else _data(found, data, guard)
    asked = Evaluation(found, data, environment_of(found), checkpoint=checkpoint)
    declared = evaluation.Declared(tuple(labels.split(",")) if labels else (), label_field)
    asked = replace(asked, baseline=_baseline(baseline, guard), declared=declared, part_rows=part, guards=bool(guard))
    how = {"tasks": tasks, "include_path": include, "limit": limit, "num_fewshot": shots, "apply_chat_template": chat}
    with _going_on(found):
        scores = _scores(asked, how, last * checkpoints, [*(votes or ()), *(files or ())])
    show.document(scores) if as_json else tell_found(found, scores)


def _scores(asked: Evaluation, how: Mapping[str, Any], last: int, votes: Sequence[Path]) -> dict[str, Any]:
    """Of tasks, of people's votes, of the last checkpoints, else of base and tuned; raises Misused for two of them."""
    given = {"--tasks": how["tasks"], "--votes": votes, "--checkpoints": last}
    given["--data or --guard"] = how["tasks"] and asked.data != NAME
    jobs = [name for name, value in given.items() if value]
    if len(jobs) > 1:
        raise Misused(f"{' and '.join(jobs)} are different jobs", "ask for one at a time", jobs[1])
    if how["tasks"] is None and any(value is not None and value is not False for value in how.values()):
        raise Misused("--include, --limit, --shots and --chat-template are for --tasks", "add --tasks A,B", "--tasks")
    if how["tasks"]:
        return measure(asked, how, show.aside)
    if votes:
        return blind.count(votes, asked.run, asked.data, asked.baseline)
    return compare_checkpoints(asked, last) if last else evaluation.evaluate(asked)


@contextmanager
def _going_on(run: Run) -> Iterator[None]:
    """The run is held; what Ctrl-C ends goes on when it is started again."""
    process.ends_alike()
    try:
        with runs.claimed(run, "evaluated"):
            yield
    except KeyboardInterrupt:
        show.aside("the evaluation was ended; start it again to go on from here")
        raise typer.Exit(INTERRUPTED) from None


def _data(run: Run, given: str | None, guard: str | None = None) -> str:
    if given and guard:
        raise Misused("--data and --guard both name the rows", "give one of the two")
    kit = recipes.read(str(run.recipe))[0].kit if run.recipe.is_file() else None
    named = guard or given or (kit.evaluate_after if kit else None) or after.read_arguments(run).get("eval_dataset")
    if named:
        return session.first_name(named)
    fix = "--data NAME, a registered data set it has not seen; a next run: kit.evaluate_after=NAME, or val_size=0.1"
    raise Misused(f"{run.name} names no held-out rows", fix)


def _baseline(text: str, guard: str | None) -> Run | str | None:
    if text == "none" and guard:
        raise Misused("--guard says what was lost against a model", "leave --baseline none out", "--baseline")
    if text == "none":
        return None
    return text if text == evaluation.BASE else run_named(text, runs.finished_run)


def _lengths(run: Run) -> dict[str, list[tuple[float, float]]]:
    """How long the rows of each data set are that a run trained on; nothing where they cannot be read any more."""
    with show.meter("reading rows") as progress:
        try:
            told = of_recipe.measure(replace(question(str(run.recipe), None), progress=progress))
        except KitError:
            return {}
    return {name: each["bars"] for name, each in told["data"].items()} if told["unit"] == "tokens" else {}


def report(names: Names, to: To = None, blinded: Blind = False, data: Data = None, tuning: Tuning = False) -> None:
    """One HTML page that needs no network: curves, decisions, events, metrics, answers side by side."""
    if tuning:
        name, page = tune.page(names[0], names[1:])
        _written(workspace().measured / f"{name}.html", to, page)
        return
    found = list(dict.fromkeys(run_named(name) for name in names))
    numbers = "-".join(f"{run.number:04d}" for run in found)
    name, base = "blind" if blinded else "report", found[1] if len(found) > 1 else evaluation.BASE
    target = found[0].report.with_stem(name) if len(found) == 1 else workspace().runs / f"{name}-{numbers}.html"
    named = _data(found[0], data) if blinded else ""
    page = blind.ballot(found[0], named, base) if blinded else reporting.page(found, _lengths(found[0]))
    _written(target, to, page)
    if blinded:
        against = f" --baseline {found[1].number:04d}" if len(found) > 1 else ""
        read = f"iis-finetune evaluate {found[0].number:04d} --data {named}{against} --votes FILE..."
        show.line(f"send it to those who are to judge; what they save and send back is read by: {read}")


def _written(target: Path, to: Path | None, page: str) -> None:
    """Write a page to its own place, or to the one asked for."""
    if to is not None:
        target = to if to.suffix.lower() in (".html", ".htm") and not to.is_dir() else to / target.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        runs.write(target, page)
    except OSError as error:
        raise Misused(f"'{target}' cannot be written: {error.strerror}", "give --to another place", "--to") from None
    show.line(f"{target}: {target.stat().st_size / 1024:.0f} KB")

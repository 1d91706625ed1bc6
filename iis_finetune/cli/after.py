"""The verbs after training: evaluate, export, chat, serve, report."""

from __future__ import annotations

import ipaddress
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .. import evaluate as evaluation
from .. import export as exporting
from .. import launch, machine, process, runs
from .. import recipe as recipes
from .. import report as reporting
from ..errors import COMMAND_LINE, INTERRUPTED, RUN_FAILED, Place, Problem, ProblemsFound, RunFailed
from ..plan import after
from ..plan.after import Trained
from ..runs import Run
from ..supervise import Stop
from . import show
from .words import AsJson, RunName, first_name, workspace

RunOrRecipe = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's number, name, unique prefix, or `last`; or a YAML file.")
]
Checkpoint = Annotated[int | None, typer.Option("--checkpoint", metavar="STEP", help="A checkpoint, not the result.")]
Data = Annotated[str | None, typer.Option("--data", metavar="NAME", help="A registered data set of held-out rows.")]
Baseline = Annotated[str, typer.Option("--baseline", metavar="base|RUN|none", help="What it is compared with.")]
Labels = Annotated[str | None, typer.Option("--labels", metavar="A,B,..", help="The labels that answers may be.")]
LabelField = Annotated[str | None, typer.Option("--label-field", metavar="NAME", help="Field that holds the label.")]
Part = Annotated[int, typer.Option("--part", min=1, metavar="ROWS", help="Rows answered between two saves.")]
Dtype = Annotated[Literal["auto", "fp16", "bf16", "fp32"], typer.Option("--dtype", help="auto: that of the training.")]
To = Annotated[Path | None, typer.Option("--to", metavar="DIR", help="A new folder; else the run's own export/.")]
Host = Annotated[str, typer.Option("--host", help="The address to listen at; another than this machine needs a key.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="The port to listen at.")]
Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="One run, or several to compare.")]


@dataclass(frozen=True)
class Subject:
    """A finished run, or a YAML file that names a model: what is loaded and in which environment."""

    trained: Trained
    environment: Mapping[str, str]
    run: Run | None = None

    @property
    def name(self) -> str:
        return f"{self.run.number:04d}" if self.run else self.trained.name


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
    found = _run(run, checkpoint)
    stop = Stop()
    stop.install()
    declared = evaluation.Declared(tuple(labels.split(",")) if labels else (), label_field)
    named, environment = _data(found, data), _environment(found)
    wanted = evaluation.Wanted(named, environment, stop, checkpoint, _baseline(baseline), declared, part_rows=part)
    scores = _evaluated(found, wanted)
    if as_json:
        show.document(scores)
        return
    for text in [*evaluation.summary_lines(found), f"next: iis-finetune export {found.number:04d}"]:
        show.line(text)


def _evaluated(run: Run, wanted: evaluation.Wanted) -> dict[str, Any]:
    try:
        return evaluation.evaluate(run, wanted)
    except RunFailed as failed:
        if wanted.stop.asked != "SIGINT":
            raise
        show.aside(str(failed))
        raise typer.Exit(INTERRUPTED) from None


def _run(name: str, checkpoint: int | None) -> Run:
    """A checkpoint is there before a run has finished."""
    return runs.find(workspace(), name) if checkpoint is not None else runs.finished_run(workspace(), name)


def _data(run: Run, given: str | None) -> str:
    kit = recipes.read(str(run.recipe))[0].kit if run.recipe.is_file() else None
    named = given or (kit.evaluate_after if kit else None) or after.read_arguments(run).get("eval_dataset")
    if named:
        return first_name(named)
    what = f"{run.name} names no held-out rows"
    raise ProblemsFound([Problem(what, "--data NAME, a data set of data/dataset_info.json", Place(COMMAND_LINE))])


def _baseline(text: str) -> Run | str | None:
    if text == "none":
        return None
    return text if text == evaluation.BASE else runs.finished_run(workspace(), text)


def _environment(run: Run | None) -> dict[str, str]:
    """That of the run's own training; for a YAML file what this machine needs."""
    host = machine.detect(environment=os.environ)
    if run:
        chosen = (runs.read_json(run.decisions) or {}).get("environment", {})
    else:
        decided = machine.decide_environment(host, 1)
        chosen = {each.name.removeprefix("environment."): str(each.value) for each in decided}
        chosen["PYTHONPATH"] = (
            str(launch.KIT / "hook" / "torchaudio_placeholder") if host.torchaudio_placeholder else ""
        )
    return launch.child_environment(host, os.environ, chosen)


def _subject(name: str, checkpoint: int | None = None) -> Subject:
    if Path(name).suffix in recipes.SUFFIXES:
        return _from_file(name)
    run = _run(name, checkpoint)
    result = run.output / f"checkpoint-{checkpoint}" if checkpoint is not None else run.result
    if not result.is_dir():
        what = f"{run.name} has no checkpoint {checkpoint}"
        there = ", ".join(str(runs.step_of(path)) for path in run.checkpoints()) or "none"
        raise ProblemsFound([Problem(what, f"checkpoints: {there}", Place(COMMAND_LINE, key="--checkpoint"))])
    return Subject(after.trained_by(run, result), _environment(run), run)


def _from_file(name: str) -> Subject:
    """LLaMA-Factory's own export or inference YAML: its model and adapters as they are named there."""
    recipe, _ = recipes.read(name, (), workspace().recipes)
    values = {key: entry.value for key, entry in recipe.entries.items() if entry.value is not None}
    if "model_name_or_path" not in values:
        place = Place(str(recipe.path))
        raise ProblemsFound([Problem("no model_name_or_path", "name the model to load", place)])
    weights = after.base_weights(values)
    named = (weights.model, *weights.adapters)
    model, *adapters = (str(Path(each).absolute()) if Path(each).exists() else each for each in named)
    trained = Trained(recipe.name, values, after.Weights(model, tuple(adapters)))
    return Subject(trained, _environment(None))


def export(
    run: RunOrRecipe, dtype: Dtype = "auto", to: To = None, checkpoint: Checkpoint = None, as_json: AsJson = False
) -> None:
    """Merge the adapter into its base, and prove that the result is the same model."""
    subject = _subject(run, checkpoint)
    own = subject.trained.arguments.get("export_dir")
    if to is None and subject.run is None and own is None:
        raise ProblemsFound([Problem("no folder to export to", "--to DIR", Place(COMMAND_LINE))])
    target = to or (subject.run.export if subject.run else Path(str(own)))
    replaced = to is None and subject.run is not None
    wanted = exporting.Wanted(target.absolute(), subject.environment, dtype, subject.run, replaced)
    show.aside(f"merging {subject.trained.name}, then comparing it with base and adapter ...")
    made = exporting.export(subject.trained, wanted)
    show.problems(made.problems, nothing_started=False)
    if as_json:
        show.document({"folder": str(made.folder), "dtype": made.dtype, **made.found})
        return
    found = made.found
    show.line(f"{made.folder}: {made.dtype}")
    show.line(f"  largest difference of a logit: {found['logit_difference']:.2g} (allowed: {found['tolerance']:.2g})")
    ties = f", {found['near_ties']} part at a near tie" if found["near_ties"] else ""
    show.line(f"  equal greedy answers:          {found['equal_texts']} of {found['texts']}{ties}")
    show.line(f"  equal tensors:                 {found['weights']['compared']}")
    if subject.run:
        show.line(f"next: iis-finetune report {subject.name}")


def chat(run: RunOrRecipe, checkpoint: Checkpoint = None) -> None:
    """Talk to the tuned model in this terminal; `exit` or Ctrl-D ends it."""
    subject = _subject(run, checkpoint)
    kit = {"PYTHONPATH": str(launch.KIT.parent), "LLAMAFACTORY_VERBOSITY": "WARN"}
    words = [sys.executable, "-m", "iis_finetune.probe.chat", "arguments.yaml"]
    raise typer.Exit(_attached(words, subject, kit))


def serve(run: RunOrRecipe, host: Host = "127.0.0.1", port: Port = 8000, checkpoint: Checkpoint = None) -> None:
    """An OpenAI-style server of the tuned model; the key is taken from $API_KEY."""
    if not loopback(host) and not os.environ.get("API_KEY"):
        what = f"'{host}' can be reached from other machines, and there is no API key"
        fix = "export API_KEY=... (anything long), or --host 127.0.0.1"
        raise ProblemsFound([Problem(what, fix, Place(COMMAND_LINE, key="--host"))])
    subject = _subject(run, checkpoint)
    show.line(f"serving {subject.trained.name} at http://{host}:{port}/v1 (Ctrl-C ends it)")
    chosen = after.server_environment(host, port, subject.trained.name)
    raise typer.Exit(_attached(launch.program("api", "arguments.yaml"), subject, chosen))


def loopback(host: str) -> bool:
    """Whether only this machine can reach an address; names other than localhost are not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _attached(words: list[str], subject: Subject, chosen: Mapping[str, str]) -> int:
    with tempfile.TemporaryDirectory(prefix="iis-finetune-") as folder:
        runs.write(Path(folder) / "arguments.yaml", launch.yaml_text(after.converse(subject.trained)))
        own = after.one_process(subject.environment)
        path = ":".join(filter(None, [chosen.get("PYTHONPATH"), own["PYTHONPATH"]]))
        code = process.attached(words, {**own, **chosen, "PYTHONPATH": path}, Path(folder))
    return RUN_FAILED if code > 0 else 0


def report(names: Runs, to: To = None) -> None:
    """One HTML page that needs no network: curves, decisions, events, metrics, answers side by side."""
    found = [runs.find(workspace(), name) for name in names]
    target = to or found[0].report
    if target.is_dir():
        target = target / "report.html"
    runs.write(target, reporting.page(found))
    show.line(f"{target}: {target.stat().st_size / 1024:.0f} KB")

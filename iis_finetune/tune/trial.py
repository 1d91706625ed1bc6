"""One trial: a real training of a few steps in a child, what it cost, and what became of it."""

import math
import signal
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from .. import arguments, hub, launch, models, observe, preflight, process, runs
from ..errors import Problem, ProblemsFound, errors_of
from ..plan.measured import MICRO_BATCH, global_batch
from ..preflight import Examined, Question
from ..recover import cause_in
from ..runs import Run, Workspace
from ..tables import read
from .levers import Settings, typed
from .rows import HELD_OUT, SHORT, TIMED, lay_out

UNTIMED = 2  # steps, which warm up; the first has the longest rows
MOST_ROWS, HELD_OUT_ROWS = 16, 16  # of a process in a step; a larger batch costs that many times as much
SHALLOW, DEPTHS, QUALITY = 12, (4, 12), 2  # layers: up to so many, the whole; of more for their cost; for their quality
LOG_BYTES = 262_144


class Trial(Struct, frozen=True):
    """Settings that differ from the recipe's, the layers of the model, what for, the rows of a step (0: the bench's).

    `repeat` is the how many-th of its kind it is.
    """

    settings: Settings
    layers: int
    purpose: Literal["time", "quality"] = "time"
    repeat: int = 0
    rows: int = 0


class Figures(Struct, frozen=True, kw_only=True):
    """What became of a trial; `trouble` is None where its last step was done.

    A step is one of the optimizer at the recipe's global batch; `noise` is how far a token's time is uncertain, as a
    share; `held_gib` the most that a device held, or a process on a CPU; tokens are counted without padding.
    """

    trouble: str | None = None
    why: str | None = None
    seconds_per_step: float = math.inf
    noise: float = 0.0
    tokens_per_step: float = 0.0
    start_up_seconds: float = 0.0
    took_seconds: float = 0.0
    held_gib: float = 0.0
    losses: tuple[float, ...] = ()
    held_out: float | None = None


class Bench(Struct, frozen=True):
    """Where trials are made: the recipe as it stands, a workspace of their own, the rows of a trial's step."""

    question: Question
    examined: Examined
    workspace: Workspace
    rows: int
    words: Path | None  # the folder of the model's configuration and tokenizer

    @property
    def layers(self) -> int:
        return self.examined.model.shapes.layers if self.examined.model.shapes else 0

    @property
    def depths(self) -> tuple[int, ...]:
        """How many layers trials of the cost have: two numbers, or all of a small or quantised model."""
        return (self.layers,) if self.layers <= SHALLOW or self.examined.model.quantization else DEPTHS

    @property
    def quality_layers(self) -> int:
        return QUALITY if len(self.depths) > 1 else self.layers


def words_of(question: Question, examined: Examined, report: hub.Report) -> Path | None:
    """The folder of the model's configuration and tokenizer, fetched without the weights where it is not on disk.

    Raises ProblemsFound where no hub gives them.
    """
    recipe, model = examined.recipe, examined.model
    if model.folder or recipe.kit.from_scratch or recipe.kit.base:
        return model.folder
    to, revision = question.workspace.measured / "models", recipe.value("model_revision")
    order = hub.ModelOrder(model.name, to, False, revision, recipe.kit.source, chosen_by="kit.source=", texts=True)
    return hub.fetch(order, question.environment, report).folder


def _described(examined: Examined, words: Path) -> Examined:
    """What is known once the model's own configuration is here; its weights are not."""
    model = replace(models.look(str(words), words.parent), name=examined.model.name, folder=None)
    return replace(
        examined, model=model, plan=replace(examined.plan, inputs=replace(examined.plan.inputs, model=model))
    )


@contextmanager
def bench(question: Question, examined: Examined, words: Path | None = None) -> Iterator[Bench]:
    """A bench in a scratch folder, which goes with it. Raises ProblemsFound where no model can be made.

    `words` is the folder of the model's tokenizer; without one trials have a tokenizer made from the rows.
    """
    if words and not examined.model.shapes:
        examined = _described(examined, words)
    model, processes, steps = examined.model, examined.plan.processes, read("tune.toml")["trial"]
    if not model.shapes or (model.quantization and not model.folder):
        what = f"the shape of '{model.name}' is not known here, or its weights are quantised and not here"
        raise ProblemsFound([Problem(what, f"iis-finetune download {model.name}", kind="missing")])
    micro, whole = examined.plan.settings[MICRO_BATCH], global_batch(examined.plan)
    most = max(MOST_ROWS, micro) * processes
    rows = next(n for n in range(min(most, whole), 0, -1) if whole % n == 0 and n % (micro * processes) == 0)
    counts = {TIMED: rows * steps["time"]["max_steps"], SHORT: rows * steps["quality"]["max_steps"]}
    question.workspace.measured.mkdir(parents=True, exist_ok=True)
    with process.scratch_folder(question.workspace.measured) as own:
        places = {"models": own / "models", "runs": own / "runs", "measured_in": own / "measured"}
        workspace = replace(question.workspace, root=own, before=None, **places)
        sources = preflight.sources_of(examined, question)
        lay_out(sources, {**counts, HELD_OUT: HELD_OUT_ROWS}, rows, workspace.data)
        yield Bench(question, examined, workspace, rows, words or model.folder)


def try_out(at: Bench, trial: Trial, limit_seconds: float) -> Figures:
    """Train, watch, end: what it cost, or what went wrong; nothing of it runs when this returns."""
    began = time.time()
    examined = preflight.examine(_asked(at, trial))
    if wrong := errors_of(examined.problems):
        return Figures(trouble="refused", why=wrong[0].what)
    run = runs.create(at.workspace, "trial")
    if examined.plan.view_of:
        models.precision_view(examined.plan.view_of, examined.plan.precision, at.workspace.models)
    launch.rewrite(run, examined, at.workspace, {})
    decided = runs.read_decided(run) or runs.Decided()
    own = launch.child_environment(examined.machine, at.question.environment, decided.environment)
    started = time.time()
    child = launch.start(run, {**own, "IIS_TRIAL": "1"}, run.arguments, bound=True)
    try:
        code = _watch(run, child, started + limit_seconds)
    finally:
        who = process.identity(child.pid)
        process.end(process.tree(who) if who else [], 2)
        child.wait()
    figures = _judge(run, code, global_batch(at.examined.plan) / at.rows, started)
    return replace(figures, took_seconds=time.time() - began)


def _asked(at: Bench, trial: Trial) -> Question:
    """The recipe made a trial's: the same training but for its length, its rows and what it says beside."""
    recipe, settings, rows = at.examined.recipe, at.examined.plan.settings, read("tune.toml")["trial"]
    given = {"kit.global_batch_size": trial.rows or at.rows, MICRO_BATCH: settings[MICRO_BATCH], **rows["every"]}
    given |= {**rows[trial.purpose], "model_name_or_path": str(_model(at, trial.layers)), "dataset": _named(at, TIMED)}
    if trial.purpose == "quality":
        rate = rows["rate"][settings["finetuning_type"]]
        given |= {"learning_rate": rate, "dataset": _named(at, SHORT), "eval_dataset": _named(at, HELD_OUT)}
    # A sampler of its own is LLaMA-Factory's only where it may shuffle.
    given |= {**trial.settings, "disable_shuffling": "train_sampling_strategy" not in trial.settings}
    unset = {key: None for key in rows["unset"] if recipe.states(key)}
    words = (*at.question.overrides, *typed({**unset, **given}, recipe))
    about = {"overrides": words, "workspace": at.workspace, "rows": False, "machine": at.examined.machine}
    return replace(at.question, recipe=str(recipe.path.absolute()), **about)


def _named(at: Bench, kind: str) -> str:
    return ",".join(path.stem for path in sorted(at.workspace.data.glob(f"{kind}_*.json")))


def _model(at: Bench, layers: int) -> Path:
    """The model's own folder where all its layers are asked for; else one of its widths with random weights."""
    model = at.examined.model
    if model.folder and layers == at.layers:
        return model.folder.absolute()
    folder = at.workspace.models / f"{layers}-layers"
    if not folder.is_dir():
        template = arguments.find_template(str(at.examined.plan.settings["template"]))
        texts = sorted(at.workspace.data.glob(f"{TIMED}_*.json"))
        spec = models.smoke_spec(replace(model, folder=at.words), template.tokens if template else (), texts, folder)
        spec["config"] = models.with_layers(model.config, layers)
        file = at.workspace.root / f"{folder.name}.json"
        launch.make_scratch(spec, file, at.examined.machine, at.question.environment)
    return folder


def _lines(run: Run) -> list[Mapping[str, Any]]:
    return list(runs.read_lines(run.folder / "trial.jsonl"))


def _watch(run: Run, child: process.Child, until: float) -> int | Literal["late", "not finite"]:
    """The exit code, or why it was not waited for."""
    while (code := process.ended(child, 0.2)) is None:
        if not all(math.isfinite(line.get("loss", 0.0)) for line in _lines(run)):
            return "not finite"
        if time.time() > until:
            return "late"
    return code


def _judge(run: Run, code: int | str, larger: float, started: float) -> Figures:
    """The figures of a batch so many times larger, or the trouble; the kernel kills for memory without a word."""
    steps = [line for line in _lines(run) if "step" in line]
    if not all(math.isfinite(line["loss"]) for line in steps):
        return Figures(trouble="not finite", why=f"the loss of step {len(steps)} is not a number")
    if code == "late":
        return Figures(trouble="stall", why=f"{len(steps)} steps in {time.time() - started:.0f} s")
    if code == -signal.SIGKILL:
        return Figures(trouble="out of memory", why="killed, as the kernel does when the computer's memory is full")
    if code != 0 or len(steps) <= UNTIMED:
        why = observe.raised(run.log) or f"exit code {code}"
        cause, line = cause_in(observe.tail(run.log, LOG_BYTES)) or ("crash", why)
        return Figures(trouble=cause, why=line)
    timed = steps[UNTIMED:]
    seconds = [later["at"] - before["at"] for before, later in zip(steps[UNTIMED - 1 :], timed, strict=False)]
    each = [taken / max(line["tokens"], 1) for taken, line in zip(seconds, timed, strict=True)]
    tokens = statistics.mean(max(line["tokens"], 1) for line in timed)
    return Figures(
        seconds_per_step=statistics.median(each) * tokens * larger,
        noise=statistics.pstdev(each) / statistics.mean(each) / math.sqrt(len(each)),
        tokens_per_step=tokens * larger,
        start_up_seconds=steps[0]["at"] - started,
        held_gib=max(line["held_gib"] for line in steps),
        losses=tuple(line["loss"] for line in steps),
        held_out=next((line["held_out"] for line in reversed(_lines(run)) if "held_out" in line), None),
    )

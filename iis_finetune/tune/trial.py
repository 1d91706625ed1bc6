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

from .. import arguments, launch, models, observe, preflight, process, runs
from ..errors import Problem, ProblemsFound, errors_of
from ..plan.measured import MICRO_BATCH, global_batch
from ..preflight import Examined, Question
from ..recover import cause_in
from ..runs import Run, Workspace
from .levers import Settings, typed
from .rows import HELD_OUT, SHORT, TIMED, lay_out

UNTIMED, TIMED_STEPS, QUALITY_STEPS = 2, 3, 20
MOST_ROWS, HELD_OUT_ROWS = 16, 16  # of a process in a step; a larger batch costs that many times as much
SHALLOW, DEPTHS = 6, (2, 4)  # a model of at most so many layers is measured whole; of a larger one these many
LOG_BYTES = 262_144
SET = {"logging_steps": 1, "save_strategy": "no", "plot_loss": False, "report_to": "none"}
TIMING = {**SET, "max_steps": UNTIMED + TIMED_STEPS, "disable_shuffling": True}
QUALITY = {**SET, "max_steps": QUALITY_STEPS, "disable_shuffling": True, "lr_scheduler_type": "constant"}
QUALITY |= {"warmup_steps": 0, "warmup_ratio": 0.0, "lora_dropout": 0.0, "per_device_eval_batch_size": 1}
QUALITY |= {"eval_strategy": "steps", "eval_steps": QUALITY_STEPS}
# Rates at which twenty steps teach something: a gate that cannot tell trained from not trained would be none.
RATES = {"full": 2e-4, "freeze": 2e-4}
ADAPTER_RATE = 2e-3
UNSET = (
    *("kit.base", "kit.reward", "kit.from_scratch", "kit.evaluate_after", "kit.notify", "num_train_epochs"),
    *("adapter_name_or_path", "ref_model", "ref_model_adapters", "reward_model", "tokenized_path", "model_revision"),
    *(
        "gradient_accumulation_steps",
        "val_size",
        "eval_dataset",
        "do_eval",
        "eval_steps",
        "eval_strategy",
        "eval_delay",
    ),
    *("predict_with_generate", "compute_accuracy", "load_best_model_at_end", "early_stopping_steps", "push_to_hub"),
    *("max_samples", "streaming", "buffer_size", "mix_strategy", "interleave_probs", "save_steps", "save_total_limit"),
)


class Trial(Struct, frozen=True):
    """Settings that differ from the recipe's, the layers of the model, what for, and the how many-th of its kind."""

    settings: Settings
    layers: int
    purpose: Literal["time", "quality"] = "time"
    repeat: int = 0


class Tried(Struct, frozen=True, kw_only=True):
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
    global_batch_size: int

    @property
    def layers(self) -> int:
        return self.examined.model.shapes.layers if self.examined.model.shapes else 0

    @property
    def depths(self) -> tuple[int, ...]:
        """How many layers trials have: two numbers, or all of a small or quantised model."""
        return (self.layers,) if self.layers <= SHALLOW or self.examined.model.quantization else DEPTHS


@contextmanager
def bench(question: Question, examined: Examined) -> Iterator[Bench]:
    """A bench in a scratch folder, which goes with it. Raises ProblemsFound where no model can be made."""
    model, processes = examined.model, examined.plan.processes
    if not model.shapes or (model.quantization and not model.folder):
        what = f"the shape of '{model.name}' is not known here, or its weights are quantised and not here"
        raise ProblemsFound([Problem(what, f"iis-finetune download {model.name}", kind="missing")])
    micro, whole = examined.plan.settings[MICRO_BATCH], global_batch(examined.plan)
    most = max(MOST_ROWS, micro) * processes
    rows = next(n for n in range(min(most, whole), 0, -1) if whole % n == 0 and n % (micro * processes) == 0)
    counts = {TIMED: rows * (UNTIMED + TIMED_STEPS), SHORT: rows * QUALITY_STEPS, HELD_OUT: HELD_OUT_ROWS}
    question.workspace.measured.mkdir(parents=True, exist_ok=True)
    with process.scratch_folder(question.workspace.measured) as own:
        places = {"models": own / "models", "runs": own / "runs", "measured_in": own / "measured"}
        workspace = replace(question.workspace, root=own, before=None, **places)
        lay_out(preflight.sources_of(examined, question), counts, rows, workspace.data)
        yield Bench(question, examined, workspace, rows, whole)


def try_out(at: Bench, trial: Trial, limit_seconds: float) -> Tried:
    """Train, watch, end: what it cost, or what went wrong; nothing of it runs when this returns."""
    began = time.time()
    examined = preflight.examine(_asked(at, trial))
    if wrong := errors_of(examined.problems):
        return Tried(trouble="refused", why=wrong[0].what)
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
    return replace(_judge(run, code, at, started), took_seconds=time.time() - began)


def _asked(at: Bench, trial: Trial) -> Question:
    """The recipe made a trial's: the same training but for its length, its rows and what it says beside."""
    recipe, settings = at.examined.recipe, at.examined.plan.settings
    given: dict[str, Any] = {"kit.global_batch_size": at.rows, MICRO_BATCH: settings[MICRO_BATCH]}
    given |= {"model_name_or_path": str(_model(at, trial.layers))}
    if trial.purpose == "quality":
        rate = RATES.get(settings["finetuning_type"], ADAPTER_RATE)
        given |= {**QUALITY, "learning_rate": rate, "dataset": _named(at, SHORT), "eval_dataset": _named(at, HELD_OUT)}
    else:
        given |= {**TIMING, "dataset": _named(at, TIMED)}
    given |= trial.settings
    given |= {"disable_shuffling": False} if "train_sampling_strategy" in given else {}
    unset = {key: None for key in UNSET if recipe.states(key)}
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
        spec = models.smoke_spec(model, template.tokens if template else (), texts, folder)
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


def _judge(run: Run, code: int | str, at: Bench, started: float) -> Tried:
    lines = _lines(run)
    steps = [line for line in lines if "step" in line]
    tried = Tried(losses=tuple(line["loss"] for line in steps))
    if not all(map(math.isfinite, tried.losses)):
        return replace(tried, trouble="not finite", why=f"the loss of step {len(steps)} is not a number")
    if code == "late":
        return replace(tried, trouble="stall", why=f"{len(steps)} steps in {time.time() - started:.0f} s")
    if code != 0 or len(steps) <= UNTIMED:
        cause, line = cause_in(observe.tail(run.log, LOG_BYTES)) or _unnamed(run, code)
        return replace(tried, trouble=cause, why=line)
    seconds = [later["at"] - before["at"] for before, later in zip(steps[UNTIMED - 1 :], steps[UNTIMED:], strict=False)]
    tokens = [max(line["tokens"], 1) for line in steps[UNTIMED:]]
    each = [taken / count for taken, count in zip(seconds, tokens, strict=True)]
    larger = at.global_batch_size / at.rows
    return replace(
        tried,
        seconds_per_step=statistics.mean(seconds) * larger,
        noise=statistics.pstdev(each) / statistics.mean(each) / math.sqrt(len(each)),
        tokens_per_step=statistics.mean(tokens) * larger,
        start_up_seconds=steps[0]["at"] - started,
        held_gib=max(line["held_gib"] for line in steps),
        held_out=next((line["held_out"] for line in reversed(lines) if "held_out" in line), None),
    )


def _unnamed(run: Run, code: int | str) -> tuple[str, str]:
    """A trouble that no known words in the log name; the kernel kills for memory without a word."""
    if code == -signal.SIGKILL:
        return "out of memory", "killed, as the kernel does when the computer's memory is full"
    return "crash", observe.raised(run.log) or f"exit code {code}"

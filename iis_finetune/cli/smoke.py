"""`train --smoke`: a recipe's whole path on this machine's CPU, with its model shrunken to almost nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from .. import arguments, evaluate, export, models, preflight
from ..errors import FINE, Problem, ProblemsFound
from ..plan import after
from ..preflight import Examined, Question
from ..recipe import Recipe
from ..runs import Request, Run
from ..supervise import Stop
from . import bringup, resuming
from .words import first_name

FOLDER = "@smoke"
HELD_OUT = 4
AT_MOST = {"cutoff_len": (512, 512), "per_device_train_batch_size": (4, 1)}  # limit, and what it is when not stated
SET = {  # what makes it short, whatever the recipe says
    "max_samples": 16,
    "max_steps": 5,
    "logging_steps": 1,
    "save_steps": 5,
    "gradient_accumulation_steps": 2,
    "max_new_tokens": 16,
}
# What the recipe may say that a CPU, or a model of random weights, has no use for.
UNSET = (
    *("kit.base", "kit.reward", "kit.from_scratch", "kit.global_batch_size", "kit.devices", "kit.env"),
    *("kit.precision", "kit.attention", "kit.launcher", "kit.evaluate_after", "kit.notify"),
    *("bf16", "fp16", "pure_bf16", "tf32", "flash_attn", "deepspeed", "fsdp", "fsdp_config", "ddp_timeout"),
    *("adapter_name_or_path", "ref_model", "ref_model_adapters", "tokenized_path", "warmup_steps", "report_to"),
    *("model_revision", "use_unsloth", "enable_liger_kernel", "eval_steps", "save_total_limit"),
    *("streaming", "buffer_size", "preprocessing_batch_size", "preprocessing_num_workers"),
)


def overrides_of(recipe: Recipe, folder: Path) -> tuple[str, ...]:
    """What a recipe's smoke run changes of it, as overrides."""
    unset = [f"{key}=null" for key in UNSET if recipe.states(key)]
    stated, _ = arguments.check(recipe.entries.values(), arguments.table(recipe.value("stage")))
    least = {key: min(limit, stated.get(key) or default) for key, (limit, default) in AT_MOST.items()}
    held_out = {"val_size": HELD_OUT} if (stated.get("val_size") or 0) > 1 else {}
    given = {**SET, **least, **held_out, "model_name_or_path": str(folder)}
    return (*unset, *(f"{key}={value}" for key, value in given.items()))


def without_devices(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which this machine is its CPU alone."""
    return {**environment, **dict.fromkeys(after.VISIBLE, "-1")}


def run(request: Request, question: Question, stop: Stop) -> int:
    """Shrink the model, train, evaluate, export and compare; each through the code that the real run takes."""
    examined = preflight.look(question)
    folder = _make_model(request, examined, question)
    scored: tuple[str, ...] = ()
    if examined.reward:
        first = replace(question, recipe=str(examined.reward.recipe.path), overrides=())
        reward = bringup.bring_up(request, _shrunken(first, examined.reward.recipe, folder), stop)
        code = bringup.outcome(request, reward, stop)
        if code != FINE:
            return code
        kind = "full" if examined.reward.whole else "lora"
        scored = (f"reward_model={reward.result.resolve()}", f"reward_model_type={kind}")
    small = _shrunken(question, examined.recipe, folder, scored)
    made = bringup.bring_up(request, small, stop)
    code = bringup.outcome(request, made, stop)
    if code == FINE:
        _evaluate(request, made, examined.recipe, small, stop)
        _export(request, made, small)
    return code


def _shrunken(question: Question, recipe: Recipe, folder: Path, more: tuple[str, ...] = ()) -> Question:
    words = (*question.overrides, *overrides_of(recipe, folder), *more)
    return replace(question, overrides=words, environment=without_devices(question.environment), smoke=True)


def _make_model(request: Request, examined: Examined, question: Question) -> Path:
    facts = examined.model
    if not facts.config:
        what = f"the shape of '{facts.name}' is not known here: it is neither on disk nor in the built-in table"
        fix = f"iis-finetune download {facts.name}"
        raise ProblemsFound([Problem(what, fix, examined.recipe.place("model_name_or_path"), kind="missing")])
    name = Path(facts.name).name if preflight.looks_local(facts.name) else facts.name.replace("/", "--")
    folder = question.workspace.models / f"{name}{FOLDER}"
    template = arguments.find_template(str(examined.plan.arguments.get("template")))
    words = template.tokens if template else ()
    texts = [file for source in resuming.sources_of(examined, question) for file in source.files]
    request.tell(phase=f"shrinking {facts.name} to {folder}")
    bringup.make_scratch(request, models.smoke_spec(facts, words, texts, folder), question)
    return folder


def _evaluate(request: Request, made: Run, recipe: Recipe, small: Question, stop: Stop) -> None:
    """The held-out rows the recipe names; the training's own rows, seen already, serve as well here."""
    stage = recipe.value("stage", "sft")
    answers = stage in ("sft", "pt")  # the other stages' own data sets are pairs and marks
    data = recipe.kit.evaluate_after or (recipe.value("eval_dataset") or recipe.value("dataset") if answers else None)
    if not data or stage == "rm":
        request.tell(phase="evaluation left out: the recipe names no held-out rows with one answer each")
        return
    name = first_name(data)
    request.tell(phase=f"evaluating base and tuned on {name}", run=made.name)
    evaluate.evaluate(made, evaluate.Wanted(name, resuming.environment_of(made, small), stop))


def _export(request: Request, made: Run, small: Question) -> None:
    request.tell(phase="merging, and comparing the merged model with base and adapter")
    trained = after.trained_by(made, made.result)
    wanted = export.Wanted(made.export.absolute(), resuming.environment_of(made, small), run=made, replace=True)
    export.export(trained, wanted)
    request.tell(smoked=made.name)

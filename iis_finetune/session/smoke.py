"""`train --smoke`: all that a recipe's run does, on this machine's CPU, with its model made very small."""

from collections.abc import Mapping
from pathlib import Path

from .. import arguments, evaluate, export, launch, models, preflight
from ..errors import FINE, Problem, ProblemsFound, errors_of
from ..plan import after
from ..preflight import Examined
from ..recipe import Recipe
from ..runs import Run
from .bringup import Session, brought_up
from .supervision import environment_of, tell_ending

FOLDER = "@smoke"
HELD_OUT = 4
AT_MOST = {"cutoff_len": 512, "per_device_train_batch_size": 4}
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
    *("kit.precision", "kit.attention", "kit.launcher", "kit.evaluate_after", "kit.guard", "kit.notify"),
    *("bf16", "fp16", "pure_bf16", "tf32", "flash_attn", "deepspeed", "fsdp", "fsdp_config", "ddp_timeout"),
    *("adapter_name_or_path", "ref_model", "ref_model_adapters", "tokenized_path", "warmup_steps", "report_to"),
    *("model_revision", "use_unsloth", "enable_liger_kernel", "eval_steps", "save_total_limit"),
    *("streaming", "buffer_size", "preprocessing_batch_size", "preprocessing_num_workers"),
)


def overrides_of(recipe: Recipe, folder: Path) -> tuple[str, ...]:
    """The overrides that turn a recipe into its smoke run."""
    unset = [f"{key}=null" for key in UNSET if recipe.states(key)]
    settings, _ = arguments.settings_of(recipe)
    least = {key: min(limit, settings[key]) for key, limit in AT_MOST.items()}
    held_out = {"val_size": HELD_OUT} if settings["val_size"] > 1 else {}
    given = {**SET, **least, **held_out, "model_name_or_path": str(folder)}
    return (*unset, *(f"{key}={value}" for key, value in given.items()))


def without_devices(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with every accelerator hidden."""
    return {**environment, **dict.fromkeys(after.VISIBLE, "-1")}


def run(session: Session) -> int:
    """Shrink the model, train, evaluate, export and compare, each with the code of a real run."""
    examined = preflight.examine(session.question)
    folder = _make_model(session, examined)
    scored: tuple[str, ...] = ()
    if examined.reward:
        recipe = examined.reward.recipe
        first = session.about(recipe=str(recipe.path), overrides=())
        with brought_up(_shrunken(first, recipe, folder)) as (scorer, _):
            reward = scorer.run
            code = tell_ending(session.request, reward, session.stop)
        if code != FINE:
            return code
        kind = "full" if examined.reward.whole else "lora"
        scored = (f"reward_model={reward.result.resolve()}", f"reward_model_type={kind}")
    small = _shrunken(session, examined.recipe, folder, scored)
    with brought_up(small) as (claim, of_small):
        made = claim.run
        code = tell_ending(session.request, made, session.stop)
        if code == FINE:
            environment = environment_of(made, of_small.machine, small.question.environment)
            claim.tell("evaluated")
            _evaluate(session, made, examined, environment)
            _export(session, made, environment)
            session.tell(smoked=made.name, refused=bool(errors_of(examined.problems)))
    return code


def _shrunken(session: Session, recipe: Recipe, folder: Path, more: tuple[str, ...] = ()) -> Session:
    words = (*session.question.overrides, *overrides_of(recipe, folder), *more)
    return session.about(overrides=words, environment=without_devices(session.question.environment), smoke=True)


def _make_model(session: Session, examined: Examined) -> Path:
    facts, question = examined.model, session.question
    if not facts.config:
        what = f"the shape of '{facts.name}' is not known here: it is neither on disk nor in the built-in table"
        fix = f"iis-finetune download {facts.name}"
        raise ProblemsFound([Problem(what, fix, examined.recipe.place("model_name_or_path"), kind="missing")])
    name = Path(facts.name).name if preflight.looks_local(facts.name) else facts.name.replace("/", "--")
    folder = question.workspace.models / f"{name}{FOLDER}"
    template = arguments.find_template(str(examined.plan.arguments.get("template")))
    words = template.tokens if template else ()
    texts = [file for source in preflight.sources_of(examined, question) for file in source.files]
    session.tell(phase=f"shrinking {facts.name} to {folder}")
    spec = models.smoke_spec(facts, words, texts, folder)
    launch.make_scratch(spec, session.request.folder / "scratch.json", examined.machine, question.environment)
    return folder


def _evaluate(session: Session, made: Run, examined: Examined, environment: Mapping[str, str]) -> None:
    """Evaluate on the held-out rows, else on the training rows: a smoke run shows only that it works."""
    recipe, stage = examined.recipe, examined.plan.settings["stage"]
    answers = stage in ("sft", "pt")  # the other stages' own data sets are pairs and marks
    data = recipe.kit.evaluate_after or (recipe.value("eval_dataset") or recipe.value("dataset") if answers else None)
    if not data or stage == "rm":
        session.tell(phase="evaluation left out: the recipe names no held-out rows with one answer each")
        return
    name = first_name(data)
    session.tell(phase=f"evaluating base and tuned on {name}", run=made.name)
    evaluate.evaluate(evaluate.Evaluation(made, name, environment, session.stop))


def _export(session: Session, made: Run, environment: Mapping[str, str]) -> None:
    session.tell(phase="merging, and comparing the merged model with base and adapter")
    wanted = export.Export(made.export.absolute(), environment, run=made, replace=True)
    export.export(after.trained_by(made, made.result), wanted)


def first_name(named: str | list[str]) -> str:
    """The first of the data sets that an argument names, as a list or with commas."""
    return str(named[0] if isinstance(named, list) else named).split(",")[0].strip()

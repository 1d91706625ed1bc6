"""The steps that choose precision, attention, batch, output and environment variables of any training."""

from dataclasses import replace

from ..arguments import LLAMAFACTORY, version_of
from ..decision import Decision
from ..errors import Problem
from ..machine import decide_attention, decide_environment, decide_precision
from ..models import Base
from .draft import Draft

ATTENTIONS = ("disabled", "sdpa", "fa2")  # LLaMA-Factory's flash_attn has the same names
PRECISION_SWITCHES = ("pure_bf16", "bf16", "fp16")
HOOK = "{kit}/hook"
AUDIO_PLACEHOLDER = "{kit}/hook/torchaudio_placeholder"
PPO_ENVIRONMENT = "{ppo}"


def precision(draft: Draft) -> Draft:
    """Decide the precision (fp32, fp16, bf16 or as-saved) and write it as LLaMA-Factory's switches."""
    stated = draft.stated(*PRECISION_SWITCHES)
    clash = draft.clash(stated, "precision")
    wanted, key = str(draft.recipe.kit.precision), "kit.precision"
    if stated and not clash:
        wanted, key = _stated_precision(draft, stated)
    decision, problems = decide_precision(draft.machine, wanted)
    chosen = str(decision.value)
    draft = replace(draft.complain(*clash).take(decision, problems, key), precision=chosen)
    if not draft.settings["pure_bf16"]:
        draft = draft.write(bf16=chosen == "bf16", fp16=chosen == "fp16")
    if chosen == "bf16" and draft.machine.accelerator == "cpu":
        draft = draft.choose("use_cpu", True, "transformers accepts bf16 without a GPU only when told to use the CPU")
    return draft


def _stated_precision(draft: Draft, stated: list[str]) -> tuple[str, str]:
    for switch in stated:
        if draft.settings[switch]:
            return switch.removeprefix("pure_"), switch
    if {"bf16", "fp16"} <= set(stated):
        return "fp32", "fp16"  # both switched off: the user means FP32, which LLaMA-Factory alone does not give
    return "auto", stated[0]


def attention(draft: Draft) -> Draft:
    """Decide the attention implementation and write it as flash_attn."""
    stated = draft.stated("flash_attn")
    clash = draft.clash(stated, "attention")
    wanted, key = str(draft.recipe.kit.attention), "kit.attention"
    if stated and not clash:
        wanted, key = draft.settings["flash_attn"], "flash_attn"
    draft = draft.complain(*clash)
    if wanted not in ("auto", *ATTENTIONS):
        return replace(draft, attention=wanted)  # fa3: the rules say what becomes of it
    decision, problems = decide_attention(draft.machine, draft.precision, wanted)
    chosen = str(decision.value)
    return replace(draft.take(decision, problems, key).write(flash_attn=chosen), attention=chosen)


def micro_batch(draft: Draft) -> Draft:
    """Choose the rows that a device computes at a time, where only the global batch is stated."""
    if draft.recipe.kit.global_batch_size is None:
        return draft
    return draft.choose("per_device_train_batch_size", 1, "the smallest: accumulation makes up the global batch")


def accumulation(draft: Draft) -> Draft:
    """Compute the accumulation from the global batch: micro-batch x accumulation x processes."""
    wanted, micro = draft.recipe.kit.global_batch_size, draft.settings["per_device_train_batch_size"]
    if wanted is None or micro < 1:  # below 1 is an error of its own
        return draft
    step = micro * draft.launcher.processes
    if draft.stated("gradient_accumulation_steps"):
        return draft.complain(*_batch_clash(draft, wanted, step))
    processes = f"{draft.launcher.processes} process{'es' * (draft.launcher.processes > 1)}"
    if wanted % step:
        nearest = [size for size in (wanted // step * step, (wanted // step + 1) * step) if size]
        what = f"a global batch of {wanted} is not a multiple of micro-batch {micro} x {processes}"
        fix = f"kit.global_batch_size: {' or '.join(map(str, nearest))}"
        return draft.complain(Problem(what, fix, draft.recipe.place("kit.global_batch_size")))
    reason = f"{micro} a device x {processes} x {wanted // step} = global batch {wanted}"
    return draft.choose("gradient_accumulation_steps", wanted // step, reason)


def _batch_clash(draft: Draft, wanted: int, step: int) -> list[Problem]:
    steps = draft.settings["gradient_accumulation_steps"]
    if steps * step == wanted:
        return []
    there = draft.recipe.place("kit.global_batch_size")
    what = f"accumulation {steps} x {step} makes a batch of {steps * step}, not {wanted} ({there})"
    return [Problem(what, "keep one of the two lines", draft.recipe.place("gradient_accumulation_steps"))]


FORCED = (
    ("output_dir", "{run}/output", "every run has a folder of its own"),
    ("overwrite_output_dir", False, "the folder is new, nothing is overwritten"),
    ("resume_from_checkpoint", None, "a run starts fresh; `resume RUN` continues one"),
)
CHOSEN = (
    ("dataset_dir", "{data}", "data/ below the current folder"),
    ("plot_loss", True, "a picture of the loss beside the result"),
    ("include_num_input_tokens_seen", True, "tokens per second in the progress and the report"),
    ("disable_gradient_checkpointing", False, "about 30 % slower for about half the activation memory"),
    ("logging_nan_inf_filter", False, "a loss that is not a number is shown as such, not as 0"),
    ("report_to", "none", "nothing leaves this machine unless the recipe names a tracker"),
)
# The variable, the run's own folder that it names, why; the last one is for a run that reports to TensorBoard.
FOLDERS = (
    (
        "HF_DATASETS_CACHE",
        "{run}/cache",
        "the data cache is keyed on path and time: in the run's own folder, an edited file is always read anew",
    ),
    ("TENSORBOARD_LOGGING_DIR", "{run}/tensorboard", "the curves of all attempts of a run lie together"),
)


def output(draft: Draft) -> Draft:
    """The run's own output folder, and what makes its result readable and repeatable."""
    for row in FORCED:
        draft = draft.force(*row)
    for row in CHOSEN:
        draft = draft.choose(*row)
    if draft.settings["pissa_init"] and not draft.settings["pissa_convert"]:
        # LLaMA-Factory's default, the fast decomposition, draws at random and cannot be made again.
        reason = "the exact decomposition: a resume, a chat and the export start from the same"
        draft = draft.choose("pissa_iter", -1, reason)
    return draft


def environment(draft: Draft) -> Draft:
    """The machine's variables, the kit's own, and over them `kit.env`."""
    decided = decide_environment(draft.machine, draft.launcher.here, draft.launcher.processes)
    variables = {each.name.removeprefix("environment."): str(each.value) for each in decided}
    paths = [HOOK, *([AUDIO_PLACEHOLDER] if draft.machine.torchaudio_placeholder else [])]
    variables |= {"PYTHONPATH": ":".join(paths), "IIS_RUN": "{run}", "IIS_PRECISION": draft.precision}
    draft = draft.export(variables).note(*decided)
    for name, folder, reason in FOLDERS if "tensorboard" in draft.settings.names("report_to") else FOLDERS[:1]:
        draft = draft.export({name: folder}).note(Decision(f"environment.{name}", folder, "kit default", reason))
    for name, value in draft.recipe.kit.env.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        draft = draft.export({name: text}).keep(f"environment.{name}", text, "kit.env")
    return _ppo(draft, draft.inputs.reward) if draft.settings["stage"] == "ppo" else draft


def _ppo(draft: Draft, reward: Base | None) -> Draft:
    """Name the environment that has a LLaMA-Factory which can, and the result that `kit.reward` stands for."""
    # VIRTUAL_ENV is what activating an environment sets: its programs come first on PATH.
    draft = draft.export({"VIRTUAL_ENV": PPO_ENVIRONMENT, "IIS_STAGE": "ppo"})
    able = version_of("ppo")
    reason = f"LLaMA-Factory {LLAMAFACTORY} cannot run PPO; {able} can, in an environment of its own (make setup-ppo)"
    draft = draft.note(Decision("environment.VIRTUAL_ENV", PPO_ENVIRONMENT, "kit default", reason))
    if reward is None:
        return draft
    draft = draft.note(Decision("reward", reward.recipe.name, "recipe", "named by kit.reward"))
    draft = draft.write(reward_model_type="full" if reward.whole else "lora")
    if reward.whole or reward.adapters:
        draft = draft.write(reward_model=str(reward.model if reward.whole else reward.adapters[-1]))
    return draft

"""The steps that choose where a training starts, its precision, attention, batch, output and environment."""

from pathlib import Path

from msgspec.structs import replace

from ..arguments import LLAMAFACTORY, version_of
from ..decision import Decision
from ..errors import Problem
from ..machine import decide_attention, decide_environment, decide_precision
from ..models import Base, needs_view, view_path
from ..rules import needs_reference
from ..runs import Workspace
from ..tables import read
from .record import Plan

ATTENTIONS = ("disabled", "sdpa", "fa2")  # LLaMA-Factory's flash_attn has the same names
HOOK = "{kit}/hook"
AUDIO_PLACEHOLDER = "{kit}/hook/torchaudio_placeholder"
PPO_ENVIRONMENT = "{ppo}"


def precision(plan: Plan) -> Plan:
    """Decide the precision (fp32, fp16, bf16 or as-saved) and write it as LLaMA-Factory's switches."""
    plan, stated = plan.heard("precision")
    wanted, key = _stated_precision(plan, stated) if stated else (str(plan.recipe.kit.precision), "kit.precision")
    decision, problems = decide_precision(plan.machine, wanted)
    chosen = str(decision.value)
    plan = replace(plan.take(decision, problems, key), precision=chosen)
    if not plan.settings["pure_bf16"]:
        plan = plan.write(bf16=chosen == "bf16", fp16=chosen == "fp16")
    if chosen == "bf16" and plan.machine.accelerator == "cpu":
        plan = plan.choose("use_cpu", True, "transformers accepts bf16 without a GPU only when told to use the CPU")
    return plan


def _stated_precision(plan: Plan, stated: list[str]) -> tuple[str, str]:
    for switch in stated:
        if plan.settings[switch]:
            return switch.removeprefix("pure_"), switch
    if {"bf16", "fp16"} <= set(stated):
        return "fp32", "fp16"  # both switched off: the user means FP32, which LLaMA-Factory alone does not give
    return "auto", stated[0]


def attention(plan: Plan) -> Plan:
    """Decide the attention implementation and write it as flash_attn."""
    plan, stated = plan.heard("attention")
    key = "flash_attn" if stated else "kit.attention"
    wanted = plan.settings["flash_attn"] if stated else str(plan.recipe.kit.attention)
    if wanted not in ("auto", *ATTENTIONS):
        return replace(plan, attention=wanted)  # fa3: the rules say what becomes of it
    decision, problems = decide_attention(plan.machine, plan.precision, wanted)
    chosen = str(decision.value)
    return replace(plan.take(decision, problems, key).write(flash_attn=chosen), attention=chosen)


def micro_batch(plan: Plan) -> Plan:
    """Choose the rows that a device computes at a time, where only the global batch is stated."""
    if plan.recipe.kit.global_batch_size is None:
        return plan
    return plan.choose("per_device_train_batch_size", 1, "the smallest: accumulation makes up the global batch")


def accumulation(plan: Plan) -> Plan:
    """Compute the accumulation from the global batch: micro-batch x accumulation x processes."""
    wanted, micro = plan.recipe.kit.global_batch_size, plan.settings["per_device_train_batch_size"]
    if wanted is None or micro < 1:  # below 1 is an error of its own
        return plan
    step = micro * plan.processes
    if plan.stated("gradient_accumulation_steps"):
        return plan.complain(*_batch_clash(plan, wanted, step))
    processes = f"{plan.processes} process{'es' * (plan.processes > 1)}"
    if wanted % step:
        nearest = [size for size in (wanted // step * step, (wanted // step + 1) * step) if size]
        what = f"a global batch of {wanted} is not a multiple of micro-batch {micro} x {processes}"
        fix = f"kit.global_batch_size: {' or '.join(map(str, nearest))}"
        return plan.complain(Problem(what, fix, plan.recipe.place("kit.global_batch_size")))
    reason = f"{micro} a device x {processes} x {wanted // step} = global batch {wanted}"
    return plan.choose("gradient_accumulation_steps", wanted // step, reason)


def _batch_clash(plan: Plan, wanted: int, step: int) -> list[Problem]:
    steps = plan.settings["gradient_accumulation_steps"]
    if steps * step == wanted:
        return []
    there = plan.recipe.place("kit.global_batch_size")
    what = f"accumulation {steps} x {step} makes a batch of {steps * step}, not {wanted} ({there})"
    return [Problem(what, "keep one of the two lines", plan.recipe.place("gradient_accumulation_steps"))]


def output(plan: Plan) -> Plan:
    """The run's own output folder, and what makes its result readable and repeatable."""
    for row in read("kit_defaults.json")["arguments"]:
        decide = plan.force if row.get("forced") else plan.choose
        plan = decide(row["name"], row["value"], row["reason"])
    if plan.settings["pissa_init"] and not plan.settings["pissa_convert"]:
        # LLaMA-Factory's default, the fast decomposition, draws at random and cannot be made again.
        reason = "the exact decomposition: a resume, a chat and the export start from the same"
        plan = plan.choose("pissa_iter", -1, reason)
    return plan


def environment(plan: Plan) -> Plan:
    """The machine's variables, the kit's own, and over them `kit.env`."""
    decided = decide_environment(plan.machine, plan.launch.here, plan.processes)
    variables = {each.name.removeprefix("environment."): str(each.value) for each in decided}
    paths = [HOOK, *([AUDIO_PLACEHOLDER] if plan.machine.torchaudio_placeholder else [])]
    variables |= {"PYTHONPATH": ":".join(paths), "IIS_RUN": "{run}", "IIS_PRECISION": plan.precision}
    plan = plan.export(variables).note(*decided)
    for row in read("kit_defaults.json")["variables"]:
        if row.get("with") in (None, *plan.settings.names("report_to")):
            plan = plan.export_for(row["reason"], row["name"], row["value"])
    for name, value in plan.recipe.kit.env.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        plan = plan.export({name: text}).keep(f"environment.{name}", text, "kit.env")
    return _ppo(plan, plan.inputs.reward) if plan.settings["stage"] == "ppo" else plan


def _ppo(plan: Plan, reward: Base | None) -> Plan:
    """Name the environment that has a LLaMA-Factory which can, and the result that `kit.reward` stands for."""
    able = version_of("ppo")
    reason = f"LLaMA-Factory {LLAMAFACTORY} cannot run PPO; {able} can, in an environment of its own (make setup-ppo)"
    # VIRTUAL_ENV is what activating an environment sets: its programs come first on PATH.
    plan = plan.export_for(reason, "VIRTUAL_ENV", PPO_ENVIRONMENT).export({"IIS_STAGE": "ppo"})
    if reward is None:
        return plan
    plan = plan.note(Decision("reward", reward.recipe.name, "recipe", "named by kit.reward"))
    plan = plan.write(reward_model_type="full" if reward.whole else "lora")
    if reward.whole or reward.adapters:
        plan = plan.write(reward_model=str(reward.model if reward.whole else reward.adapters[-1]))
    return plan


def starting_point(plan: Plan) -> Plan:
    """Write where the model is read from; `view_of` is the folder that a precision view has to be made of."""
    inputs, settings = plan.inputs, plan.settings
    name = inputs.model.name  # a hub's, or the path of a folder that kit.base has still to make
    expected = inputs.workspace.models / (name if Path(name).is_absolute() else name.replace("/", "--"))
    folder = inputs.workspace.root / (inputs.model.folder or expected)
    # A full training keeps FP32 weights under bf16 or fp16 autocast: rounding them first would only lose digits.
    whole = settings["finetuning_type"] == "full" and plan.precision != "fp32"
    view = needs_view(inputs.model, plan.precision) and not whole
    path = view_path(folder, plan.precision, inputs.workspace.models) if view else folder
    placed = _placed(path, inputs.workspace)
    if inputs.base:
        plan = plan.note(Decision("base", inputs.base.recipe.name, "recipe", "named by kit.base"))
    plan = plan.write(model_name_or_path=placed)
    if inputs.base and not inputs.base.whole:
        plan = _adapters(plan, inputs.base)
    if not view:
        return plan
    held = inputs.model.dtype or "a precision that is not known here"
    reason = f"the checkpoint holds {held}; LLaMA-Factory trains in what the model folder says"
    # The adapter is to name the original, not the view.
    plan = plan.export({"IIS_BASE": _placed(folder, inputs.workspace)})
    return replace(plan.note(Decision("precision view", placed, "kit default", reason)), view_of=folder)


def _placed(path: Path, workspace: Workspace) -> str:
    try:
        return f"{{models}}/{path.relative_to(workspace.models)}"
    except ValueError:
        return str(path)


def _adapters(plan: Plan, base: Base) -> Plan:
    """Go on with the adapter of `kit.base`, or put a new one on top where the base's result is the reference."""
    if base.adapters:
        plan = plan.write(adapter_name_or_path=",".join(map(str, base.adapters)))
    shown = str(plan.arguments.get("adapter_name_or_path", f"the result of {base.recipe.name}"))
    if needs_reference(plan.settings) and not plan.stated("ref_model"):
        plan = _reference(plan, shown)
    stacked = plan.settings["create_new_adapter"]
    what = "merged into the model as it is loaded; a new one is trained on top" if stacked else "trained on"
    return plan.note(Decision("adapter_name_or_path", shown, "recipe", f"the adapter of kit.base, {what}"))


def _reference(plan: Plan, adapter: str) -> Plan:
    """Have the loss compare with the result of `kit.base`: without its adapter a model is what came before that."""
    bits = plan.settings["quantization_bit"]
    if not bits:
        reason = "the reference is the model without the adapter in training, and is to be the result of kit.base"
        return plan.choose("create_new_adapter", True, reason)
    reason = "a quantised model takes one adapter, so a second copy of both is the reference"
    plan = plan.choose("ref_model", plan.arguments["model_name_or_path"], reason)
    plan = plan.choose("ref_model_adapters", adapter, reason)
    return plan.choose("ref_model_quantization_bit", bits, reason)

"""The step that says what a training starts from: the model or a view of it, adapters, a reference to compare with."""

from pathlib import Path

from msgspec.structs import replace

from ..decision import Decision
from ..models import Base, needs_view, view_path
from ..rules import needs_reference
from ..runs import Workspace
from .record import Plan


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

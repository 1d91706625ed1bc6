"""The step that says what a training starts from: the model or a view of it, adapters, a reference to compare with."""

from dataclasses import replace
from pathlib import Path

from ..decision import Decision
from ..models import Base, needs_view, view_path
from ..rules import needs_reference
from ..runs import Workspace
from .draft import Draft


def starting_point(draft: Draft) -> Draft:
    """Write where the model is read from; `view_of` is the folder that a precision view has to be made of."""
    inputs, settings = draft.inputs, draft.settings
    name = inputs.model.name  # a hub's, or the path of a folder that kit.base has still to make
    expected = inputs.workspace.models / (name if Path(name).is_absolute() else name.replace("/", "--"))
    folder = inputs.workspace.root / (inputs.model.folder or expected)
    # A full training keeps FP32 weights under bf16 or fp16 autocast: rounding them first would only lose digits.
    whole = settings["finetuning_type"] == "full" and draft.precision != "fp32"
    view = needs_view(inputs.model, draft.precision) and not whole
    path = view_path(folder, draft.precision, inputs.workspace.models) if view else folder
    placed = _placed(path, inputs.workspace)
    if inputs.base:
        draft = draft.note(Decision("base", inputs.base.recipe.name, "recipe", "named by kit.base"))
    draft = draft.write(model_name_or_path=placed)
    if inputs.base and not inputs.base.whole:
        draft = _adapters(draft, inputs.base)
    if not view:
        return draft
    reason = f"the checkpoint holds {inputs.model.dtype}; LLaMA-Factory trains in what the model folder says"
    # The adapter is to name the original, not the view.
    draft = draft.export({"IIS_BASE": _placed(folder, inputs.workspace)})
    return replace(draft.note(Decision("precision view", placed, "kit default", reason)), view_of=folder)


def _placed(path: Path, workspace: Workspace) -> str:
    try:
        return f"{{models}}/{path.relative_to(workspace.models)}"
    except ValueError:
        return str(path)


def _adapters(draft: Draft, base: Base) -> Draft:
    """Go on with the adapter of `kit.base`, or put a new one on top where the base's result is the reference."""
    if base.adapters:
        draft = draft.write(adapter_name_or_path=",".join(map(str, base.adapters)))
    shown = str(draft.arguments.get("adapter_name_or_path", f"the result of {base.recipe.name}"))
    if needs_reference(draft.settings) and not draft.stated("ref_model"):
        draft = _reference(draft, shown)
    stacked = draft.settings["create_new_adapter"]
    what = "merged into the model as it is loaded; a new one is trained on top" if stacked else "trained on"
    return draft.note(Decision("adapter_name_or_path", shown, "recipe", f"the adapter of kit.base, {what}"))


def _reference(draft: Draft, adapter: str) -> Draft:
    """Have the loss compare with the result of `kit.base`: without its adapter a model is what came before that."""
    bits = draft.settings["quantization_bit"]
    if not bits:
        reason = "the reference is the model without the adapter in training, and is to be the result of kit.base"
        return draft.choose("create_new_adapter", True, reason)
    reason = "a quantised model takes one adapter, so a second copy of both is the reference"
    draft = draft.choose("ref_model", draft.arguments["model_name_or_path"], reason)
    draft = draft.choose("ref_model_adapters", adapter, reason)
    return draft.choose("ref_model_quantization_bit", bits, reason)

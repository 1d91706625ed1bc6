"""What the rows of rules.json ask of a case beside its values: one function a question."""

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

from ..arguments import find_model, find_template
from ..machine import package_version, quantization_problems
from ..tables import read
from .case import FEW_STEPS, TRAINING, Case, is_there, names_in, same
from .sizes import needs_reference

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
GATED_DELTA = ("qwen3_5*", "qwen3_next*")  # model types whose layers flash-linear-attention computes
PADDED = ("qwen2*", "qwen3*")  # model types whose embedding has more rows than the tokenizer has tokens

# The data -------------------------------------------------------------------------------------------------------------


def tokenized(case: Case) -> bool:
    """Whether tokenised data lies there already, which LLaMA-Factory then takes and looks at nothing else."""
    return bool(case["tokenized_path"] and names_in(case["tokenized_path"]))


def without_evaluation_split(case: Case) -> bool:
    if not (tokenized(case) and (case.evaluates or case["do_predict"])):
        return False
    try:
        splits = json.loads((Path(case["tokenized_path"]) / "dataset_dict.json").read_bytes())["splits"]
        return not any(str(name).startswith("validation") for name in splits)
    except (OSError, ValueError, KeyError, TypeError):
        return True


def wrong_number(case: Case) -> bool:
    wanted = len(case.names("interleave_probs"))
    return any(case.states(key) and len(case.names(key)) != wanted for key in ("dataset", "eval_dataset"))


def wrong_sum(case: Case) -> bool:
    try:
        return abs(sum(map(float, case.names("interleave_probs"))) - 1) > 1e-6
    except ValueError:
        return True


def all_held_out(case: Case) -> bool:
    """LLaMA-Factory reads `val_size: 1` as one row and `1.0` as all of them."""
    return isinstance(case["val_size"], float) and case["val_size"] == 1.0


def no_rows_left(case: Case) -> bool:
    held_out = case["val_size"]
    return case.rows is not None and not case["streaming"] and held_out >= 1 and int(held_out) >= case.rows


def without_processor(case: Case) -> bool:
    """A template with pictures or sound for a model that is known to have no processor for them."""
    template = find_template(case["template"]) if case["template"] else None
    if template is None or not template.multimodal:
        return False
    if case.model.folder:
        return not any((case.model.folder / name).is_file() for name in PROCESSORS)
    known = find_model(case.model.name)
    return known is not None and not known.multimodal


def masks_by_end(case: Case) -> bool:
    template = find_template(case["template"]) if case["train_on_prompt"] and case["template"] else None
    return template is not None and template.efficient_eos


def odd_length(case: Case) -> bool:
    return bool(case["cutoff_len"] % 8)


def adds_pictures(case: Case) -> bool:
    """Gemma 3 and 4 get a blank picture behind each row without one, which a packed row's positions do not count."""
    template = find_template(case["template"]) if case["template"] else None
    return template is not None and template.multimodal and template.name.startswith(("gemma3", "gemma4"))


# The training ---------------------------------------------------------------------------------------------------------


def reports_elsewhere(case: Case) -> bool:
    return not {*case.names("report_to")} <= {"wandb", "tensorboard", "none"}


def two_optimizers(case: Case) -> bool:
    return sum(bool(case[name]) for name in ("use_galore", "use_apollo", "use_badam")) > 1


def _schedule_arguments(case: Case) -> dict[str, object]:
    given = case["lr_scheduler_kwargs"]
    return given if isinstance(given, dict) else {}


def foreign_schedule_argument(case: Case) -> bool:
    known = read("rules.json")["schedules"].get(case["lr_scheduler_type"])
    return known is not None and not set(_schedule_arguments(case)) <= set(known)


def lowest_rates(case: Case) -> int:
    return len({"min_lr", "min_lr_rate"} & set(_schedule_arguments(case)))


def never_warm(case: Case) -> bool:
    return case.steps is not None and case.warmup >= max(1, case.steps)


def few_steps(case: Case) -> bool:
    return case["max_steps"] < 1 and case.steps is not None and case.steps < FEW_STEPS


def saves_between(case: Case) -> bool:
    """Whether a checkpoint is saved at a step that is not evaluated; below 1 both numbers are shares."""
    each = case["eval_steps"] or case["logging_steps"]
    saved = case["save_steps"]
    if each <= 0 or (each < 1) != (saved < 1):
        return True
    return bool(abs(saved / each - round(saved / each)) > 1e-9)


# The method and the model ---------------------------------------------------------------------------------------------


def has_reference(case: Case) -> bool:
    return needs_reference(case.settings)


def uneven_blocks(case: Case) -> bool:
    wanted = case["freeze_trainable_layers"]
    return bool(case["use_llama_pro"] and wanted and case.model.shapes and case.model.shapes.layers % wanted)


def more_blocks_than_there_are(case: Case) -> bool:
    return case.model.shapes is not None and abs(case["freeze_trainable_layers"]) > case.model.shapes.layers


def several_adapters(case: Case) -> bool:
    return len(case.names("adapter_name_or_path")) > 1


def impossible_bits(case: Case) -> bool:
    possible = read("rules.json")["quantises_to"].get(case["quantization_method"])
    return possible is not None and case["quantization_bit"] not in possible


def mixed_dtypes(case: Case) -> bool:
    """Weights kept in half precision without a switch: what is trained whole is made fp32, its neighbours are not."""
    as_saved = case.precision == "as-saved" and case.model.dtype in ("bfloat16", "float16")
    return as_saved and (
        case["finetuning_type"] == "freeze"
        or case.some("additional_target", "add_tokens", "add_special_tokens", "resize_vocab")
    )


def within_context(case: Case) -> bool:
    longest = case.model.shapes.max_position_embeddings if case.model.shapes else None
    return longest is not None and case.purpose in TRAINING and case["cutoff_len"] <= longest


def fills_wrong_rows(case: Case) -> bool:
    """Whether the embedding has more rows than the tokenizer has tokens; the tokens are counted where they are here."""
    shapes, added = case.model.shapes, case.some("add_tokens", "add_special_tokens", "new_special_tokens_config")
    if not (case.trains and added and shapes):
        return False
    tokens = _tokens_in(case.model.folder) if case.model.folder else None
    if tokens is None:
        return any(fnmatchcase(shapes.model_type, each) for each in PADDED)
    return shapes.vocabulary_size > tokens


def _tokens_in(folder: Path) -> int | None:
    """How many tokens the tokenizer of a model folder has; None when that cannot be read."""
    try:
        content = json.loads((folder / "tokenizer.json").read_bytes())
        numbers = [*content["model"]["vocab"].values(), *(each["id"] for each in content["added_tokens"])]
        return int(max(numbers)) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def slow_layers(case: Case) -> bool:
    kind = case.model.shapes.model_type if case.model.shapes else str(case.model.config.get("model_type", ""))
    here = case.machine.here and package_version("flash-linear-attention")
    return case.trains and bool(case.machine.devices) and not here and any(fnmatchcase(kind, o) for o in GATED_DELTA)


# The machine and its processes ----------------------------------------------------------------------------------------


def tf32_here(case: Case) -> bool:
    """NVIDIA's Ampere or later: compute capability 8.0."""
    digits = case.machine.arch.removeprefix("sm_")
    return case.machine.arch.startswith("sm_") and digits.isdecimal() and int(digits) >= 80


def marked_twice(case: Case) -> bool:
    """Whether DDP sees a weight twice in one step: torch's older way of computing activations anew, asked for here."""
    reentrant = case.says("use_reentrant_gc", True) and not case["disable_gradient_checkpointing"]
    if not (reentrant and case.trains and case.processes > 1 and case.launcher == "ddp"):
        return False
    if case["stage"] == "rm" and case["finetuning_type"] == "full":
        return True
    return case["finetuning_type"] == "oft" and case["ddp_find_unused_parameters"] is not False


def optimizer_package(case: Case) -> str | None:
    """The package that an optimizer comes from; None for those of torch and transformers."""
    packages: dict[str, str] = read("packages.json")["optimizers"]
    return next((package for pattern, package in packages.items() if re.match(pattern, case["optim"])), None)


def bitsandbytes_build(case: Case) -> str | None:
    """What is said of bitsandbytes' build for this card, where the optimizer is one of bitsandbytes."""
    if not case.trains or optimizer_package(case) != "bitsandbytes":
        return None
    said = [each.severity for each in quantization_problems(case.machine) if each.kind == "machine"]
    return min(said, default=None)  # an error before a warning


# Files ----------------------------------------------------------------------------------------------------------------


def lost_deepspeed_file(case: Case) -> bool:
    config = case.settings.stated.get("deepspeed")
    return isinstance(config, str) and not is_there(config)


def over_its_source(case: Case) -> bool:
    """Whether the export would be written over the model or an adapter that it is made of."""
    folder = case.model.folder
    sources = [case["model_name_or_path"], *case.names("adapter_name_or_path"), *([str(folder)] if folder else [])]
    return bool(case["export_dir"]) and any(same(case["export_dir"], str(source)) for source in sources if source)


def lost_checkpoint(case: Case) -> bool:
    stated = case.recipe.value("resume_from_checkpoint")
    return isinstance(stated, str) and stated.lower() not in ("true", "false") and not is_there(stated)

"""What was measured of a training like this one: is it this one, what does it change, how long will the run take."""

from ..arguments import version_of
from ..models import ModelFacts
from ..runs import Key
from .record import Plan


def key_of(plan: Plan) -> Key:
    """By what a measurement of this plan is found again; `plan` is the one that is not tuned (`kit.tuned: false`)."""
    machine, settings = plan.machine, plan.settings
    processor = f"{machine.processor or 'CPU'}, {machine.cpu_count} threads"
    targets = ",".join(sorted(settings.names("lora_target")))
    adapter = settings["finetuning_type"] == "lora"
    return Key(
        device=machine.arch if machine.devices else processor,
        devices=plan.processes,
        torch=machine.torch_build,
        driver=machine.driver,
        llamafactory=version_of(settings["stage"]),
        shape=shape_of(plan.inputs.model),
        quantization_bit=settings["quantization_bit"],
        stage=settings["stage"],
        finetuning_type=settings["finetuning_type"],
        lora_rank=settings["lora_rank"] if adapter else None,
        lora_target=targets if adapter else None,
        cutoff_len=settings["cutoff_len"],
        packing=bool(settings["packing"] or settings["neat_packing"]),
    )


def shape_of(facts: ModelFacts) -> str:
    """Architecture and widths: `qwen2 24x896x4864 h14/2 v151936`; the model's name where they are not known."""
    one = facts.shapes
    if one is None:
        return facts.name
    heads = f"h{one.attention_heads}/{one.key_value_heads}x{one.head_dim}"
    return f"{one.model_type} {one.layers}x{one.hidden_size}x{one.intermediate_size} {heads} v{one.vocabulary_size}"

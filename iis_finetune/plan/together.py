"""Several adapters on one base in memory: whether they can share it, and what is loaded then."""

import shlex
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from ..arguments import WHOLE, trained_with
from ..errors import Misused
from .after import Trained, Weights, converse

Adapters = Mapping[str, str | None]  # by the name that each answers under; None is the base itself
BASE = "base"
PARTS = {"model_name_or_path": "base model", "infer_dtype": "precision"}
# Does not decide what is answered, but for rounding: that of the first is taken.
OF_NO_MATTER = {
    *("adapter_name_or_path", "cache_dir", "hf_hub_token", "ms_hub_token", "om_hub_token", "print_param_status"),
    *("disable_gradient_checkpointing", "use_reentrant_gc", "upcast_layernorm", "moe_aux_loss_coef", "infer_backend"),
    *("low_cpu_mem_usage", "offload_folder", "flash_attn", "enable_liger_kernel"),
}


def together(trained: Sequence[Trained], with_base: bool) -> tuple[Trained, Adapters]:
    """The base that all share, and who answers on it; raises Misused where one of them cannot share it."""
    first, *others = trained
    names = [*(each.name for each in trained), *[BASE] * with_base]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise Misused(f"{twice} is named twice", "name each run once")
    for each in trained:
        if why := _alone(each):
            raise Misused(f"{each.name} {why}: it cannot share a base with others", f"leave {each.name} out")
    for other in others:
        if differing := _differing(first, other):
            what = f"{first.name} and {other.name} cannot share one base in memory: {'; '.join(differing)}"
            raise Misused(what, "name runs that agree in this, or serve each alone")
    weights = Weights(first.weights.model, first.weights.adapters[:-1])
    arguments = {key: value for key, value in first.arguments.items() if key != "infer_backend"}  # vLLM takes one
    base = replace(first, name=", ".join(names), arguments=arguments, weights=weights)
    adapters = (*(each.weights.adapters[-1] for each in trained), *[None] * with_base)
    return base, dict(zip(names, adapters, strict=True))


def for_vllm(trained: Sequence[Trained]) -> str:
    """The command by which vLLM serves the same adapters; it takes ranks of 8, 16, 32, ... only."""
    rank = max(8, *(1 << (int(trained_with(each.arguments)["lora_rank"]) - 1).bit_length() for each in trained))
    named = [f"{each.name}={each.weights.adapters[-1]}" for each in trained]
    words = ["vllm", "serve", trained[0].weights.model, "--host", "127.0.0.1", "--enable-lora"]
    return shlex.join([*words, "--max-lora-rank", str(rank), "--lora-modules", *named])


def _alone(trained: Trained) -> str | None:
    """Why a run shares its base with nobody."""
    settings = trained_with(trained.arguments)
    reasons = {
        "is a whole model, not an adapter": settings["finetuning_type"] in WHOLE or not trained.weights.adapters,
        "is a reward model, which answers nothing": settings["stage"] == "rm",
        "has a PiSSA adapter, which changes the base too": settings["pissa_init"] and not settings["pissa_convert"],
    }
    return next((why for why, so in reasons.items() if so), None)


def _differing(first: Trained, other: Trained) -> list[str]:
    """What parts the two: `the template differs (qwen, llama3)`."""
    sides = [trained_with(converse(each)) for each in (first, other)]
    keys = sorted({*sides[0].stated, *sides[1].stated} - OF_NO_MATTER, key=lambda key: (key not in PARTS, key))
    found = {PARTS.get(key, key): [side[key] for side in sides] for key in keys}
    found["adapter below"] = [", ".join(each.weights.adapters[:-1]) or "none" for each in (first, other)]
    found["method"] = [trained_with(each.arguments)["finetuning_type"] for each in (first, other)]
    return [f"the {part} differs ({one}, {two})" for part, (one, two) in found.items() if one != two]

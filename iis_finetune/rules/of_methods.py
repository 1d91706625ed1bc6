"""Rules of the method: adapters, frozen layers, quantised bases, and what they do to the model that is trained."""

from ..arguments import Settings
from ..models import ModelFacts
from .case import Case
from .rule import ANY, TRAINING, Rule, warning

ADAPTERS = ("lora", "oft")
ON_THE_FLY = {"bnb": (4, 8), "hqq": (1, 2, 3, 4, 5, 6, 8), "eetq": (8,)}
UNPACKED = ("mxfp4", "fp8")  # LLaMA-Factory loads these two as ordinary weights
HALF = ("bfloat16", "float16")
LIGER = (
    "gemma", "gemma2", "gemma3", "gemma3_text", "glm", "glm4", "glm4v", "granite", "llama", "llava", "mistral",
    "mixtral", "mllama", "olmo2", "paligemma", "phi3", "qwen2", "qwen2_vl", "qwen2_5_vl", "qwen3", "qwen3_moe",
    "qwen3_next", "qwen3_5", "gpt_oss",
)  # fmt: skip


def quantised(case: Case) -> bool:
    """Whether the checkpoint itself is quantised and is trained as such."""
    return case.model.quantization is not None and case.model.quantization not in UNPACKED


def model_type(facts: ModelFacts) -> str | None:
    return facts.shapes.model_type if facts.shapes else None


def uneven_blocks(case: Case) -> bool:
    wanted = case["freeze_trainable_layers"]
    return bool(case["use_llama_pro"] and wanted and case.model.shapes and case.model.shapes.layers % wanted)


def mixed_dtypes(case: Case) -> bool:
    """Weights kept in half precision without a switch: what is trained whole is made fp32, its neighbours are not."""
    as_saved = case.precision == "as-saved" and case.model.dtype in HALF
    return as_saved and (
        case["finetuning_type"] == "freeze"
        or case.some("additional_target", "add_tokens", "add_special_tokens", "resize_vocab")
    )


def within_context(case: Case) -> bool:
    longest = case.model.shapes.max_position_embeddings if case.model.shapes else None
    return longest is not None and case.purpose in TRAINING and case["cutoff_len"] <= longest


def needs_reference(settings: Settings) -> bool:
    """Whether what is learned is compared with the model as it was before; ORPO and SimPO do without."""
    stage = settings["stage"]
    return stage in ("ppo", "kto") or (stage == "dpo" and settings["pref_loss"] not in ("orpo", "simpo"))


def only_lora(number: int, key: str, line: int) -> Rule:
    what = f"{key} is a form of LoRA, and finetuning_type is {{c[finetuning_type]}}"
    fix = f"finetuning_type: lora, or remove {key}"
    source = f"hparams/finetuning_args.py:{line}"
    return Rule(number, key, lambda c: c[key] and c["finetuning_type"] != "lora", what, fix, source)


RULES = (
    only_lora(12, "loraplus_lr_ratio", 606),
    only_lora(12, "use_rslora", 609),
    only_lora(12, "use_dora", 612),
    only_lora(12, "pissa_init", 615),
    Rule(12, "use_llama_pro finetuning_type", lambda c: c["use_llama_pro"] and c["finetuning_type"] == "full",
         "use_llama_pro trains the blocks that were added, finetuning_type full trains all of them",
         "finetuning_type: freeze", "hparams/finetuning_args.py:593"),
    Rule(12, "pissa_init stage", lambda c: c["pissa_init"] and needs_reference(c.settings),
         "pissa_init changes the base weights, which stage {c[stage]} needs as its reference",
         "remove pissa_init", "hparams/finetuning_args.py:602"),
    Rule(61, "freeze_trainable_layers use_llama_pro", uneven_blocks,
         "{c.model.name} has {c.model.shapes.layers} layers, which freeze_trainable_layers "
         "{c[freeze_trainable_layers]} does not divide evenly; this fails after the model is loaded",
         "give a divisor of the number of layers, the number of blocks that were added", "model/adapter.py:82"),
    warning(41, "freeze_trainable_layers",
            lambda c: c.trains and c["finetuning_type"] == "freeze" and c.model.shapes is not None
            and abs(c["freeze_trainable_layers"]) > c.model.shapes.layers,
            "{c.model.name} has {c.model.shapes.layers} layers, so all of them are trained",
            "a smaller number, or finetuning_type: full", "model/adapter.py:90"),
    Rule(14, "adapter_name_or_path finetuning_type",
         lambda c: c["adapter_name_or_path"] and c["finetuning_type"] != "lora",
         "an adapter is loaded with finetuning_type lora only, an OFT adapter too",
         "finetuning_type: lora, or merge the adapter first", "hparams/parser.py:186", purposes=ANY),
    Rule(13, "quantization_bit finetuning_type",
         lambda c: c["quantization_bit"] and c["finetuning_type"] not in ADAPTERS,
         "quantised weights cannot be trained themselves: finetuning_type {c[finetuning_type]} needs a whole model",
         "finetuning_type: lora, or remove quantization_bit", "hparams/parser.py:190"),
    Rule(13, "quantization_bit pissa_init", lambda c: c["quantization_bit"] and c["pissa_init"],
         "pissa_init splits the base weights, which quantization_bit makes impossible",
         "remove pissa_init, or quantization_bit", "hparams/parser.py:193"),
    Rule(13, "resize_vocab quantization_bit",
         lambda c: c["resize_vocab"] and (c["quantization_bit"] or quantised(c)),
         "the embedding of a quantised model cannot be resized",
         "remove resize_vocab, or quantization_bit", "hparams/parser.py:196"),
    Rule(13, "create_new_adapter quantization_bit",
         lambda c: c["quantization_bit"] and c["create_new_adapter"] and c["adapter_name_or_path"],
         "a second adapter cannot be put on a quantised model",
         "merge the first adapter, or remove create_new_adapter", "hparams/parser.py:199"),
    Rule(13, "adapter_name_or_path quantization_bit",
         lambda c: c["quantization_bit"] and len(c.names("adapter_name_or_path")) > 1,
         "a quantised model takes one adapter, {c[adapter_name_or_path]} are several",
         "merge the earlier ones first", "hparams/parser.py:202"),
    Rule(13, "quantization_device_map", lambda c: c.trains and c["quantization_device_map"] == "auto",
         "quantization_device_map auto is for talking to a model, not for training it",
         "remove quantization_device_map", "hparams/parser.py:375"),
    Rule(13, "fp8 quantization_bit", lambda c: c["fp8"] and c["quantization_bit"],
         "fp8 training does not go with a quantised base",
         "remove fp8, or quantization_bit", "hparams/parser.py:404"),
    Rule(56, "quantization_method quantization_bit",
         lambda c: c["quantization_bit"] and not c.model.quantization and c["quantization_method"] not in ON_THE_FLY,
         "quantization_method {c[quantization_method]} quantises nothing by itself: the base would be trained in full "
         "precision, without a word",
         "quantization_method: bnb", "model/model_utils/quantization.py:166"),
    Rule(55, "quantization_bit quantization_method",
         lambda c: c["quantization_bit"]
         and c["quantization_bit"] not in ON_THE_FLY.get(c["quantization_method"], range(9)),
         "quantization_method {c[quantization_method]} cannot quantise to {c[quantization_bit]} bits; this fails after "
         "the data is tokenised",
         "quantization_bit: 8, or 4 with bnb or hqq", "model/model_utils/quantization.py:181"),
    warning(56, "quantization_bit", lambda c: c["quantization_bit"] and c.model.quantization,
            "{c.model.name} is quantised already ({c.model.quantization}): quantization_bit has no effect",
            "remove quantization_bit", "model/model_utils/quantization.py:92"),
    Rule(56, "model_name_or_path finetuning_type",
         lambda c: c.trains and quantised(c) and not c["quantization_bit"] and c["finetuning_type"] not in ADAPTERS,
         "{c.model.name} is quantised ({c.model.quantization}): finetuning_type {c[finetuning_type]} cannot train it; "
         "this fails after the model is loaded",
         "finetuning_type: lora, or the model that was not quantised", "model/adapter.py:308"),
    Rule(56, "model_name_or_path deepspeed fsdp kit.launcher",
         lambda c: quantised(c) and c.sharded,
         "{c.model.name} is quantised ({c.model.quantization}), which ZeRO-3 and FSDP cannot share out",
         "kit.launcher: ddp", "model/model_utils/quantization.py:101", by_launcher=True),
    Rule(56, "quantization_method quantization_bit",
         lambda c: c["quantization_bit"] and c["quantization_method"] in ("hqq", "eetq") and c.sharded,
         "weights that {c[quantization_method]} quantised cannot be shared out by ZeRO-3 or FSDP",
         "quantization_method: bnb, or kit.launcher: ddp", "model/model_utils/quantization.py:200", by_launcher=True),
    Rule(56, "quantization_bit",
         lambda c: c["quantization_bit"] == 8 and c["quantization_method"] == "bnb" and c.sharded,
         "ZeRO-3 and FSDP share out 4-bit weights, not 8-bit ones",
         "quantization_bit: 4, or kit.launcher: ddp", "model/model_utils/quantization.py:188", by_launcher=True),
    Rule(57, "use_dora quantization_bit",
         lambda c: c.trains and c["use_dora"] and (quantised(c) or c["quantization_bit"]),
         "use_dora on a quantised base is refused after the model is loaded, with bitsandbytes too",
         "remove use_dora, or quantization_bit", "model/adapter.py:220"),
    Rule(58, "shift_attn", lambda c: c["shift_attn"] and model_type(c.model) == "llama",
         "shift_attn needs transformers below 4.48, which LLaMA-Factory cannot use: it always fails on Llama",
         "remove shift_attn", "model/model_utils/longlora.py:353"),
    warning(58, "shift_attn", lambda c: c["shift_attn"] and model_type(c.model) != "llama",
            "shift_attn has no effect on any model but Llama",
            "remove shift_attn", "model/model_utils/longlora.py:370"),
    Rule(54, "rope_scaling", lambda c: c["rope_scaling"] and not within_context(c),
         "rope_scaling does not work with transformers 5: it fails after the data is tokenised",
         "remove rope_scaling, with cutoff_len within the model's own context", "model/model_utils/rope.py:67",
         purposes=ANY),
    warning(54, "rope_scaling", lambda c: c["rope_scaling"] and within_context(c),
            "cutoff_len {c[cutoff_len]} is within the model's own context, so rope_scaling is switched off",
            "remove rope_scaling", "model/model_utils/rope.py:50"),
    warning(59, "enable_liger_kernel",
            lambda c: c["enable_liger_kernel"] and model_type(c.model) not in {*LIGER, None},
            "LLaMA-Factory has no Liger kernels for {c.model.shapes.model_type}: enable_liger_kernel has no effect",
            "remove enable_liger_kernel", "model/model_utils/liger_kernel.py:91"),
    warning(59, "use_liger_kernel", lambda c: c["use_liger_kernel"] and not c["enable_liger_kernel"],
            "use_liger_kernel is transformers' switch, which LLaMA-Factory knows nothing of",
            "enable_liger_kernel: true", "model/model_utils/liger_kernel.py:36"),
    Rule(77, "additional_target add_tokens add_special_tokens resize_vocab finetuning_type kit.precision", mixed_dtypes,
         "{c.model.name} is saved as {c.model.dtype} and kept so, while what is trained becomes fp32: the first step "
         "fails",
         "kit.precision: fp32, or bf16", "model/adapter.py:286"),
    Rule(83, "stage finetuning_type",
         lambda c: c.trains and c["stage"] == "rm" and c["finetuning_type"] in ("full", "freeze")
         and c.model.shapes is not None and c.model.shapes.tie_word_embeddings,
         "{c.model.name} ties its output layer to its embedding: a whole reward model of it fails at the first save",
         "finetuning_type: lora", "train/callbacks.py:100"),
    warning(89, "lora_rank lora_alpha lora_target",
            lambda c: c.trains and c["adapter_name_or_path"] and not c["create_new_adapter"]
            and c.states("lora_rank", "lora_alpha", "lora_target"),
            "an adapter that is continued keeps its own rank, alpha and layers",
            "create_new_adapter: true for a new one on top", "model/adapter.py:175"),
    warning(96, "pissa_iter pissa_init",
            lambda c: c.trains and c["pissa_init"] and not c["pissa_convert"] and c.states("pissa_iter")
            and c["pissa_iter"] != -1,
            "pissa_init with pissa_iter {c[pissa_iter]} is drawn at random and cannot be made again: a merge differs "
            "from what was trained",
            "pissa_iter: -1, or pissa_convert: true", "model/adapter.py:269"),
)  # fmt: skip

"""Rules of the machine and its processes: number formats, kernels, ZeRO and FSDP, several processes at once."""

from .case import Case, is_there
from .rule import ANY, Rule, warning


def tf32_here(case: Case) -> bool:
    """NVIDIA's Ampere or later: compute capability 8.0."""
    digits = case.machine.arch.removeprefix("sm_")
    return case.machine.arch.startswith("sm_") and digits.isdecimal() and int(digits) >= 80


def on_cpu(case: Case) -> bool:
    return case.machine.accelerator == "cpu"


def reentrant(case: Case) -> bool:
    """Whether the recipe wants torch's older way of computing activations anew, which DDP cannot follow.

    Where it says nothing, the plan takes the newer one.
    """
    stated = case.states("use_reentrant_gc") and case["use_reentrant_gc"]
    return bool(stated and not case["disable_gradient_checkpointing"])


def marked_twice(case: Case) -> bool:
    several = case.trains and case.processes > 1 and case.launcher == "ddp" and reentrant(case)
    if case["stage"] == "rm" and case["finetuning_type"] == "full":
        return several
    return several and case["finetuning_type"] == "oft" and case["ddp_find_unused_parameters"] is not False


RULES = (
    Rule(16, "fp16 bf16", lambda c: c["fp16"] and c["bf16"],
         "fp16 and bf16 are both switched on",
         "keep one of the two lines, or neither: kit.precision chooses", "transformers training_args.py:1741"),
    Rule(16, "fp16_full_eval bf16_full_eval", lambda c: c["fp16_full_eval"] and c["bf16_full_eval"],
         "fp16_full_eval and bf16_full_eval are both switched on",
         "keep one of the two lines", "transformers training_args.py:1744"),
    Rule(16, "bf16_full_eval",
         lambda c: c["bf16_full_eval"] and on_cpu(c) and c.precision != "bf16" and not c["use_cpu"],
         "transformers refuses bf16_full_eval without a GPU",
         "use_cpu: true, or remove bf16_full_eval", "transformers training_args.py:1738", kind="machine"),
    Rule(16, "tf32", lambda c: c["tf32"] and not tf32_here(c),
         "tf32 is for NVIDIA cards from Ampere on, this is {c.machine.device}; transformers refuses it",
         "remove tf32", "transformers training_args.py:1646", kind="machine"),
    Rule(15, "pure_bf16", lambda c: c["pure_bf16"] and on_cpu(c),
         "LLaMA-Factory refuses pure_bf16 without a GPU",
         "bf16: true in its place", "hparams/parser.py:382", kind="machine"),
    Rule(15, "pure_bf16", lambda c: c["pure_bf16"] and c.zero_stage == 3,
         "pure_bf16 does not go with ZeRO-3",
         "bf16: true in its place, or kit.launcher: zero2", "hparams/parser.py:385", by_launcher=True),
    warning(35, "fp8_enable_fsdp_float8_all_gather", lambda c: c["fp8_enable_fsdp_float8_all_gather"] and not c["fp8"],
            "LLaMA-Factory means to switch fp8 on for this and misses: fp8 stays off, without a word",
            "fp8: true, or remove the line", "hparams/parser.py:422"),
    warning(35, "fp8", lambda c: c["fp8"] and on_cpu(c),
            "there is no fp8 on a CPU: the run goes on without it, without a word",
            "remove fp8", "train/fp8_utils.py:38"),
    warning(39, "use_cpu", lambda c: c["use_cpu"] and not on_cpu(c),
            "use_cpu does not keep LLaMA-Factory off the GPU: the weights are placed there all the same",
            "remove use_cpu, or hide the devices: CUDA_VISIBLE_DEVICES= (HIP_VISIBLE_DEVICES=-1) before the command",
            "extras/misc.py get_current_device"),
    Rule(53, "flash_attn", lambda c: c["flash_attn"] == "fa3",
         "flash_attn fa3 is offered by LLaMA-Factory and refused after the data is tokenised",
         "flash_attn: auto", "model/model_utils/attention.py:86", purposes=ANY),
    Rule(76, "neat_packing per_device_train_batch_size",
         lambda c: c.trains and c["neat_packing"] and "fa2" in (c["flash_attn"], c.recipe.kit.attention)
         and c.micro_batch > 1,
         "neat_packing with flash-attention takes one packed row a step, not {c.micro_batch}: the first step fails",
         "per_device_train_batch_size: 1", "data/collator.py:528"),
    Rule(76, "use_unsloth_gc", lambda c: c.trains and c["use_unsloth_gc"] and on_cpu(c),
         "use_unsloth_gc keeps activations beside a GPU, and there is none: the first step fails",
         "remove use_unsloth_gc", "model/model_utils/checkpointing.py:68", kind="machine"),
    Rule(73, "fsdp kit.launcher", lambda c: c.launcher == "fsdp" and on_cpu(c),
         "on a CPU FSDP finds no device to share the model over: it fails, or is plain DDP without a word",
         "kit.launcher: ddp", "torch 2.13 FullyShardedDataParallel", kind="machine"),
    Rule(18, "deepspeed",
         lambda c: c.states("deepspeed") and isinstance(c["deepspeed"], str) and not is_there(c["deepspeed"]),
         "the DeepSpeed configuration '{c[deepspeed]}' does not exist",
         "kit.launcher: zero2 or zero3, and no deepspeed line", "transformers integrations/deepspeed.py",
         kind="missing", code=2),
    Rule(19, "use_unsloth", lambda c: c["use_unsloth"] and c.zero_stage == 3,
         "Unsloth does not go with ZeRO-3",
         "kit.launcher: ddp", "hparams/parser.py:410", by_launcher=True),
    Rule(19, "use_kt", lambda c: c["use_kt"] and c.zero_stage == 3,
         "KTransformers does not go with ZeRO-3",
         "kit.launcher: single", "hparams/parser.py:413", by_launcher=True),
    Rule(19, "pissa_init", lambda c: c["pissa_init"] and c.zero_stage == 3,
         "pissa_init needs the whole weights, which ZeRO-3 shares out",
         "kit.launcher: zero2", "hparams/parser.py:378", by_launcher=True),
    Rule(8, "predict_with_generate", lambda c: c["predict_with_generate"] and c.zero_stage == 3,
         "predict_with_generate does not go with ZeRO-3",
         "kit.launcher: zero2, or predict after the training: iis-finetune evaluate", "hparams/parser.py:369",
         by_launcher=True),
    Rule(21, "ddp_backend", lambda c: c.states("ddp_backend") and c.processes == 1 and c.launcher == "single",
         "ddp_backend is for several processes; with one LLaMA-Factory ends in 'Default process group has not been "
         "initialized'",
         "remove ddp_backend", "transformers training_args.py", kind="machine"),
    Rule(86, "use_reentrant_gc finetuning_type stage", marked_twice,
         "in {c.processes} processes the first step fails: 'Expected to mark a variable ready only once'",
         "use_reentrant_gc: false", "torch 2.13 DistributedDataParallel"),
)  # fmt: skip

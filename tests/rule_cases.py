"""A hundred ways to a failed or a wrong training with LLaMA-Factory 0.9.5: one table for a test and for the benchmark.

The numbers are the list's: 1-26 are refused at once, 27-41 changed without a word, 42-52 fail while the data is read,
53-65 when the model is loaded, 66-74 when the trainer is made, 75-87 later, 88-100 never.
"""
# ruff: noqa: E501 - a table reads best with one case a line

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TRAIN: dict[str, Any] = {
    "model_name_or_path": "models/tiny",
    "template": "qwen",
    "stage": "sft",
    "do_train": True,
    "dataset": "little",
    "cutoff_len": 64,
    "finetuning_type": "lora",
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "save_steps": 2,
    "report_to": "none",
    "plot_loss": False,
}
PREDICT: dict[str, Any] = {
    "model_name_or_path": "models/tiny",
    "template": "qwen",
    "stage": "sft",
    "do_predict": True,
    "predict_with_generate": True,
    "max_new_tokens": 4,
    "eval_dataset": "little",
    "cutoff_len": 64,
    "report_to": "none",
}
EXPORT: dict[str, Any] = {"model_name_or_path": "models/tiny", "template": "qwen", "export_dir": "merged"}
CHAT: dict[str, Any] = {"model_name_or_path": "models/tiny", "template": "qwen"}
GPU, DEEPSPEED, PACKAGE, LLAMA = "a GPU", "DeepSpeed", "a package that is not installed", "a Llama of transformers 4.47"


@dataclass(frozen=True)
class Fault:
    """Lines that make a recipe fail, what `check` says to them, and lines that mend it (None removes a line).

    `needs` says why LLaMA-Factory itself is not run on this one in the benchmark.
    """

    number: int
    lines: dict[str, Any]
    key: str
    says: str
    mend: dict[str, Any]
    severity: str = "error"
    base: dict[str, Any] | None = None
    on: str = "cpu"
    needs: str | None = None

    @property
    def recipe(self) -> dict[str, Any]:
        return without_null({**(self.base or TRAIN), **self.lines})

    @property
    def mended(self) -> dict[str, Any]:
        return without_null({**self.recipe, **self.mend})

    @property
    def name(self) -> str:
        return f"{self.number} {' '.join(f'{key}={value}' for key, value in self.lines.items())}"[:90]


def without_null(lines: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in lines.items() if value is not None}


DPO = {"stage": "dpo", "dataset": "pairs"}
RM = {"stage": "rm", "dataset": "pairs"}
PPO = {"stage": "ppo", "reward_model": "models/tiny", "reward_model_type": "full"}
EVAL = {"val_size": 4, "eval_strategy": "steps", "eval_steps": 1}
WARNS = "warning"


def gone(*keys: str) -> dict[str, Any]:
    return dict.fromkeys(keys)


FAULTS = (
    Fault(1, {"model_name_or_path": None}, "model_name_or_path", "no model_name_or_path", {"model_name_or_path": "models/tiny"}),
    Fault(2, {"dataset": None}, "do_train", "nothing to train on", {"dataset": "little"}),
    Fault(3, {"val_size": 4}, "val_size", "which is not given", gone("val_size"), base=PREDICT),
    Fault(3, {"val_size": 4, "eval_dataset": "little", "eval_strategy": "epoch"}, "val_size", "both say", gone("val_size")),
    Fault(4, {"do_eval": True}, "do_eval", "nothing to evaluate on", {"val_size": 4}),
    Fault(4, {"eval_strategy": "steps"}, "eval_strategy", "nothing to evaluate on", {"val_size": 4}),
    Fault(4, {"eval_dataset": None}, "do_predict", "nothing to evaluate on", {"eval_dataset": "little"}, base=PREDICT),
    Fault(5, {"dataset": "little,more", "interleave_probs": "0.5,0.5"}, "interleave_probs", "concat", {"mix_strategy": "interleave_under"}),
    Fault(5, {"dataset": "little,more", "interleave_probs": "0.5,0.3,0.2", "mix_strategy": "interleave_under"}, "interleave_probs", "another number", {"interleave_probs": "0.5,0.5"}),
    Fault(6, {"streaming": True, "max_steps": None, "dataloader_num_workers": 1}, "streaming", "no end", {"max_steps": 2}),
    Fault(6, {"streaming": True, "val_size": 0.1, "eval_strategy": "epoch", "dataloader_num_workers": 1}, "val_size", "share of the rows", {"val_size": 4}),
    Fault(6, {"streaming": True, "max_samples": 9, "dataloader_num_workers": 1}, "max_samples", "streaming", gone("max_samples")),
    Fault(6, {"streaming": True, "tokenized_path": "nowhere", "dataloader_num_workers": 1}, "tokenized_path", "no tokenised data", gone("streaming")),
    Fault(7, {"mask_history": True, "train_on_prompt": True}, "mask_history", "exclude each other", gone("mask_history")),
    Fault(8, {**DPO, "predict_with_generate": True, **EVAL}, "predict_with_generate", "stage sft, not dpo", gone("predict_with_generate")),
    Fault(8, {**DPO, "neat_packing": True}, "neat_packing", "stage sft", gone("neat_packing")),
    Fault(8, {"stage": "pt", "dataset": "text", "mask_history": True}, "mask_history", "stage sft", gone("mask_history")),
    Fault(8, {"do_predict": True, "eval_dataset": "little"}, "do_predict", "without generation", {"predict_with_generate": True}),
    Fault(8, {"compute_accuracy": True}, "compute_accuracy", "exclude each other", gone("compute_accuracy"), base=PREDICT),
    Fault(8, {"predict_with_generate": True, "val_size": 4, "eval_strategy": "epoch", "deepspeed": {"zero_optimization": {"stage": 3}}}, "predict_with_generate", "ZeRO-3", {"deepspeed": {"zero_optimization": {"stage": 2}}}, needs=DEEPSPEED),
    Fault(8, {**DPO, "do_predict": True, "eval_dataset": "pairs"}, "do_predict", "does nothing", gone("do_predict"), WARNS),
    Fault(9, {**RM, **EVAL, "load_best_model_at_end": True, "save_steps": 1}, "load_best_model_at_end", "stage rm", gone("load_best_model_at_end")),
    Fault(9, {**PPO, "reward_model": None}, "stage", "none is given", {"reward_model": "models/tiny"}),
    Fault(9, {**PPO, "do_train": None, "do_eval": True, "eval_dataset": "little"}, "stage", "only trains", {"do_train": True}),
    Fault(9, {**PPO, "finetuning_type": "full", "reward_model_type": "lora"}, "reward_model_type", "needs a policy", {"reward_model_type": "full"}),
    Fault(9, {**PPO, "report_to": "mlflow"}, "report_to", "tensorboard", {"report_to": "none"}),
    Fault(10, {**DPO, "pref_loss": "simpo", "dpo_label_smoothing": 0.1}, "dpo_label_smoothing", "sigmoid", {"pref_loss": "sigmoid"}),
    Fault(11, {"finetuning_type": "qlora"}, "finetuning_type", "cannot be 'qlora'", {"finetuning_type": "lora"}),
    Fault(11, {"ref_model_quantization_bit": 3}, "ref_model_quantization_bit", "3", gone("ref_model_quantization_bit")),
    Fault(12, {"use_galore": True, "optim": "adamw_torch"}, "use_galore", "LoRA, the default", {"finetuning_type": "full"}),
    Fault(12, {"use_galore": True, "use_badam": True, "finetuning_type": "full", "optim": "adamw_torch"}, "use_badam", "two are asked for", gone("use_badam")),
    Fault(12, {"use_llama_pro": True, "finetuning_type": "full"}, "use_llama_pro", "trains the blocks", {"finetuning_type": "freeze"}),
    Fault(12, {**DPO, "pissa_init": True}, "pissa_init", "stage dpo", gone("pissa_init")),
    Fault(12, {"loraplus_lr_ratio": 16, "finetuning_type": "full"}, "loraplus_lr_ratio", "form of LoRA", gone("loraplus_lr_ratio")),
    Fault(12, {"use_rslora": True, "finetuning_type": "oft"}, "use_rslora", "form of LoRA", {"finetuning_type": "lora"}),
    Fault(12, {"use_dora": True, "finetuning_type": "freeze"}, "use_dora", "form of LoRA", gone("use_dora")),
    Fault(12, {"pissa_init": True, "finetuning_type": "full"}, "pissa_init", "form of LoRA", gone("pissa_init")),
    Fault(13, {"quantization_bit": 4, "finetuning_type": "full"}, "quantization_bit", "cannot be trained", {"finetuning_type": "lora"}),
    Fault(13, {"quantization_bit": 4, "pissa_init": True}, "quantization_bit", "pissa_init", gone("pissa_init")),
    Fault(13, {"quantization_bit": 4, "resize_vocab": True}, "resize_vocab", "resized", gone("resize_vocab")),
    Fault(13, {"quantization_bit": 4, "adapter_name_or_path": "models/adapter", "create_new_adapter": True}, "create_new_adapter", "second adapter", gone("create_new_adapter")),
    Fault(13, {"quantization_bit": 4, "adapter_name_or_path": "models/adapter,models/adapter"}, "adapter_name_or_path", "are several", {"adapter_name_or_path": "models/adapter"}),
    Fault(13, {"quantization_bit": 4, "quantization_device_map": "auto"}, "quantization_device_map", "not for training", gone("quantization_device_map")),
    Fault(13, {"fp8": True, "quantization_bit": 4}, "fp8", "quantised base", gone("fp8")),
    Fault(13, {"adapter_name_or_path": "models/adapter", "export_quantization_bit": 4, "export_quantization_dataset": "data/text.json"}, "export_quantization_bit", "in one step", gone("adapter_name_or_path"), base=EXPORT),
    Fault(13, {"model_name_or_path": "models/gptq", "adapter_name_or_path": "models/adapter"}, "adapter_name_or_path", "no adapter can be merged", {"model_name_or_path": "models/tiny"}, base=EXPORT, needs=PACKAGE),
    Fault(14, {"adapter_name_or_path": "models/adapter", "finetuning_type": "oft"}, "adapter_name_or_path", "lora only", {"finetuning_type": "lora"}),
    Fault(15, {"pure_bf16": True}, "pure_bf16", "without a GPU", {"pure_bf16": None, "bf16": True}),
    Fault(15, {"pure_bf16": True, "deepspeed": {"zero_optimization": {"stage": 3}}}, "pure_bf16", "ZeRO-3", gone("deepspeed"), on="h100x2", needs=GPU),
    Fault(16, {"fp16": True, "bf16": True}, "fp16", "both switched on", gone("fp16")),
    Fault(16, {"fp16_full_eval": True, "bf16_full_eval": True, "use_cpu": True}, "fp16_full_eval", "both switched on", gone("fp16_full_eval")),
    Fault(16, {"bf16_full_eval": True}, "bf16_full_eval", "without a GPU", {"use_cpu": True}),
    Fault(16, {"tf32": True}, "tf32", "Ampere", gone("tf32")),
    Fault(17, {"infer_backend": "vllm", "stage": "rm"}, "stage", "vLLM", gone("stage"), base=CHAT),
    Fault(17, {"infer_backend": "vllm", "quantization_bit": 4}, "quantization_bit", "vLLM", gone("quantization_bit"), base=CHAT),
    Fault(17, {"infer_backend": "vllm", "adapter_name_or_path": "models/adapter,models/adapter"}, "adapter_name_or_path", "vLLM", {"adapter_name_or_path": "models/adapter"}, base=CHAT),
    Fault(18, {"deepspeed": "no/such.json"}, "deepspeed", "does not exist", gone("deepspeed")),
    Fault(19, {"use_galore": True, "finetuning_type": "full", "optim": "adamw_torch", "deepspeed": {"zero_optimization": {"stage": 2}}}, "use_galore", "DeepSpeed", gone("deepspeed"), needs=DEEPSPEED),
    Fault(19, {"use_apollo": True, "apollo_layerwise": True, "finetuning_type": "full", "optim": "adamw_torch"}, "apollo_layerwise", "one process", {"apollo_layerwise": False}, on="h100x2", needs=GPU),
    Fault(19, {"use_badam": True, "badam_mode": "ratio", "finetuning_type": "full"}, "badam_mode", "one process", gone("use_badam"), on="h100x2", needs=GPU),
    Fault(19, {"use_badam": True, "finetuning_type": "full"}, "use_badam", "needs ZeRO-3", gone("use_badam"), on="h100x2", needs=GPU),
    Fault(19, {"use_unsloth": True, "deepspeed": {"zero_optimization": {"stage": 3}}}, "use_unsloth", "ZeRO-3", gone("use_unsloth"), needs=DEEPSPEED),
    Fault(19, {"use_kt": True, "deepspeed": {"zero_optimization": {"stage": 3}}}, "use_kt", "ZeRO-3", gone("use_kt"), needs=DEEPSPEED),
    Fault(19, {"pissa_init": True, "deepspeed": {"zero_optimization": {"stage": 3}}}, "pissa_init", "ZeRO-3", gone("deepspeed"), needs=DEEPSPEED),
    Fault(20, {"val_size": 4, "eval_strategy": "epoch", "load_best_model_at_end": True}, "load_best_model_at_end", "save when it evaluates", {"save_strategy": "epoch"}),
    Fault(20, {**EVAL, "eval_steps": 2, "save_steps": 3, "load_best_model_at_end": True}, "save_steps", "multiple", {"save_steps": 4}),
    Fault(21, {"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type", "follows the evaluation", EVAL),
    Fault(21, {"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor", "there are none", {"dataloader_num_workers": 1}),
    Fault(21, {"ddp_backend": "gloo"}, "ddp_backend", "several processes", gone("ddp_backend")),
    Fault(21, {"logging_steps": 0}, "logging_steps", "transformers refuses it", {"logging_steps": 1}),
    Fault(21, {"save_steps": 2.5}, "save_steps", "whole number", {"save_steps": 2}),
    Fault(21, {"warmup_steps": -1}, "warmup_steps", "transformers refuses it", {"warmup_steps": 1}),
    Fault(22, {"optim": "adamw_hf"}, "optim", "cannot be 'adamw_hf'", {"optim": "adamw_torch"}),
    Fault(22, {"lr_scheduler_type": "cosin"}, "lr_scheduler_type", "cannot be 'cosin'", {"lr_scheduler_type": "cosine"}),
    Fault(22, {"hub_strategy": "always"}, "hub_strategy", "cannot be 'always'", gone("hub_strategy")),
    Fault(23, {"image_max_pixels": 100}, "image_max_pixels", "below", gone("image_max_pixels")),
    Fault(23, {"video_max_pixels": 100}, "video_max_pixels", "below", gone("video_max_pixels")),
    Fault(23, {"export_quantization_bit": 4}, "export_quantization_bit", "rows to measure", gone("export_quantization_bit"), base=EXPORT),
    Fault(25, {"seed": "forty-two"}, "seed", "whole number", {"seed": 42}),
    Fault(26, {"stage": "sftt"}, "stage", "cannot be 'sftt'", {"stage": "sft"}),
    Fault(27, {"neat_packing": True, "packing": False}, "packing", "whatever packing says", gone("packing"), WARNS),
    Fault(28, {"lora_alpha": 0}, "lora_alpha", "2 x lora_rank", gone("lora_alpha"), WARNS),
    Fault(29, {"warmup_steps": 1, "warmup_ratio": 0.5}, "warmup_steps", "overrides", gone("warmup_ratio"), WARNS),
    Fault(30, {"logging_dir": "logs"}, "logging_dir", "ignored", gone("logging_dir"), WARNS),
    Fault(31, {"eval_steps": 1}, "eval_steps", "nothing is evaluated", {"eval_steps": None}, WARNS),
    Fault(31, {"val_size": 4}, "val_size", "nothing is evaluated", {"eval_strategy": "epoch"}, WARNS),
    Fault(33, {"do_train": None}, "dataset", "does nothing and reports success", {"do_train": True}),
    Fault(34, {"val_size": 1.0, "eval_strategy": "epoch"}, "val_size", "leaves no row", {"val_size": 0.5}),
    Fault(34, {"val_size": -1}, "val_size", "no evaluation set", {"val_size": 0}),
    Fault(35, {"fp8_enable_fsdp_float8_all_gather": True}, "fp8_enable_fsdp_float8_all_gather", "fp8 stays off", gone("fp8_enable_fsdp_float8_all_gather"), WARNS),
    Fault(35, {"fp8": True}, "fp8", "no fp8 on a CPU", gone("fp8"), WARNS),
    Fault(36, {"dataset": "little,little"}, "dataset", "named twice", {"dataset": "little"}, WARNS),
    Fault(36, {"dataset": "little,"}, "dataset", "empty name", {"dataset": "little"}),
    Fault(37, {"fp16": True}, "fp16", "fp16 cannot run", gone("fp16")),
    Fault(37, {"fp16": "'False'"}, "fp16", "true or false", {"fp16": False}),
    Fault(39, {"use_cpu": True}, "use_cpu", "placed there all the same", gone("use_cpu"), WARNS, on="h100", needs=GPU),
    Fault(40, {"export_device": "cuda"}, "export_device", "cannot be 'cuda'", {"export_device": "auto"}, base=EXPORT),
    Fault(40, {"export_legacy_format": True}, "export_legacy_format", "no effect", gone("export_legacy_format"), WARNS, base=EXPORT),
    Fault(41, {"finetuning_type": "freeze", "freeze_trainable_layers": 99}, "freeze_trainable_layers", "all of them are trained", {"freeze_trainable_layers": 2}, WARNS),
    Fault(41, {**DPO, "pref_beta": -1}, "pref_beta", "learns the rejected", {"pref_beta": 0.1}, WARNS),
    Fault(41, {"learning_rate": 100}, "learning_rate", "frozen loss", {"learning_rate": 1e-4}, WARNS),
    Fault(42, {"template": "qwn"}, "template", "cannot be 'qwn'", {"template": "qwen"}),
    Fault(42, {"tool_format": "qwn"}, "tool_format", "cannot be 'qwn'", gone("tool_format")),
    Fault(43, {"template": None}, "template", "guesses one", {"template": "qwen"}, WARNS),
    Fault(44, {"template": "qwen2_vl"}, "template", "no processor", {"template": "qwen"}),
    Fault(45, {"train_on_prompt": True, "template": "glm4"}, "train_on_prompt", "no end of turn", gone("train_on_prompt")),
    Fault(46, {"stage": "dpo"}, "little", "ranked pairs", {"stage": "sft"}),
    Fault(46, {"dataset": "pairs"}, "pairs.ranking", "cannot train stage sft", {"dataset": "little"}),
    Fault(46, {"stage": "kto"}, "little.columns", "kto_tag", {"stage": "sft"}),
    Fault(47, {"streaming": True}, "streaming", "StopIteration", {"dataloader_num_workers": 1}),
    Fault(48, {"dataset": "little,more", "mix_strategy": "interleave_once"}, "mix_strategy", "always fails", {"mix_strategy": "interleave_over"}),
    Fault(48, {"dataset": "little,more", "interleave_probs": "0.5,0.4", "mix_strategy": "interleave_under"}, "interleave_probs", "add up to 1", {"interleave_probs": "0.5,0.5"}),
    Fault(49, {"val_size": 99, "eval_strategy": "epoch"}, "val_size", "none is left", {"val_size": 4}),
    Fault(49, {"max_samples": 0}, "max_samples", "no row would be left", {"max_samples": 8}),
    Fault(0, {"finetuning_type": "lora"}, "finetuning_type", "has faulted", {"finetuning_type": "freeze"}, WARNS, on="r9700", needs=GPU),
    Fault(0, {"per_device_train_batch_size": 1024, "cutoff_len": 512, "kit": {"precision": "fp32"}}, "per_device_train_batch_size", "came out wrong", {"per_device_train_batch_size": 1}, WARNS, on="r9700", needs=GPU),
    Fault(0, {"torch_compile": True, "kit": {"precision": "bf16"}}, "torch_compile", "LLVM ERROR", {"kit": {"precision": "fp16"}}, on="rx6800xt", needs=GPU),
    Fault(0, {"enable_liger_kernel": True, "kit": {"precision": "bf16"}}, "enable_liger_kernel", "LLVM ERROR", {"kit": {"precision": "fp16"}}, on="rx6800xt", needs=GPU),
    Fault(0, {"enable_liger_kernel": True}, "enable_liger_kernel", "does not know gfx906", gone("enable_liger_kernel"), on="mi50", needs=GPU),
    Fault(0, {"enable_liger_kernel": True}, "enable_liger_kernel", "not known to run", gone("enable_liger_kernel"), WARNS, on="mi25", needs=GPU),
    Fault(0, {"enable_liger_kernel": True}, "enable_liger_kernel", "learns from zeros", gone("enable_liger_kernel"), on="rx5700xt", needs=GPU),
    Fault(0, {"torch_compile": True}, "torch_compile", "does not help", gone("torch_compile"), WARNS, on="mi50", needs=GPU),
    Fault(0, {"torch_compile": True}, "torch_compile", "learns from zeros", gone("torch_compile"), on="rx5700xt", needs=GPU),
    Fault(0, {"optim": "adamw_torch_8bit"}, "optim", "compiled by Triton", {"optim": "adamw_torch"}, WARNS, on="mi50", needs=GPU),
    Fault(0, {"optim": "adamw_8bit"}, "optim", "no ready-made build", {"optim": "adamw_torch"}, WARNS, on="mi50", needs=GPU),
    Fault(0, {"optim": "paged_adamw_32bit"}, "optim", "has no build", {"optim": "adamw_torch"}, on="rx5700xt", needs=GPU),
    Fault(0, {"flash_attn": "fa2", "bf16": True}, "flash_attn", "transformers 5.6.0", {"flash_attn": "sdpa"}, on="h100", needs=GPU),
    Fault(0, {"packing": True, "cutoff_len": 100}, "cutoff_len", "multiple of 8", {"cutoff_len": 104}),
    Fault(0, {"neat_packing": True, "template": "gemma4"}, "neat_packing", "blank picture", gone("neat_packing")),
    Fault(0, {"packing": True}, "packing", "see each other", {"neat_packing": True}, WARNS),
    Fault(0, {"add_tokens": "<new>", "model_name_or_path": "models/padded"}, "add_tokens", "spare rows", gone("add_tokens"), WARNS),
    Fault(0, {"model_name_or_path": "models/delta"}, "model_name_or_path", "1.7 times", {"model_name_or_path": "models/tiny"}, WARNS, on="h100", needs=GPU),
    Fault(51, {"tokenized_path": "tokenized"}, "tokenized_path", "are ignored", gone("tokenized_path"), WARNS),
    Fault(51, {"tokenized_path": "tokenized", "do_eval": True, "val_size": 4}, "tokenized_path", "fails after the training", gone("tokenized_path")),
    Fault(52, {"cutoff_len": 0}, "cutoff_len", "first training step fails", {"cutoff_len": 64}),
    Fault(53, {"flash_attn": "eager"}, "flash_attn", "cannot be 'eager'", {"flash_attn": "disabled"}),
    Fault(53, {"flash_attn": "fa3"}, "flash_attn", "refused", {"flash_attn": "sdpa"}),
    Fault(54, {"rope_scaling": "linear", "cutoff_len": 1024}, "rope_scaling", "does not work", gone("rope_scaling")),
    Fault(54, {"rope_scaling": "yarn"}, "rope_scaling", "does not work", gone("rope_scaling"), base=CHAT),
    Fault(54, {"rope_scaling": "linear"}, "rope_scaling", "switched off", gone("rope_scaling"), WARNS),
    Fault(55, {"quantization_bit": 3}, "quantization_bit", "3 bits", {"quantization_bit": 4}),
    Fault(56, {"quantization_bit": 4, "quantization_method": "gptq"}, "quantization_method", "quantises nothing", {"quantization_method": "bnb"}),
    Fault(56, {"quantization_bit": 4, "quantization_method": "bitsandbytes"}, "quantization_method", "cannot be", {"quantization_method": "bnb"}),
    Fault(56, {"quantization_bit": 4, "model_name_or_path": "models/gptq"}, "quantization_bit", "quantised already", gone("quantization_bit"), WARNS, needs=PACKAGE),
    Fault(56, {"finetuning_type": "full", "model_name_or_path": "models/gptq"}, "model_name_or_path", "cannot train it", {"finetuning_type": "lora"}, needs=PACKAGE),
    Fault(56, {"model_name_or_path": "models/gptq", "deepspeed": {"zero_optimization": {"stage": 3}}}, "model_name_or_path", "share out", gone("deepspeed"), needs=DEEPSPEED),
    Fault(56, {"quantization_bit": 4, "quantization_method": "hqq", "deepspeed": {"zero_optimization": {"stage": 3}}}, "quantization_method", "shared out", gone("deepspeed"), needs=DEEPSPEED),
    Fault(56, {"quantization_bit": 8, "deepspeed": {"zero_optimization": {"stage": 3}}}, "quantization_bit", "4-bit weights", {"quantization_bit": 4}, needs=DEEPSPEED),
    Fault(57, {"quantization_bit": 4, "use_dora": True}, "use_dora", "refused after", gone("use_dora"), needs=PACKAGE),
    Fault(58, {"shift_attn": True, "model_name_or_path": "models/llama"}, "shift_attn", "always fails", gone("shift_attn")),
    Fault(58, {"shift_attn": True}, "shift_attn", "no effect", gone("shift_attn"), WARNS),
    Fault(59, {"enable_liger_kernel": True, "model_name_or_path": "models/gpt2"}, "enable_liger_kernel", "no effect", gone("enable_liger_kernel"), WARNS, needs=PACKAGE),
    Fault(59, {"use_liger_kernel": True}, "use_liger_kernel", "transformers' switch", gone("use_liger_kernel"), WARNS, needs=PACKAGE),
    Fault(60, {"lora_target": "q_prj"}, "lora_target", "no layer 'q_prj'", {"lora_target": "q_proj"}),
    Fault(60, {"lora_target": "q_proj,v_prj"}, "lora_target", "no layer 'v_prj'", {"lora_target": "q_proj,v_proj"}),
    Fault(60, {"additional_target": "embed_tokns"}, "additional_target", "no layer 'embed_tokns'", {"additional_target": "embed_tokens"}),
    Fault(60, {"lora_rank": 0}, "lora_rank", "PEFT refuses it", {"lora_rank": 8}),
    Fault(60, {"lora_dropout": 1.0}, "lora_dropout", "PEFT refuses it", {"lora_dropout": 0.1}),
    Fault(61, {"finetuning_type": "freeze", "use_llama_pro": True, "freeze_trainable_layers": 3}, "freeze_trainable_layers", "divide evenly", {"freeze_trainable_layers": 2}),
    Fault(62, {"model_name_or_path": "models/cut"}, "model_name_or_path", "model.safetensors", {"model_name_or_path": "models/tiny"}),
    Fault(62, {"model_name_or_path": "models/weightless"}, "model_name_or_path", "no weights", {"model_name_or_path": "models/tiny"}),
    Fault(63, {"adapter_name_or_path": "models/tiny"}, "adapter_name_or_path", "whole model, not an adapter", {"adapter_name_or_path": "models/adapter"}),
    Fault(63, {"adapter_name_or_path": "models/wide-adapter"}, "adapter_name_or_path", "wide", {"adapter_name_or_path": "models/adapter"}),
    Fault(63, {"model_name_or_path": "models/adapter"}, "model_name_or_path", "not a whole model", {"model_name_or_path": "models/tiny"}),
    Fault(65, {"infer_dtype": "fp16"}, "infer_dtype", "cannot be 'fp16'", {"infer_dtype": "float16"}, base=CHAT),
    Fault(66, {"report_to": "wandd"}, "report_to", "cannot be 'wandd'", {"report_to": "none"}),
    Fault(67, {**EVAL, "save_strategy": "best"}, "save_strategy", "by which measure", {"metric_for_best_model": "loss"}),
    Fault(68, {"per_device_train_batch_size": 0}, "per_device_train_batch_size", "data loader refuses", {"per_device_train_batch_size": 1}),
    Fault(68, {"gradient_accumulation_steps": 0}, "gradient_accumulation_steps", "fails after", {"gradient_accumulation_steps": 1}),
    Fault(68, {"learning_rate": "fast"}, "learning_rate", "a number", {"learning_rate": 1e-4}),
    Fault(69, {"use_galore": True, "finetuning_type": "full"}, "use_galore", "adamw_torch_fused", {"optim": "adamw_torch"}, needs=PACKAGE),
    Fault(69, {"use_apollo": True, "finetuning_type": "full", "optim": "adafactor"}, "optim", "adafactor", {"optim": "adamw_torch"}, needs=PACKAGE),
    Fault(69, {"use_galore": True, "galore_layerwise": True, "finetuning_type": "full", "optim": "adamw_torch", "gradient_accumulation_steps": 2}, "gradient_accumulation_steps", "accumulate", {"gradient_accumulation_steps": 1}, needs=PACKAGE),
    Fault(70, {"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type", "min_lr", {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}}),
    Fault(70, {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"min_lr": 1e-6}}, "lr_scheduler_kwargs", "does not take", gone("lr_scheduler_kwargs")),
    Fault(71, {"resume_from_checkpoint": "output/checkpoint-7"}, "resume_from_checkpoint", "does not exist", gone("resume_from_checkpoint")),
    Fault(72, RM, "stage", "starts over", {"stage": "sft", "dataset": "little"}, WARNS),
    Fault(72, {"pissa_init": True, "pissa_convert": True}, "pissa_convert", "starts over", gone("pissa_convert"), WARNS),
    Fault(73, {"fsdp": "full_shard"}, "fsdp", "no device", gone("fsdp")),
    Fault(73, {"dataloader_drop_last": True, "per_device_train_batch_size": 64, "max_steps": None, "num_train_epochs": 1.0}, "dataloader_drop_last", "no full batch", {"dataloader_drop_last": False}),
    Fault(74, {**PPO, "adapter_name_or_path": "models/adapter"}, "adapter_name_or_path", "switching every adapter off", {"create_new_adapter": True}, WARNS),
    Fault(19, {**PPO, "deepspeed": {"zero_optimization": {"stage": 2}}}, "deepspeed", "no DeepSpeed", gone("deepspeed"), needs=DEEPSPEED),
    Fault(0, {"kit": {"reward": "another"}}, "kit.reward", "is for stage ppo", gone("kit")),
    Fault(75, {"use_asft_loss": True}, "use_asft_loss", "first step fails", {"finetuning_type": "full"}),
    Fault(76, {"use_unsloth_gc": True}, "use_unsloth_gc", "there is none", gone("use_unsloth_gc")),
    Fault(76, {"neat_packing": True, "flash_attn": "fa2", "bf16": True}, "neat_packing", "one packed row", {"per_device_train_batch_size": 1}, on="h100", needs=GPU),
    Fault(77, {"model_name_or_path": "models/bf16", "finetuning_type": "freeze", "kit": {"precision": "as-saved"}}, "finetuning_type", "first step fails", {"kit": {"precision": "fp32"}}),
    Fault(77, {"model_name_or_path": "models/bf16", "additional_target": "embed_tokens", "kit": {"precision": "as-saved"}}, "additional_target", "first step fails", {"kit": {"precision": "fp32"}}),
    Fault(78, {"template": "llama3"}, "template", "does not have", {"template": "qwen"}),
    Fault(79, {"finetuning_type": "freeze", "freeze_trainable_layers": 0}, "freeze_trainable_layers", "first step fails", {"freeze_trainable_layers": 1}),
    Fault(80, {**EVAL, "early_stopping_steps": 2}, "early_stopping_steps", "measure to stop by", {"metric_for_best_model": "loss"}),
    Fault(80, {"early_stopping_steps": 2, "metric_for_best_model": "loss"}, "early_stopping_steps", "there are none", EVAL),
    Fault(81, {**EVAL, "metric_for_best_model": "accuracy"}, "metric_for_best_model", "no accuracy", {"compute_accuracy": True}),
    Fault(81, {**EVAL, "metric_for_best_model": "loss", "predict_with_generate": True}, "metric_for_best_model", "measures no loss", gone("predict_with_generate")),
    Fault(81, {"eval_dataset": "little,more", "eval_strategy": "steps", "eval_steps": 1, "eval_on_each_dataset": True, "load_best_model_at_end": True}, "load_best_model_at_end", "none for all", gone("eval_on_each_dataset")),
    Fault(82, {"eval_dataset": "little,more", "eval_on_each_dataset": True}, "eval_on_each_dataset", "one by one", gone("eval_on_each_dataset"), base=PREDICT),
    Fault(83, {**RM, "finetuning_type": "full"}, "stage", "first save", {"finetuning_type": "lora"}),
    Fault(83, {**RM, "finetuning_type": "freeze"}, "stage", "first save", {"finetuning_type": "lora"}),
    Fault(84, {**EVAL, "per_device_eval_batch_size": 0}, "per_device_eval_batch_size", "first evaluation fails", {"per_device_eval_batch_size": 1}),
    Fault(86, {"finetuning_type": "oft", "use_reentrant_gc": True, "kit": {"devices": 2, "launcher": "ddp"}}, "use_reentrant_gc", "ready only once", {"ddp_find_unused_parameters": False}),
    Fault(86, {**RM, "finetuning_type": "full", "use_reentrant_gc": True, "kit": {"devices": 2, "launcher": "ddp"}}, "use_reentrant_gc", "ready only once", {"use_reentrant_gc": False}),
    Fault(88, {**DPO, "pref_loss": "hinge"}, "pref_loss", "sigmoid", {"pref_loss": "simpo"}),
    Fault(88, {**DPO, "pref_loss": "ipo"}, "pref_loss", "sigmoid", {"pref_loss": "orpo"}),
    Fault(89, {"adapter_name_or_path": "models/adapter", "lora_rank": 16}, "lora_rank", "keeps its own rank", {"create_new_adapter": True}, WARNS),
    Fault(92, {"num_train_epochs": 0, "max_steps": None}, "num_train_epochs", "untrained", {"num_train_epochs": 1}),
    Fault(92, {"max_steps": 0}, "max_steps", "not set", {"max_steps": 2}, WARNS),
    Fault(92, {"warmup_steps": 50}, "warmup_steps", "never reached", {"warmup_steps": 1}, WARNS),
    Fault(92, {"gradient_accumulation_steps": 64, "max_steps": None, "num_train_epochs": 25.0}, "gradient_accumulation_steps", "fewer rows than asked", {"gradient_accumulation_steps": 4}, WARNS),
    Fault(92, {"max_steps": None, "num_train_epochs": 1.0, "gradient_accumulation_steps": 4}, "gradient_accumulation_steps", "too few to learn from", {"num_train_epochs": 40.0}, WARNS),
    Fault(96, {"lora_target": "q_proj,lm_head"}, "lora_target", "merges wrongly", {"lora_target": "q_proj"}),
    Fault(96, {"pissa_init": True, "pissa_iter": 16}, "pissa_iter", "drawn at random", {"pissa_iter": -1}, WARNS),
    Fault(97, {"export_dir": "models/tiny"}, "export_dir", "would overwrite it", {"export_dir": "merged"}, base=EXPORT, needs="a model that may be overwritten"),
    Fault(97, {"adapter_name_or_path": "models/adapter", "export_dir": "models/adapter"}, "export_dir", "would overwrite it", {"export_dir": "merged"}, base=EXPORT, needs="an adapter that may be overwritten"),
    Fault(100, {"model_name_or_path": "models/wordless"}, "model_name_or_path", "no tokenizer", {"model_name_or_path": "models/tiny"}),
    Fault(0, {"gradient_checkpointing": False}, "gradient_checkpointing", "does not switch it off", {"gradient_checkpointing": None, "disable_gradient_checkpointing": True}, WARNS),
    Fault(0, {"gradient_checkpointing": True, "disable_gradient_checkpointing": True}, "disable_gradient_checkpointing", "switches on what", gone("gradient_checkpointing"), WARNS),
    Fault(0, {"gradient_checkpointing_kwargs": {"use_reentrant": False}}, "gradient_checkpointing_kwargs", "is not read", gone("gradient_checkpointing_kwargs"), WARNS),
    Fault(0, {"remove_unused_columns": True}, "remove_unused_columns", "whatever it says", gone("remove_unused_columns"), WARNS),
    Fault(0, {"sortish_sampler": True}, "sortish_sampler", "nothing reads", gone("sortish_sampler"), WARNS),
    Fault(0, {"hyper_parallel_args": "x.json"}, "hyper_parallel_args", "nothing reads", gone("hyper_parallel_args"), WARNS),
    Fault(0, {"use_mca": True}, "use_mca", "USE_MCA decides", gone("use_mca"), WARNS),
    Fault(0, {"torch_compile": False, "torch_compile_backend": "inductor"}, "torch_compile", "whatever it says", gone("torch_compile_backend"), WARNS),
    Fault(0, {**EVAL, "do_eval": False}, "do_eval", "switches do_eval on", gone("do_eval"), WARNS),
    Fault(0, {**EVAL, "predict_with_generate": True, "eval_num_beams": 2, "generation_num_beams": 3}, "generation_num_beams", "overrides", gone("generation_num_beams"), WARNS),
    Fault(0, {"eval_num_beams": 2}, "eval_num_beams", "between the steps", gone("eval_num_beams"), WARNS, base=PREDICT),
    Fault(0, {"max_length": 64, "max_new_tokens": 32}, "max_length", "is not read while", {"max_new_tokens": -1}, WARNS, base=CHAT),
    Fault(0, {"max_length": 64}, "max_length", "no training reads it", gone("max_length"), WARNS),
    Fault(0, {"do_train": None, "tokenized_path": "new"}, "tokenized_path", "only tokenised", {"do_train": True}, WARNS),
    Fault(0, {"add_special_tokens": "<new>", "init_special_tokens": "desc_init"}, "init_special_tokens", "noise_init", {"init_special_tokens": "noise_init"}, WARNS),
    Fault(0, {"use_muon": True, "optim": "adamw_torch"}, "optim", "of their own", gone("optim"), WARNS),
    Fault(0, {**DPO, "label_smoothing_factor": 0.1}, "label_smoothing_factor", "loss of its own", gone("label_smoothing_factor"), WARNS),
    Fault(0, {**DPO, "packing": True}, "packing", "only pt and sft", gone("packing"), WARNS),
    Fault(0, {"finetuning_type": "full", "lora_rank": 0}, "lora_rank", "is not read with finetuning_type full", gone("lora_rank"), WARNS),
    Fault(0, {"quantization_method": "bitsandbytes"}, "quantization_method", "is not read without quantization_bit", gone("quantization_method"), WARNS),
    Fault(0, {"push_to_hub": True}, "push_to_hub", "names no target", {"hub_model_id": "me/mine"}, needs="a hub"),
    Fault(0, {"trust_remote_code": True}, "trust_remote_code", "program code", gone("trust_remote_code"), WARNS),
)  # fmt: skip

# What of the hundred has no line in the table above, and why.
ELSEWHERE = {
    24: "the plan: every run has an output folder of its own, so nothing is resumed or refused because of what lies there",
    32: "the plan: output_dir is always given",
    38: "harmless: LLaMA-Factory sets what LoRA in several processes needs",
    50: "not decidable: it takes the tokens of every row; LLaMA-Factory says so within seconds, as the text is shorter than one block",
    64: "not decidable from a recipe: it depends on files that only the hub has; the run's own refusal is explained",
    85: "the run folder: a resumed run keeps the arguments it was started with, its optimizer among them",
    87: "the machine table: ACCELERATE_TORCH_DEVICE=cpu is set where several processes train on a CPU",
    90: "the plan: a finished run is never started again in its own folder",
    91: "the plan: a new run has a new folder, with no older checkpoints in it",
    93: "the data set's check: rows that cutoff_len cuts are counted",
    94: "the plan: the data cache lies in the run's own folder",
    95: "the data set's check: empty answers and dropped rows are counted",
    98: "the data set's check: prompts that cutoff_len cuts are counted",
    99: "the estimate of disk space: checkpoints are counted as fp32",
}

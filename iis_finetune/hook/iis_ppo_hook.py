"""Inside a training of stage ppo, which runs LLaMA-Factory 0.9.3 with transformers 4.52 and a training loop of its own.

What would silently go wrong there is put right: it casts FP32 weights to half precision on a GPU, computes under
autocast (bf16 on a CPU, fp16 on a GPU) whatever `bf16` and `fp16` say, and overlooks what transformers 5 renamed in a
model's files. Sources: LLaMA-Factory 0.9.3 extras/misc.py:204 and train/ppo/trainer.py:182, looked at 2026-11-21.
"""

from __future__ import annotations

from typing import Any

import iis_training_hook as training  # type: ignore[import-not-found] # beside this file, on the training's path only


def loads_what_the_folder_says(misc: Any) -> None:
    """The dtype of config.json, as LLaMA-Factory 0.9.5 does it: the precision views hold for both."""
    import torch

    misc.infer_optim_dtype = lambda model_dtype: model_dtype or torch.float32


def reads_newer_configs(module: Any) -> None:
    original = module.PretrainedConfig.from_dict.__func__

    def from_dict(cls: Any, config_dict: dict[str, Any], /, **named: Any) -> Any:
        return original(cls, as_version_4(config_dict), **named)

    module.PretrainedConfig.from_dict = classmethod(from_dict)


def as_version_4(config: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 writes torch_dtype as dtype, and puts rope_theta and rope_scaling into rope_parameters."""
    older = dict(config)
    if "dtype" in older:
        older["torch_dtype"] = older.pop("dtype")
    rope = older.pop("rope_parameters", None)
    if not isinstance(rope, dict):
        return older
    if any(isinstance(each, dict) for each in rope.values()):
        raise SystemExit(
            "iis-finetune: this model has rope_parameters for each kind of layer; stage ppo cannot read it"
        )
    rest = {name: value for name, value in rope.items() if name != "rope_theta"}
    theta = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    scaling = {"rope_scaling": rest} if rest.get("rope_type", "default") != "default" else {}
    return {**older, **theta, **scaling}


def reads_newer_tokenizers(module: Any) -> None:
    """What transformers 5 calls TokenizersBackend is PreTrainedTokenizerFast."""
    original = module.tokenizer_class_from_name

    def by_name(class_name: str) -> Any:
        return original("PreTrainedTokenizerFast" if class_name == "TokenizersBackend" else class_name)

    module.tokenizer_class_from_name = by_name


def reads_newer_special_tokens(module: Any) -> None:
    """transformers 5 writes additional_special_tokens as a list named extra_special_tokens."""
    original = module.PreTrainedTokenizerBase.__init__

    def init(self: Any, **named: Any) -> None:
        if isinstance(named.get("extra_special_tokens"), list):
            named["additional_special_tokens"] = named.pop("extra_special_tokens")
        original(self, **named)

    module.PreTrainedTokenizerBase.__init__ = init


def watch(module: Any) -> None:
    """Look on before the first step as in any other stage, with the autocast that the plan names."""
    original = module.CustomPPOTrainer.ppo_train

    def ppo_train(self: Any, resume_from_checkpoint: Any = None) -> Any:  # noqa: ARG001 - it raises at anything but None
        import torch
        from transformers import TrainerCallback

        mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        self.amp_context = torch.autocast(self.current_device.type, dtype=mixed, enabled=mixed is not None)
        training.look(self, TrainerCallback)
        return original(self)

    module.CustomPPOTrainer.ppo_train = ppo_train


PATCHES = {
    "transformers.configuration_utils": reads_newer_configs,
    "transformers.models.auto.tokenization_auto": reads_newer_tokenizers,
    "transformers.tokenization_utils_base": reads_newer_special_tokens,
    "llamafactory.extras.misc": loads_what_the_folder_says,
    "llamafactory.train.ppo.trainer": watch,
}

"""Rules of what is read and written around a training: exports, inference, checkpoints, code from elsewhere."""

from .case import Case, is_there, same
from .rule import ANY, OWN, Rule, warning


def over_its_source(case: Case) -> bool:
    """Whether the export would be written over the model or an adapter that it is made of."""
    folder = case.model.folder
    sources = [case["model_name_or_path"], *case.names("adapter_name_or_path"), *([str(folder)] if folder else [])]
    return bool(case["export_dir"]) and any(same(case["export_dir"], str(source)) for source in sources if source)


def lost_checkpoint(case: Case) -> bool:
    stated = case.recipe.value("resume_from_checkpoint")
    return isinstance(stated, str) and stated.lower() not in ("true", "false") and not is_there(stated)


RULES = (
    Rule(97, "export_dir", over_its_source,
         "export_dir '{c[export_dir]}' is what the export is made of: LLaMA-Factory would overwrite it, without a word",
         "give export_dir a folder of its own", "train/tuner.py:196", purposes=ANY),
    Rule(23, "export_quantization_bit", lambda c: c["export_quantization_bit"] and not c["export_quantization_dataset"],
         "quantising an export needs rows to measure by",
         "export_quantization_dataset: FILE, with a column 'text'", "hparams/model_args.py:397", purposes=ANY),
    Rule(23, "image_max_pixels image_min_pixels", lambda c: c["image_max_pixels"] < c["image_min_pixels"],
         "image_max_pixels {c[image_max_pixels]} is below image_min_pixels {c[image_min_pixels]}",
         "raise the one or lower the other", "hparams/model_args.py:348", purposes=ANY),
    Rule(23, "video_max_pixels video_min_pixels", lambda c: c["video_max_pixels"] < c["video_min_pixels"],
         "video_max_pixels {c[video_max_pixels]} is below video_min_pixels {c[video_min_pixels]}",
         "raise the one or lower the other", "hparams/model_args.py:351", purposes=ANY),
    Rule(13, "export_quantization_bit adapter_name_or_path",
         lambda c: c["export_quantization_bit"] and c["adapter_name_or_path"],
         "LLaMA-Factory does not merge and quantise in one step",
         "export without export_quantization_bit first, then quantise the result", "train/tuner.py:159",
         purposes=("export",)),
    Rule(13, "adapter_name_or_path model_name_or_path",
         lambda c: c["adapter_name_or_path"] and c.model.quantization,
         "{c.model.name} is quantised ({c.model.quantization}), and no adapter can be merged into that",
         "model_name_or_path: the model that was not quantised", "train/tuner.py:168", purposes=("export",)),
    Rule(17, "stage infer_backend", lambda c: c["infer_backend"] == "vllm" and c["stage"] != "sft",
         "vLLM serves models that write text, not stage {c[stage]}",
         "infer_backend: huggingface", "hparams/parser.py:546", purposes=("inference",)),
    Rule(17, "quantization_bit infer_backend", lambda c: c["infer_backend"] == "vllm" and c["quantization_bit"],
         "vLLM does not quantise as it loads",
         "infer_backend: huggingface, or remove quantization_bit", "hparams/parser.py:549", purposes=("inference",)),
    Rule(17, "adapter_name_or_path infer_backend",
         lambda c: c["infer_backend"] == "vllm" and len(c.names("adapter_name_or_path")) > 1,
         "vLLM takes one adapter, {c[adapter_name_or_path]} are several",
         "merge the earlier ones first", "hparams/parser.py:555", purposes=("inference",)),
    Rule(40, "export_legacy_format", lambda c: c["export_legacy_format"],
         "transformers 5 writes safetensors only: export_legacy_format has no effect",
         "remove export_legacy_format", "train/tuner.py:193", severity="warning", purposes=ANY),
    Rule(71, "resume_from_checkpoint", lost_checkpoint,
         "the checkpoint '{c[resume_from_checkpoint]}' does not exist",
         "remove the line: `iis-finetune resume RUN` goes on from a run's last good checkpoint",
         "transformers trainer.py", kind="missing", code=2),
    warning(72, "stage finetuning_type", lambda c: c.trains and c["stage"] == "rm",
            "no checkpoint of a reward model can be continued: an interrupted run starts over",
            "expect to leave it running to its end", "hparams/parser.py:479"),
    warning(72, "pissa_convert", lambda c: c.trains and c["pissa_init"] and c["pissa_convert"],
            "an interrupted run with pissa_convert starts over: after a resume the conversion would be wrong",
            "remove pissa_convert: the kit's export merges a PiSSA adapter as it is", "train/callbacks.py:140"),
    Rule(OWN, "push_to_hub", lambda c: c.trains and c["push_to_hub"] and not c["hub_model_id"],
         "push_to_hub names no target: every run would be pushed to a repository called 'output'",
         "hub_model_id: OWNER/NAME, after `hf auth login`, or remove push_to_hub",
         "transformers trainer.py init_hf_repo"),
    Rule(OWN, "trust_remote_code", lambda c: c["trust_remote_code"],
         "trust_remote_code runs the program code that comes with the model or data set",
         "remove it unless the model needs it, and read its *.py files then", "hparams/model_args.py:201",
         severity="warning", purposes=ANY),
)  # fmt: skip

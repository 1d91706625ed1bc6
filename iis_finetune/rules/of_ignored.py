"""Rules of arguments that LLaMA-Factory accepts and then overrides, or that nothing reads.

Found by benchmarks/final_arguments.py: every argument through LLaMA-Factory's own reader, given against final.
"""

from .case import Case
from .rule import ANY, OWN, Rule, warning

COMPILING = ("torch_compile_backend", "torch_compile_mode")
GENERATING = ("generation_max_length", "generation_num_beams", "eval_num_beams")
SMOOTHED = ("pt", "sft")
OWN_OPTIMIZERS = ("use_adam_mini", "use_muon")


def described(case: Case) -> bool:
    return case["init_special_tokens"] in ("desc_init", "desc_init_w_noise")


def smooths(case: Case) -> bool:
    return case.trains and case["stage"] not in SMOOTHED and case["label_smoothing_factor"] > 0


RULES = (
    warning(OWN, "gradient_checkpointing",
            lambda c: c.trains and c.says("gradient_checkpointing", False) and not c["disable_gradient_checkpointing"],
            "gradient_checkpointing is transformers' switch, and false does not switch it off: LLaMA-Factory has its "
            "own, which is on",
            "remove gradient_checkpointing and write 'disable_gradient_checkpointing: true'",
            "model/model_utils/checkpointing.py:164"),
    warning(OWN, "disable_gradient_checkpointing gradient_checkpointing",
            lambda c: c.trains and c["gradient_checkpointing"] and c["disable_gradient_checkpointing"],
            "gradient_checkpointing: true switches on what disable_gradient_checkpointing switches off",
            "remove gradient_checkpointing, or disable_gradient_checkpointing", "transformers trainer.py:1378"),
    warning(OWN, "gradient_checkpointing_kwargs",
            lambda c: c.trains and c["gradient_checkpointing_kwargs"] and not c["gradient_checkpointing"],
            "gradient_checkpointing_kwargs is not read: LLaMA-Factory switches gradient checkpointing on by itself",
            "remove gradient_checkpointing_kwargs; use_reentrant_gc is LLaMA-Factory's switch",
            "model/model_utils/checkpointing.py:174"),
    warning(OWN, "remove_unused_columns", lambda c: c["remove_unused_columns"] and c.states("remove_unused_columns"),
            "LLaMA-Factory sets remove_unused_columns to false, whatever it says here",
            "remove remove_unused_columns", "hparams/parser.py:459"),
    warning(OWN, "sortish_sampler", lambda c: c["sortish_sampler"],
            "nothing reads sortish_sampler",
            "remove sortish_sampler; 'train_sampling_strategy: group_by_length' puts rows of a length together",
            "transformers training_args_seq2seq.py:55"),
    warning(OWN, "hyper_parallel_args", lambda c: c["hyper_parallel_args"],
            "nothing reads hyper_parallel_args",
            "remove hyper_parallel_args", "hparams/finetuning_args.py:494"),
    warning(OWN, "use_mca", lambda c: c["use_mca"],
            "LLaMA-Factory sets use_mca itself: the environment variable USE_MCA decides",
            "remove use_mca", "hparams/parser.py:307"),
    warning(OWN, "torch_compile torch_compile_backend torch_compile_mode",
            lambda c: c.says("torch_compile", False) and c.states(*COMPILING),
            "torch_compile_backend and torch_compile_mode switch torch_compile on, whatever it says",
            "remove torch_compile_backend and torch_compile_mode", "transformers training_args.py:1577"),
    warning(OWN, "do_eval eval_strategy", lambda c: c.says("do_eval", False) and c["eval_strategy"] != "no",
            "eval_strategy {c[eval_strategy]} switches do_eval on, whatever it says",
            "remove do_eval, or eval_strategy", "transformers training_args.py:1537"),
    warning(OWN, "generation_num_beams eval_num_beams", lambda c: c["eval_num_beams"] and c["generation_num_beams"],
            "eval_num_beams overrides generation_num_beams",
            "remove generation_num_beams", "hparams/parser.py:458"),
    Rule(OWN, " ".join(GENERATING), lambda c: c.purpose == "evaluate" and c.states(*GENERATING),
         "generation_max_length, generation_num_beams and eval_num_beams are for evaluations between the steps of a "
         "training: do_eval and do_predict go by max_new_tokens and num_beams",
         "remove generation_max_length, generation_num_beams and eval_num_beams; max_new_tokens and num_beams are read",
         "train/sft/workflow.py:147; transformers trainer_seq2seq.py:182", severity="warning"),
    Rule(OWN, "max_length", lambda c: c.states("max_length") and c["max_new_tokens"] > 0,
         "max_length is not read while max_new_tokens is above 0, and it is {c[max_new_tokens]}",
         "max_new_tokens: -1, or remove max_length", "hparams/generating_args.py:68", severity="warning", purposes=ANY),
    warning(OWN, "init_special_tokens", lambda c: described(c) and not c["new_special_tokens_config"],
            "init_special_tokens {c[init_special_tokens]} needs new_special_tokens_config: LLaMA-Factory takes "
            "noise_init instead",
            "init_special_tokens: noise_init", "hparams/model_args.py:272"),
    warning(OWN, "optim use_adam_mini use_muon", lambda c: c.trains and c.states("optim") and c.some(*OWN_OPTIMIZERS),
            "use_adam_mini and use_muon bring an optimizer of their own: optim {c[optim]} is not read",
            "remove optim", "train/trainer_utils.py:544"),
    warning(OWN, "label_smoothing_factor", smooths,
            "label_smoothing_factor has no effect in stage {c[stage]}, which has a loss of its own",
            "remove label_smoothing_factor", "train/dpo/trainer.py:83; train/rm/trainer.py"),
    warning(OWN, "packing", lambda c: c.trains and c["packing"] and c["stage"] not in SMOOTHED,
            "packing has no effect in stage {c[stage]}: only pt and sft pack rows",
            "remove packing", "data/loader.py:207"),
)  # fmt: skip

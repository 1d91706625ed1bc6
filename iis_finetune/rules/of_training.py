"""Rules of the training loop: stages and their losses, optimizers, schedules, the number of steps."""

from .case import Case
from .of_data import tokenized
from .rule import OWN, Rule, warning

HONEST_LOSSES = ("sigmoid", "orpo", "simpo")
GALORE_OPTIMIZERS = ("adamw_torch", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "adafactor")
PLATEAU = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps")
MIN_LR = ("num_cycles", "min_lr", "min_lr_rate")
# What each schedule takes from lr_scheduler_kwargs; the two that are missing here ignore it.
SCHEDULES = {
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "reduce_lr_on_plateau": PLATEAU,
    "cosine_with_min_lr": MIN_LR,
    "cosine_warmup_with_min_lr": (*MIN_LR, "warmup_lr_rate"),
    "warmup_stable_decay": (
        "num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles",
    ),
    "greedy": (*PLATEAU, "warmup", "max_lr", "verbose", "smooth", "window_size", "reset_start"),
}  # fmt: skip


def schedule_arguments(case: Case) -> dict[str, object]:
    given = case["lr_scheduler_kwargs"]
    return given if isinstance(given, dict) else {}


def foreign_schedule_argument(case: Case) -> bool:
    known = SCHEDULES.get(case["lr_scheduler_type"])
    return known is not None and not set(schedule_arguments(case)) <= set(known)


def lowest_rates(case: Case) -> int:
    return len({"min_lr", "min_lr_rate"} & set(schedule_arguments(case)))


def layerwise(case: Case) -> bool:
    return bool((case["use_galore"] and case["galore_layerwise"]) or (case["use_apollo"] and case["apollo_layerwise"]))


def fewer_than_accumulated(case: Case) -> bool:
    return case.trains and case.batches is not None and 0 < case.batches < case.accumulation


RULES = (
    Rule(33, "dataset eval_dataset do_train",
         lambda c: c.purpose == "nothing" and (not c["tokenized_path"] or tokenized(c)),
         "without do_train, do_eval or do_predict LLaMA-Factory loads the model, does nothing and reports success",
         "do_train: true", "train/sft/workflow.py:120"),
    warning(74, "adapter_name_or_path",
            lambda c: c["stage"] == "ppo" and c["adapter_name_or_path"] and not c["create_new_adapter"],
            "PPO holds the model to its start by switching every adapter off: that is the base below the SFT adapter, "
            "and the training is pulled back towards it",
            "create_new_adapter: true, here and in the reward model's recipe", "trl 0.9.6 ppo_trainer.py:748"),
    Rule(9, "reward_model stage",
         lambda c: c["stage"] == "ppo" and not c["reward_model"] and not c.recipe.kit.reward,
         "PPO learns from a reward model, and none is given",
         "kit.reward: RECIPE of stage rm, or reward_model: FOLDER, the result of one",
         "hparams/finetuning_args.py:581"),
    Rule(OWN, "kit.reward stage", lambda c: c.recipe.kit.reward and c["stage"] != "ppo",
         "kit.reward is for stage ppo, and this is {c[stage]}: nothing would read it",
         "remove kit.reward", "train/ppo/workflow.py"),
    Rule(19, "kit.launcher deepspeed stage", lambda c: c["stage"] == "ppo" and c.zero_stage is not None,
         "stage ppo's own environment has no DeepSpeed",
         "kit.launcher: ddp or single", "constraints-ppo.txt"),
    Rule(9, "stage do_train", lambda c: c["stage"] == "ppo" and not c.trains,
         "stage ppo only trains, it evaluates nothing",
         "do_train: true, or stage: sft to evaluate", "hparams/parser.py:334"),
    Rule(9, "reward_model_type finetuning_type",
         lambda c: c["stage"] == "ppo" and c["reward_model_type"] == "lora" and c["finetuning_type"] != "lora",
         "a reward model that is an adapter needs a policy that is one too, not finetuning_type {c[finetuning_type]}",
         "reward_model_type: full, or finetuning_type: lora", "hparams/finetuning_args.py:584"),
    Rule(9, "report_to stage",
         lambda c: c["stage"] == "ppo" and not {*c.names("report_to")} <= {"wandb", "tensorboard", "none"},
         "stage ppo reports to wandb or tensorboard only",
         "report_to: tensorboard", "hparams/parser.py:348"),
    Rule(88, "pref_loss", lambda c: c["stage"] == "dpo" and c["pref_loss"] not in HONEST_LOSSES,
         "pref_loss {c[pref_loss]} trains with the sigmoid loss of DPO, without a word",
         "pref_loss: sigmoid, orpo or simpo", "trl 0.24.0 DPOTrainer.dpo_loss"),
    Rule(10, "dpo_label_smoothing",
         lambda c: c["stage"] == "dpo" and c["pref_loss"] != "sigmoid" and c["dpo_label_smoothing"] > 1e-6,
         "dpo_label_smoothing goes with the sigmoid loss only, not with {c[pref_loss]}",
         "remove dpo_label_smoothing, or pref_loss: sigmoid", "hparams/finetuning_args.py:590"),
    Rule(75, "use_asft_loss finetuning_type",
         lambda c: c["stage"] == "sft" and c["use_asft_loss"] and c["finetuning_type"] == "lora" and not c["ref_model"],
         "use_asft_loss compares with a second copy of the model, which a LoRA training does not load: the first step "
         "fails",
         "finetuning_type: full, or ref_model: the same base model", "train/trainer_utils.py:137"),
    Rule(12, "use_galore use_apollo use_badam",
         lambda c: c["finetuning_type"] == "lora" and c.some("use_galore", "use_apollo", "use_badam"),
         "GaLore, APOLLO and BAdam train whole weights; LoRA, the default, does not go with them",
         "finetuning_type: full", "hparams/finetuning_args.py:596"),
    Rule(12, "use_apollo use_badam use_galore",
         lambda c: sum(map(bool, (c["use_galore"], c["use_apollo"], c["use_badam"]))) > 1,
         "GaLore, APOLLO and BAdam are each an optimizer of its own, and two are asked for",
         "keep one of them", "hparams/finetuning_args.py:599"),
    Rule(69, "optim use_galore", lambda c: c.trains and c["use_galore"] and c["optim"] not in GALORE_OPTIMIZERS,
         "GaLore has no form of the optimizer {c[optim]}; this fails after the model is loaded",
         "optim: adamw_torch", "train/trainer_utils.py:246"),
    Rule(69, "optim use_apollo", lambda c: c.trains and c["use_apollo"] and c["optim"] != "adamw_torch",
         "APOLLO has no form of the optimizer {c[optim]}; this fails after the model is loaded",
         "optim: adamw_torch", "train/trainer_utils.py:333"),
    Rule(69, "gradient_accumulation_steps galore_layerwise apollo_layerwise",
         lambda c: c.trains and layerwise(c) and c.accumulation != 1,
         "a layerwise optimizer cannot accumulate gradients; this fails after the model is loaded",
         "gradient_accumulation_steps: 1", "train/trainer_utils.py:251"),
    Rule(19, "galore_layerwise apollo_layerwise", lambda c: layerwise(c) and c.processes > 1,
         "a layerwise optimizer works in one process, this run has {c.processes}",
         "galore_layerwise: false, apollo_layerwise: false", "hparams/parser.py:389"),
    Rule(19, "use_galore use_apollo", lambda c: c.zero_stage is not None and c.some("use_galore", "use_apollo"),
         "GaLore and APOLLO do not go with DeepSpeed",
         "kit.launcher: ddp, and no deepspeed line", "hparams/parser.py:401", by_launcher=True),
    Rule(19, "badam_mode use_badam", lambda c: c["use_badam"] and c["badam_mode"] == "ratio" and c.processes > 1,
         "badam_mode ratio works in one process, this run has {c.processes}",
         "badam_mode: layer and kit.launcher: zero3, or kit.devices: 1", "hparams/parser.py:396"),
    Rule(19, "use_badam",
         lambda c: c["use_badam"] and c["badam_mode"] == "layer" and c.processes > 1 and c.zero_stage != 3,
         "BAdam in {c.processes} processes needs ZeRO-3",
         "kit.launcher: zero3", "hparams/parser.py:398"),
    Rule(21, "lr_scheduler_type",
         lambda c: c["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy") and c["eval_strategy"] == "no",
         "lr_scheduler_type {c[lr_scheduler_type]} follows the evaluation, and there is none",
         "{c.evaluating}", "transformers training_args.py:1748"),
    Rule(70, "lr_scheduler_type lr_scheduler_kwargs",
         lambda c: c.trains and "with_min_lr" in c["lr_scheduler_type"] and lowest_rates(c) != 1,
         "lr_scheduler_type {c[lr_scheduler_type]} wants one of min_lr and min_lr_rate; this fails after the model is "
         "loaded",
         "lr_scheduler_kwargs: {{min_lr_rate: 0.1}}", "transformers optimization.py:377"),
    Rule(70, "lr_scheduler_kwargs", lambda c: c.trains and foreign_schedule_argument(c),
         "lr_scheduler_kwargs has a name that {c[lr_scheduler_type]} does not take; this fails after the model is "
         "loaded",
         "remove lr_scheduler_kwargs, or use the lr_scheduler_type it belongs to", "transformers optimization.py:960"),
    Rule(21, "dataloader_prefetch_factor",
         lambda c: c["dataloader_prefetch_factor"] is not None and c["dataloader_num_workers"] == 0,
         "dataloader_prefetch_factor is for data loader workers, and there are none",
         "dataloader_num_workers: 2", "transformers training_args.py:1760"),
    Rule(73, "dataloader_drop_last", lambda c: c.trains and c["dataloader_drop_last"] and c.batches == 0,
         "{c.rows} rows make no full batch of {c.micro_batch} x {c.processes}, and dataloader_drop_last drops the rest",
         "dataloader_drop_last: false", "transformers trainer.py:2346"),
    warning(29, "warmup_steps warmup_ratio", lambda c: c.states("warmup_ratio") and c["warmup_steps"] > 0,
            "warmup_ratio overrides warmup_steps",
            "keep one of the two lines", "transformers training_args.py:1513"),
    warning(92, "warmup_steps warmup_ratio",
            lambda c: c.trains and c.steps is not None and c.warmup >= max(1, c.steps),
            "the warm-up takes {c.warmup} steps, the whole run only {c.steps}: the learning rate is never reached",
            "warmup_ratio: 0.1", "transformers training_args.py:2107"),
    warning(92, "gradient_accumulation_steps kit.global_batch_size dataset", fewer_than_accumulated,
            "one epoch has {c.batches} batches and a step takes {c.accumulation}: each step has fewer rows than asked",
            "a smaller batch, or more rows", "transformers trainer.py:2317"),
    warning(30, "logging_dir", lambda c: c.states("logging_dir"),
            "logging_dir is ignored by transformers 5",
            "write 'kit: {{env: {{TENSORBOARD_LOGGING_DIR: ...}}}}'", "transformers training_args.py:1515"),
)  # fmt: skip

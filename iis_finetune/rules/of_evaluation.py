"""Rules of evaluation and checkpoints: on what, when, measured how, kept by which measure."""

from .case import Case
from .rule import Rule, warning


def saves_between(case: Case) -> bool:
    """Whether a checkpoint would be saved at a step that is not evaluated."""
    each = case["eval_steps"] or case["logging_steps"]
    saved = case["save_steps"]
    if each <= 0 or (each < 1) != (saved < 1):
        return True
    return bool(abs(saved / each - round(saved / each)) > 1e-9)


def keeps_best(case: Case) -> bool:
    return bool(case["load_best_model_at_end"]) and case["save_strategy"] != "best"


def without_accuracy(case: Case) -> bool:
    return case.metric == "accuracy" and case["stage"] in ("pt", "sft") and not case["compute_accuracy"]


RULES = (
    Rule(4, "eval_strategy do_eval do_predict predict_with_generate",
         lambda c: (c.evaluates or c.some("do_predict", "predict_with_generate"))
         and not c["eval_dataset"] and c["val_size"] < 1e-6,
         "there is nothing to evaluate on: neither eval_dataset nor val_size",
         "{c.held_out}", "hparams/parser.py:365"),
    Rule(8, "predict_with_generate stage", lambda c: c["stage"] != "sft" and c["predict_with_generate"],
         "predict_with_generate is for stage sft, not {c[stage]}",
         "remove predict_with_generate", "hparams/parser.py:318"),
    Rule(8, "neat_packing stage", lambda c: c["stage"] != "sft" and c["neat_packing"],
         "neat_packing is for stage sft, not {c[stage]}",
         "remove neat_packing", "hparams/parser.py:321"),
    Rule(8, "train_on_prompt mask_history stage",
         lambda c: c["stage"] != "sft" and c.some("train_on_prompt", "mask_history"),
         "train_on_prompt and mask_history are for stage sft, not {c[stage]}",
         "remove the line", "hparams/parser.py:324"),
    Rule(8, "do_predict", lambda c: c["stage"] == "sft" and c["do_predict"] and not c["predict_with_generate"],
         "do_predict writes nothing without generation, and LLaMA-Factory refuses it",
         "predict_with_generate: true", "hparams/parser.py:327"),
    Rule(8, "compute_accuracy predict_with_generate",
         lambda c: c["compute_accuracy"] and c["predict_with_generate"],
         "compute_accuracy and predict_with_generate measure the same rows in two ways that exclude each other",
         "keep one of the two lines", "hparams/parser.py:372"),
    warning(8, "do_predict stage", lambda c: c["do_predict"] and c["stage"] in ("pt", "dpo", "kto"),
            "do_predict does nothing in stage {c[stage]}, without a word",
            "remove do_predict", "train/sft/workflow.py:152"),
    Rule(9, "load_best_model_at_end stage", lambda c: c["load_best_model_at_end"] and c["stage"] in ("rm", "ppo"),
         "stage {c[stage]} cannot load_best_model_at_end",
         "remove load_best_model_at_end", "hparams/parser.py:330"),
    Rule(20, "load_best_model_at_end save_strategy eval_strategy",
         lambda c: keeps_best(c) and c["eval_strategy"] != c["save_strategy"],
         "load_best_model_at_end wants to save when it evaluates: save_strategy is {c[save_strategy]}, eval_strategy "
         "{c[eval_strategy]}",
         "give eval_strategy and save_strategy the same value", "transformers training_args.py:1707"),
    Rule(20, "save_steps eval_steps load_best_model_at_end",
         lambda c: keeps_best(c) and c["eval_strategy"] == c["save_strategy"] == "steps" and saves_between(c),
         "load_best_model_at_end wants save_steps to be a multiple of eval_steps",
         "give save_steps and eval_steps the same value", "transformers training_args.py:1727"),
    Rule(67, "save_strategy metric_for_best_model",
         lambda c: c.trains and c["save_strategy"] == "best" and not c.metric,
         "save_strategy best needs to know by which measure; this fails after the model is loaded",
         "metric_for_best_model: loss", "transformers trainer.py"),
    Rule(80, "early_stopping_steps", lambda c: c.trains and c["early_stopping_steps"] and not c.metric,
         "early_stopping_steps needs a measure to stop by; the training fails as it begins",
         "metric_for_best_model: loss", "transformers trainer_callback.py:463"),
    Rule(80, "early_stopping_steps",
         lambda c: c.trains and c["early_stopping_steps"] and c["eval_strategy"] == "no",
         "early_stopping_steps counts evaluations, and there are none; the training fails as it begins",
         "{c.evaluating}", "transformers trainer_callback.py:466"),
    Rule(81, "metric_for_best_model", lambda c: c.trains and c["eval_strategy"] != "no" and without_accuracy(c),
         "there is no accuracy to choose by: the first evaluation fails",
         "compute_accuracy: true", "transformers trainer.py:3126"),
    Rule(81, "metric_for_best_model load_best_model_at_end predict_with_generate",
         lambda c: c.trains and c["eval_strategy"] != "no" and c.metric == "loss" and c["predict_with_generate"],
         "predict_with_generate measures no loss to choose the best model by: the first evaluation fails",
         "metric_for_best_model: rouge-l, or remove predict_with_generate", "transformers trainer.py:3126"),
    Rule(81, "metric_for_best_model load_best_model_at_end eval_on_each_dataset",
         lambda c: c.trains and c["eval_strategy"] != "no" and c.metric == "loss" and c["eval_on_each_dataset"],
         "eval_on_each_dataset has a loss for each data set and none for all: the first evaluation fails",
         "metric_for_best_model: eval_NAME_loss", "transformers trainer.py:3126"),
    Rule(82, "eval_on_each_dataset do_predict", lambda c: c["do_predict"] and c["eval_on_each_dataset"],
         "do_predict cannot take the data sets one by one: it fails after they are read",
         "remove eval_on_each_dataset", "train/sft/workflow.py:154"),
    warning(31, "eval_steps val_size",
            lambda c: c.trains and not c.evaluates and (c.states("eval_steps") or c["val_size"] > 1e-6),
            "nothing is evaluated: eval_strategy is no, the default",
            "{c.evaluating}", "transformers training_args.py:1537"),
)  # fmt: skip

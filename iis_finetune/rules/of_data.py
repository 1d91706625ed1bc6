"""Rules of the data: which sets, mixed how, held out how, packed how, masked how, under which template."""

import json
from pathlib import Path

from ..arguments import find_model, find_template
from .case import Case, names_in
from .rule import Rule, warning

PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def tokenized(case: Case) -> bool:
    """Whether tokenised data lies there already, which LLaMA-Factory then takes and looks at nothing else."""
    return bool(case["tokenized_path"] and names_in(case["tokenized_path"]))


def without_evaluation_split(case: Case) -> bool:
    if not (tokenized(case) and (case.evaluates or case["do_predict"])):
        return False
    try:
        splits = json.loads((Path(case["tokenized_path"]) / "dataset_dict.json").read_bytes())["splits"]
        return not any(str(name).startswith("validation") for name in splits)
    except (OSError, ValueError, KeyError, TypeError):
        return True


def wrong_number(case: Case) -> bool:
    wanted = len(case.names("interleave_probs"))
    return any(case.states(key) and len(case.names(key)) != wanted for key in ("dataset", "eval_dataset"))


def wrong_sum(case: Case) -> bool:
    try:
        return abs(sum(map(float, case.names("interleave_probs"))) - 1) > 1e-6
    except ValueError:
        return True


def no_rows_left(case: Case) -> bool:
    held_out = case["val_size"]
    return case.rows is not None and not case["streaming"] and held_out >= 1 and int(held_out) >= case.rows


def without_processor(case: Case) -> bool:
    """A template with pictures or sound for a model that is known to have no processor for them."""
    template = find_template(case["template"]) if case["template"] else None
    if template is None or not template.multimodal:
        return False
    if case.model.folder:
        return not any((case.model.folder / name).is_file() for name in PROCESSORS)
    known = find_model(case.model.name)
    return known is not None and not known.multimodal


def masks_by_end(case: Case) -> bool:
    template = find_template(case["template"]) if case["train_on_prompt"] and case["template"] else None
    return template is not None and template.efficient_eos


RULES = (
    Rule(2, "do_train dataset", lambda c: c.trains and not c["dataset"],
         "there is nothing to train on: do_train without a data set",
         "dataset: NAME, one of data/dataset_info.json", "hparams/parser.py:360"),
    Rule(3, "val_size", lambda c: c["val_size"] > 1e-6 and not c["dataset"],
         "val_size holds out a part of 'dataset', which is not given",
         "remove val_size, or give dataset", "hparams/data_args.py:160"),
    Rule(3, "val_size eval_dataset", lambda c: c["val_size"] > 1e-6 and c["eval_dataset"],
         "val_size and eval_dataset both say what to evaluate on",
         "keep one of the two lines", "hparams/data_args.py:163"),
    Rule(5, "interleave_probs", lambda c: c["interleave_probs"] and c["mix_strategy"] == "concat",
         "interleave_probs means nothing to mix_strategy concat, the default, and LLaMA-Factory refuses it",
         "mix_strategy: interleave_under", "hparams/data_args.py:167"),
    Rule(5, "interleave_probs", lambda c: c["interleave_probs"] and wrong_number(c),
         "interleave_probs has another number of values than there are data sets",
         "give one value for each data set", "hparams/data_args.py:171"),
    Rule(48, "interleave_probs", lambda c: c["interleave_probs"] and wrong_sum(c),
         "interleave_probs do not add up to 1, which numpy refuses while the data is loaded",
         "make the sum 1", "datasets 4.0.0 interleave_datasets"),
    Rule(48, "mix_strategy", lambda c: c["mix_strategy"] == "interleave_once",
         "mix_strategy interleave_once always fails: it needs a newer datasets package than LLaMA-Factory allows",
         "mix_strategy: interleave_over, or concat", "data/data_utils.py:71"),
    Rule(6, "streaming max_steps", lambda c: c["streaming"] and c["max_steps"] < 1,
         "streaming has no end of its own: LLaMA-Factory wants max_steps",
         "max_steps: 1000", "hparams/parser.py:357"),
    Rule(6, "val_size streaming", lambda c: c["streaming"] and 1e-6 < c["val_size"] < 1,
         "streaming cannot hold out a share of the rows, only a number of them",
         "val_size: 100", "hparams/data_args.py:177"),
    Rule(6, "max_samples streaming", lambda c: c["streaming"] and c["max_samples"] is not None,
         "max_samples does not go with streaming, and LLaMA-Factory refuses it",
         "remove max_samples, or streaming", "hparams/data_args.py:180"),
    Rule(6, "tokenized_path streaming", lambda c: c["streaming"] and c["tokenized_path"] and not tokenized(c),
         "there is no tokenised data in '{c[tokenized_path]}', and streaming cannot write it there",
         "remove streaming for the first run, or tokenized_path", "data/loader.py:299"),
    Rule(47, "streaming dataloader_num_workers", lambda c: c["streaming"] and c["dataloader_num_workers"] < 1,
         "streaming a file with no data loader worker ends in a bare StopIteration: the file is cut into 0 parts",
         "dataloader_num_workers: 1", "data/loader.py:143"),
    Rule(7, "mask_history train_on_prompt", lambda c: c["mask_history"] and c["train_on_prompt"],
         "mask_history and train_on_prompt exclude each other",
         "keep one of the two lines", "hparams/data_args.py:183"),
    Rule(45, "train_on_prompt template", masks_by_end,
         "template '{c[template]}' has no end of turn to learn, so it cannot train_on_prompt; this fails after the "
         "tokenizer is loaded",
         "remove train_on_prompt", "data/template.py:644"),
    Rule(44, "template", without_processor,
         "template '{c[template]}' is for pictures or sound, {c.model.name} has no processor for them; this fails "
         "while the data is tokenised",
         "use the text template of this model", "data/mm_plugin.py:178"),
    warning(43, "template", lambda c: c["stage"] != "pt" and not c["template"],
            "without a template LLaMA-Factory guesses one from the tokenizer, or trains with no marks of turns at all",
            "template: NAME, such as qwen or llama3", "data/template.py:630"),
    Rule(34, "val_size", lambda c: isinstance(c["val_size"], float) and c["val_size"] == 1.0 and c["dataset"],
         "val_size 1.0 is the share that leaves no row to train on; splitting the data fails",
         "val_size: 0.1 for a tenth, or 1 for one row", "data/data_utils.py:114"),
    Rule(49, "val_size", no_rows_left,
         "val_size holds out {c[val_size]:g} rows, the data has {c.rows}: none is left to train on",
         "val_size: 0.1", "data/data_utils.py:115"),
    Rule(51, "tokenized_path", without_evaluation_split,
         "the tokenised data in '{c[tokenized_path]}' has no rows held out: the evaluation fails after the training",
         "give another tokenized_path and keep val_size, so that it is made anew", "data/loader.py:288"),
    warning(51, "tokenized_path", tokenized,
            "'{c[tokenized_path]}' holds tokenised data: dataset, template, cutoff_len, packing, val_size are ignored",
            "remove tokenized_path, or the folder, if they have changed", "data/loader.py:289"),
    warning(27, "packing neat_packing", lambda c: c["neat_packing"] and c["packing"] is False,
            "neat_packing packs, whatever packing says",
            "remove packing: false, or neat_packing", "hparams/data_args.py:186"),
)  # fmt: skip

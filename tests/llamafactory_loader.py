"""Started as a child: load each case with LLaMA-Factory's get_dataset and write how many rows are left, or why none."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Seq2SeqTrainingArguments

BOS = {"bos_token": "<|begin|>", "pad_token": "<|endoftext|>"}


def byte_tokenizer() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["hello world"], trainer)
    return tokenizer


def load(case: dict[str, Any], tokenizer: Any, folder: Path) -> Any:
    """How many rows are kept, or with `template` given, the first row's input and label tokens."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / f"data{case['suffix']}").write_bytes(base64.b64decode(case["body"]))
    entry = {"file_name": f"data{case['suffix']}", **case["entry"]}
    (folder / "dataset_info.json").write_text(json.dumps({"data": entry}), "utf-8")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", **BOS)
    packing = False if case["stage"] == "pt" else None
    key = "eval_dataset" if case["generate"] else "dataset"
    asked = {"template": case.get("template", "qwen"), "cutoff_len": case.get("cutoff_len", 4096)}
    data = DataArguments(**{key: "data"}, dataset_dir=str(folder), **asked, packing=packing)
    template = get_template_and_fix_tokenizer(fast, data)
    training = Seq2SeqTrainingArguments(str(folder / "out"), report_to="none", predict_with_generate=case["generate"])
    model = ModelArguments(model_name_or_path="none", cache_dir=str(folder / "cache"))
    stage = "rm" if case["stage"] == "dpo" else case["stage"]
    module = get_dataset(template, model, data, training, stage, fast)
    rows = module["eval_dataset" if case["generate"] else "train_dataset"]
    return [rows[0]["input_ids"], rows[0]["labels"]] if "template" in case else len(rows)


def main(folder: Path) -> None:
    tokenizer, verdicts = byte_tokenizer(), {}
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(BOS), "utf-8")
    for case in json.loads((folder / "cases.json").read_text("utf-8")):
        try:
            verdicts[case["name"]] = load(case, tokenizer, folder / "work")
        except Exception as error:  # noqa: BLE001 - what stops it is the answer
            verdicts[case["name"]] = f"{type(error).__name__}: {error}"
    (folder / "verdicts.json").write_text(json.dumps(verdicts), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

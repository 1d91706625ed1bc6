"""Started as a child: every case through LLaMA-Factory's own get_dataset, then through the preview's `look`."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer, loader
from llamafactory.data.template import TEMPLATES
from llamafactory.model import load_tokenizer
from llamafactory_loader import BOS, byte_tokenizer
from transformers import PreTrainedTokenizerFast

from iis_finetune.probe import parser, preview

ROWS, CUTOFF, WHOLE = 50, 220, 1 << 20
FAMILIES = ("qwen", "llama3", "default", "qwen3", "llama2", "mistral", "gemma", "phi4")
ALIGN = loader.align_dataset
WORDS = ["the", "news", "新闻", "model", "模型", "😀", "answer", "回答", "question", "👩\u200d🚀", "says", "data"]
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
OPENAI_TAGS = {**TAGS, "observation_tag": "tool", "function_tag": "function_call", "system_tag": "system"}


def text(chance: random.Random, most: int = 40) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(1, most)))


def alpaca(chance: random.Random) -> dict[str, Any]:
    history = [[text(chance, 8), text(chance, 8)] for _ in range(chance.randint(0, 2))]
    system = chance.choice(["", text(chance, 5)])
    return {"instruction": text(chance), "input": text(chance), "output": text(chance), "history": history, "s": system}


def talk(chance: random.Random) -> dict[str, Any]:
    call = json.dumps({"name": "look", "arguments": {"at": text(chance, 3)}})
    said = [("human", text(chance)), ("function_call", call), ("observation", text(chance, 9)), ("gpt", text(chance))]
    tools = json.dumps([{"name": "look", "description": "looks", "parameters": {"type": "object", "properties": {}}}])
    return {"conversations": [{"from": who, "value": what} for who, what in said], "tools": tools}


def openai(chance: random.Random) -> dict[str, Any]:
    roles = ["user", "assistant"] * chance.randint(1, 3)
    first = [{"role": "system", "content": text(chance, 4)}] * chance.randint(0, 1)
    return {"messages": [*first, *({"role": role, "content": text(chance, 15)} for role in roles)]}


def pair(chance: random.Random) -> dict[str, Any]:
    return {"instruction": text(chance), "input": "", "chosen": text(chance), "rejected": text(chance)}


def pair_of_talk(chance: random.Random) -> dict[str, Any]:
    answers = {name: {"from": "gpt", "value": text(chance)} for name in ("chosen", "rejected")}
    return {"conversations": [{"from": "human", "value": text(chance)}], **answers}


def marked(chance: random.Random) -> dict[str, Any]:
    return {"instruction": text(chance), "input": "", "output": text(chance), "good": chance.random() < 0.5}


PAIRED = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
ANSWERED = {"prompt": "instruction", "query": "input", "response": "output"}
MIXED = {"mix_strategy": "interleave_under", "interleave_probs": "0.4,0.6"}
KINDS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "alpaca": (alpaca, {"columns": {**ANSWERED, "history": "history", "system": "s"}}, {}),
    "last turn": (alpaca, {"columns": {**ANSWERED, "history": "history", "system": "s"}}, {"mask_history": True}),
    "packed": (alpaca, {"columns": ANSWERED}, {"packing": True}),
    "packed few": (alpaca, {"columns": ANSWERED}, {"packing": True, "max_samples": 30}),
    "packed mix": (
        alpaca,
        {"columns": ANSWERED},
        {"packing": True, "dataset": "packed,packed mix", "max_samples": 30, "val_size": 0.2, **MIXED},
    ),
    "tools": (talk, {"formatting": "sharegpt", "columns": {"messages": "conversations", "tools": "tools"}}, {}),
    "messages": (openai, {"formatting": "openai", "columns": {"messages": "messages"}, "tags": OPENAI_TAGS}, {}),
    "blocks": (lambda chance: {"text": text(chance)}, {"columns": {"prompt": "text"}}, {"stage": "pt"}),
    "texts": (
        lambda chance: {"text": text(chance)},
        {"columns": {"prompt": "text"}},
        {"stage": "pt", "packing": False},
    ),
    "dpo": (pair, {"ranking": True, "columns": PAIRED}, {"stage": "dpo"}),
    "rm": (
        pair_of_talk,
        {
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        },
        {"stage": "rm"},
    ),
    "kto": (marked, {"columns": {**ANSWERED, "kto_tag": "good"}}, {"stage": "kto"}),
}


def make(folder: Path) -> None:
    """The data sets and a tokenizer that splits every Chinese letter and emoji into bytes."""
    entries = {}
    for name, (row, entry, _) in KINDS.items():
        chance = random.Random(name)
        entries[name] = {"file_name": f"{name}.json", **entry}
        (folder / f"{name}.json").write_text(json.dumps([row(chance) for _ in range(ROWS)]), "utf-8")
    (folder / "dataset_info.json").write_text(json.dumps(entries), "utf-8")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token="<|endoftext|>", **BOS)
    tokenizer.save_pretrained(folder / "model")
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": "qwen2"}), "utf-8")


def asked(folder: Path, template: str, kind: str, cutoff_len: int) -> dict[str, Any]:
    given = {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "template": template,
        "dataset": kind,
        "model_name_or_path": str(folder / "model"),
        "dataset_dir": str(folder),
        "output_dir": str(folder / "out"),
        "cutoff_len": cutoff_len,
        "report_to": "none",
        "cache_dir": str(folder / "cache"),
    }
    return {"command": "train", "arguments": {**given, **KINDS[kind][2]}, "rows": [1, ROWS], "words": []}


def parts_of(folder: Path, template: str, kind: str, cutoff_len: int) -> tuple[list[list[Any]], Any]:
    """What the loader yields: for each row its parts, as (token ids, labels); and the tokenizer it was made with."""
    model, data, training, finetuning, _ = parser.read(asked(folder, template, kind, cutoff_len))
    tokenizer = load_tokenizer(model)["tokenizer"]
    made = get_template_and_fix_tokenizer(tokenizer, data)
    stage = "rm" if finetuning.stage == "dpo" else finetuning.stage
    rows = get_dataset(made, model, data, training, stage, tokenizer)["train_dataset"]
    names = [name for name in ("", "chosen_", "rejected_") if f"{name}input_ids" in rows.column_names]
    columns = [(f"{name}input_ids", f"{name}labels" if stage != "pt" else f"{name}input_ids") for name in names]
    return [[(row[ids], row[labels]) for ids, labels in columns] for row in rows], tokenizer


def verdict(folder: Path, template: str, kind: str) -> dict[str, Any]:
    expected, tokenizer = parts_of(folder, template, kind, CUTOFF)
    packed = kind == "blocks" or kind.startswith("packed")
    whole = expected if packed else parts_of(folder, template, kind, WHOLE)[0]
    answer = parser.answer(asked(folder, template, kind, CUTOFF), preview.look)
    found = next(iter(answer["found"].values()))["examples"] if answer["error"] is None else []
    loader.align_dataset = ALIGN
    for each in TEMPLATES.values():
        for name in ("encode_oneturn", "encode_multiturn"):
            vars(each).pop(name, None)
    texts = [[tokenizer.decode(ids) for ids, _ in row] for row in whole]
    shown = [["".join(text for _, text in part["pieces"]) for part in each["parts"]] for each in found]
    cut = sum(kind == "cut" for each in found for part in each["parts"] for kind, _ in part["pieces"])
    return {
        "error": answer["message"],
        "rows": len(expected),
        "same": [[(part["ids"], part["labels"]) for part in each["parts"]] for each in found] == expected,
        "other_texts": sum("�" not in "".join(one) and one != other for one, other in zip(shown, texts, strict=True)),
        "cut": cut,
    }


def main(folder: Path) -> None:
    make(folder)
    found = {f"{template}, {kind}": verdict(folder, template, kind) for template in FAMILIES for kind in KINDS}
    (folder / "verdicts.json").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

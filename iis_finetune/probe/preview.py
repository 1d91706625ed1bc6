"""Rows as LLaMA-Factory gives them to a training: its own parser, loader, template, tokenizer and data processors.

Usage: python -m iis_finetune.probe.preview '{"command": "train", "arguments": {...}, "rows": [1, 3], "words": [...]}'
Where rows are packed, it is the blocks of these numbers that the first rows make as a training takes them, of all data
sets together. A model that is not here is replaced by a tokenizer of bytes with the template's special `words`, and
nothing is cut. The last line printed is the parser's, where `found` has for each data set {"rows": how many it has,
"examples": [{"number", "about", "parts"}]}. A part is a row, one of its two answers or a block: {"name", "ids",
"labels", "whole": how many tokens before the cut, "stops": whether a token that ends an answer carries loss,
"pieces": [["loss", "plain" or "cut", text]]}.
"""

from collections.abc import Callable, Iterator
from itertools import count, groupby
from pathlib import Path
from typing import Any

from . import parser

NOTHING_CUT, MASKED = 1 << 30, -100
PLACES = 1 << 40  # beyond all token ids


def look(asked: dict[str, Any], *arguments: Any) -> dict[str, dict[str, Any]]:
    from llamafactory.data import get_template_and_fix_tokenizer, loader
    from llamafactory.model import load_tokenizer
    from transformers import ByT5Tokenizer

    model, data, training, finetuning, _ = arguments
    data.streaming, data.preprocessing_num_workers = False, None
    if Path(model.model_name_or_path).is_dir():
        tokenizer = load_tokenizer(model)["tokenizer"]
    else:
        ends = {"bos_token": "<bos>", "eos_token": "<eos>"}
        tokenizer = ByT5Tokenizer(extra_ids=0, additional_special_tokens=asked["words"], **ends)
        data.cutoff_len, data.packing = NOTHING_CUT, False
    template = get_template_and_fix_tokenizer(tokenizer, data)
    stage = {"dpo": "rm"}.get(finetuning.stage, finetuning.stage)
    processor = loader._get_dataset_processor(data, stage, template, tokenizer, None)
    packed, align = data.packing and stage in ("pt", "sft"), loader.align_dataset
    first, last = (1, data.preprocessing_batch_size) if packed else asked["rows"]
    found: dict[str, dict[str, Any]] = {}
    encoded: list[list[int]] = []
    if not packed:
        data.max_samples = None  # any row can be looked at
        sides = 1 if stage == "ppo" else 2  # there the model answers by itself
        template.encode_oneturn = with_places(template.encode_oneturn, encoded, sides)
        template.encode_multiturn = with_places(template.encode_multiturn, encoded, sides)

    def align_chosen(rows: Any, *rest: Any) -> Any:
        found[name]["rows"] += len(rows)
        some = [number for number in range(first - 1, last) if number < len(rows)]
        chosen = rows if packed and data.val_size else rows.select(some)  # a share is drawn from all
        return align(chosen, *rest) if len(chosen) else chosen

    loader.align_dataset = align_chosen
    for names in [data.dataset] if packed else [[each] for each in data.dataset]:
        found[name := ", ".join(names)] = {"rows": 0}
        rows = loader._get_merged_dataset(names, model, data, training, stage)
        if packed:
            trained = loader.split_dataset(rows, None, data, training.seed)[0]["train"]
            rows = trained.select(range(min(last, len(trained))))
        made = enumerate(blocks(processor, rows) if packed else examples(processor, rows, stage, encoded), first)
        wanted = range(asked["rows"][0], asked["rows"][1] + 1)
        found[name]["examples"] = [{"number": number, **each} for number, each in made if number in wanted]
    return found


def blocks(processor: Any, rows: Any) -> Iterator[dict[str, Any]]:
    made = processor.preprocess_dataset(rows[:])
    about = {"block": f"one of {len(made['input_ids'])} that the first {len(rows)} rows make"}
    for number in range(len(made["input_ids"])):
        yield {"about": about, "parts": list(parts(processor, made, number, []))}


def examples(processor: Any, rows: Any, stage: str, encoded: list[list[int]]) -> Iterator[dict[str, Any]]:
    """Each row as the processor makes it; what the template gave it before shows what was cut."""
    for number in range(len(rows)):
        encoded.clear()
        row = rows[number : number + 1]
        made = processor.preprocess_dataset(row)
        if stage == "ppo" and any(made.values()):
            made["labels"] = [[MASKED] * len(ids) for ids in made["input_ids"]]
        told = list(parts(processor, made, 0, encoded)) if any(made.values()) else []
        yield {"about": about(row, processor, stage), "parts": told}


def with_places(encode: Callable[..., Any], encoded: list[list[int]], sides: int) -> Callable[..., Any]:
    """The template's function with the place of each token, from PLACES on, for the token, kept in `encoded`."""

    def placed(*given: Any, **more: Any) -> Any:
        made, place = encode(*given, **more), count(PLACES)
        turns = made if isinstance(made, list) else [made]
        encoded.append([token for turn in turns for ids in turn[:sides] for token in ids])
        places = [tuple([next(place) for _ in ids] for ids in turn) for turn in turns]
        return places if isinstance(made, list) else places[0]

    return placed


def parts(processor: Any, made: Any, number: int, encoded: list[list[int]]) -> Iterator[dict[str, Any]]:
    """The row or block of this number, or its two answers."""
    stops = set(processor.template.get_stop_token_ids(processor.tokenizer))
    for at, name in enumerate(each for each in ("", "chosen_", "rejected_") if f"{each}input_ids" in made):
        whole, places = encoded[at] if encoded else [], made[f"{name}input_ids"][number]
        labels = made[f"{name}labels"][number] if f"{name}labels" in made else places
        ids, learned = ([whole[n - PLACES] if n >= PLACES else n for n in each] for each in (places, labels))
        kinds = ["plain" if label == MASKED else "loss" for label in labels]
        kept = dict(zip(places, kinds, strict=True))
        tokens = [(kept.get(place, "cut"), token) for place, token in enumerate(whole, PLACES)]
        tokens += [(kind, n) for kind, n in zip(kinds, places, strict=True) if n < PLACES]  # the end, or all of a block
        ends = [set(run) for masked, run in groupby(learned, MASKED.__eq__) if not masked][-1:]
        told = {"name": name.rstrip("_"), "ids": ids, "labels": learned, "whole": len(tokens)}
        yield {**told, "stops": any(stops & end for end in ends), "pieces": list(pieces(processor.tokenizer, tokens))}


def pieces(tokenizer: Any, tokens: list[tuple[str, int]]) -> Iterator[tuple[str, str]]:
    """Runs of tokens of a kind as one text, so that a letter of several tokens is whole."""
    before: list[int] = []  # some tokenizers leave out the space of a first word
    for kind, run in groupby(tokens, lambda each: each[0]):
        ids = [token for _, token in run]
        text, lead, alone = (tokenizer.decode(each) if each else "" for each in (before + ids, before, ids))
        yield kind, text.removeprefix(lead) if text.startswith(lead) else alone
        before = ids[-1:]


def about(row: dict[str, Any], processor: Any, stage: str) -> dict[str, str]:
    """Where system text and tools come from, and the label of a labelled answer."""
    of_recipe = processor.data_args.default_system is not None
    default = ("default_system" if of_recipe else "the template's") if processor.template.default_system else "none"
    found = {} if stage == "pt" else {"system": "the row's own" if row["_system"][0] else default}
    found |= {"tools": "the row's own"} if row["_tools"][0] else {}
    labelled = stage == "kto" and row["_response"][0]
    return found | ({"label": str(bool(labelled[0]["content"])).lower()} if labelled else {})


if __name__ == "__main__":
    parser.main(look, "reading the rows")

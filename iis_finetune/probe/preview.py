"""Rows as LLaMA-Factory gives them to a training: its own loader, template, tokenizer and data processors.

    python -m iis_finetune.probe.preview FOLDER

FOLDER holds the rows with their dataset_info.json, and asked.json:
    stage      of the training
    model      LLaMA-Factory's arguments of the tokenizer; without model_name_or_path one of bare bytes takes its place
    data       its arguments of the data
    words      special tokens of the template, for the bare bytes
It leaves examples.json, for each data set its rows, or the blocks they are packed into, as lists of {"name", "ids",
"labels", "whole", "pieces", "stops"}: whole counts the tokens before any is cut, pieces are [text, carries loss, is
kept], stops says whether the model learns to stop.
The last line printed is JSON: {"stage": what it got to, "error": the exception's type or null, "message": its text}.
"""

import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

NOTHING_CUT = 1 << 30
MASKED = -100
ENDS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
Call = tuple[int, int, int, int]  # tokens of a question, of its answer, and how many of each are kept
Part = tuple[str, list[int], list[int]]  # its name, token ids, labels


def bare_bytes(words: list[str]) -> Any:
    """A tokenizer that gives every text back: a token a byte, and the template's own words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in (*ENDS.values(), *words)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ENDS)


class Reader:
    """LLaMA-Factory's tokenizer, template and data processor; `calls` is what it shortened in the last row."""

    def __init__(self, asked: dict[str, Any], folder: Path):
        from llamafactory.data import get_template_and_fix_tokenizer
        from llamafactory.data.processor import feedback, pairwise, supervised, unsupervised
        from llamafactory.hparams import DataArguments, ModelArguments
        from llamafactory.model import load_tokenizer

        own = asked["model"].get("model_name_or_path")
        self.asked, self.folder, self.calls = asked, folder, list[Call]()
        named = {"model_name_or_path": "none", "cache_dir": str(folder / "cache"), **asked["model"]}
        self.model = ModelArguments(**named)
        self.data = DataArguments(dataset_dir=str(folder), **asked["data"])
        self.tokenizer = load_tokenizer(self.model)["tokenizer"] if own else bare_bytes(asked["words"])
        self.template = get_template_and_fix_tokenizer(self.tokenizer, self.data)
        self.shorten = supervised.infer_seqlen
        for module in (feedback, pairwise, supervised, unsupervised):
            module.infer_seqlen = self.note

    def note(self, source: int, target: int, cutoff: int) -> tuple[int, int]:
        kept: tuple[int, int] = self.shorten(source, target, cutoff)
        self.calls.append((source, target, *kept))
        return kept

    def examples(self, name: str) -> Iterator[list[dict[str, Any]]]:
        """Each row of a data set, or each block where rows are packed."""
        from llamafactory.data import loader
        from transformers import Seq2SeqTrainingArguments

        stage = self.asked["stage"]
        training = Seq2SeqTrainingArguments(str(self.folder / "output"), report_to="none", use_cpu=True)
        rows = loader._get_merged_dataset([name], self.model, self.data, training, stage)
        processor = loader._get_dataset_processor(self.data, stage, self.template, self.tokenizer, None)
        if self.data.packing and stage in ("pt", "sft"):
            made = processor.preprocess_dataset(rows[:])
            for block in self.split(made):
                yield [self.told(part, part, [True] * len(part[1])) for part in block]
            return
        for number in range(len(rows)):
            yield self.example(processor, rows[number : number + 1])

    def example(self, processor: Any, row: dict[str, list[Any]]) -> list[dict[str, Any]]:
        """One row, made as the training makes it and once more with nothing cut."""
        made, calls = [], []
        for cutoff in (self.data.cutoff_len, NOTHING_CUT):
            self.calls, limit, self.data.cutoff_len = [], self.data.cutoff_len, cutoff
            made.append(next(self.split(processor.preprocess_dataset(row))))
            self.data.cutoff_len = limit
            # A row of kto is followed by a neighbour's answer; pairs and prompts are one call.
            calls.append(self.calls if self.asked["stage"] == "sft" else self.calls[:1])
        return [self.told(cut, whole, self.kept(cut, whole, calls)) for cut, whole in zip(*made, strict=True)]

    def split(self, made: dict[str, list[Any]]) -> Iterator[list[Part]]:
        names = [name for name in ("", "chosen_", "rejected_") if f"{name}input_ids" in made]
        for number in range(len(made[f"{names[0]}input_ids"])):
            block = []
            for name in names:
                ids = list(made[f"{name}input_ids"][number])
                labels = made[f"{name}labels"][number] if f"{name}labels" in made else ids
                labels = [MASKED] * len(ids) if self.asked["stage"] == "ppo" else list(labels)
                block.append((name.rstrip("_"), ids, labels))
            yield block

    def kept(self, cut: Part, whole: Part, calls: list[list[Call]]) -> list[bool]:
        """Which tokens of the whole row are in the one that is trained."""
        shortened, turns = calls[0], []
        for number, (source, target, _, _) in enumerate(calls[1]):
            left = shortened[number][2:] if number < len(shortened) else (0, 0)
            pairs = zip(left, (source, target), strict=True)
            turns.append([at < most for most, size in pairs for at in range(size)])
        if self.data.mask_history and self.asked["stage"] == "sft":
            turns.reverse()
        kept = [each for turn in turns for each in turn] or [at < len(cut[1]) for at in range(len(whole[1]))]
        return (kept + [True] * len(whole[1]))[: len(whole[1])]

    def told(self, cut: Part, whole: Part, kept: list[bool]) -> dict[str, Any]:
        name, ids, labels = cut
        if [token for token, stays in zip(whole[1], kept, strict=True) if stays] != ids:
            raise ValueError("the tokens that are cut off could not be told from those that stay")
        marks = [(label != MASKED, stays) for label, stays in zip(whole[2], kept, strict=True)]
        pieces = [[text, *mark] for text, mark in self.pieces(whole[1], marks)]
        told = {"name": name, "ids": ids, "labels": labels, "whole": len(whole[1]), "pieces": pieces}
        return {**told, "stops": self.stops(labels)}

    def pieces(self, ids: list[int], marks: list[tuple[bool, bool]]) -> Iterator[tuple[str, tuple[bool, bool]]]:
        """Runs of tokens with the same marks as one text, so that a letter of several tokens is whole."""
        start = 0
        for mark, run in groupby(marks):
            end = start + len(list(run))
            # Some tokenizers leave out the space before a first word: the token before the run keeps it.
            before, text = self.text(ids[max(start - 1, 0) : start]), self.text(ids[max(start - 1, 0) : end])
            yield (text.removeprefix(before) if text.startswith(before) else self.text(ids[start:end])), mark
            start = end

    def text(self, ids: list[int]) -> str:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(ids, **options)) if ids else ""

    def stops(self, labels: list[int]) -> bool:
        """Whether the last tokens that carry loss hold one that ends an answer."""
        words = self.tokenizer.convert_tokens_to_ids(list(self.template.stop_words))
        runs = [list(run) for masked, run in groupby(labels, lambda label: label == MASKED) if not masked]
        return bool(runs) and not {self.tokenizer.eos_token_id, *words}.isdisjoint(runs[-1])


def answer(folder: Path) -> dict[str, str | None]:
    stage = "loading the tokenizer and the template"
    try:
        asked = json.loads((folder / "asked.json").read_text("utf-8"))
        reader, stage = Reader(asked, folder), "reading the rows"
        names = json.loads((folder / "dataset_info.json").read_text("utf-8"))
        found = {name: list(reader.examples(name)) for name in names}
        (folder / "examples.json").write_text(json.dumps(found), "utf-8")
    except BaseException as error:  # noqa: BLE001 - whatever ends LLaMA-Factory, a SystemExit too, is the answer
        return {"stage": stage, "error": type(error).__name__, "message": str(error)}
    return {"stage": stage, "error": None, "message": None}


if __name__ == "__main__":
    told = answer(Path(sys.argv[1]))
    sys.stdout.write("\n" + json.dumps(told, ensure_ascii=False) + "\n")

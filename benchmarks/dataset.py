"""Time and memory of the data checks on files made here: python benchmarks/dataset.py [--rows 10000 1000000]."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from iis_finetune import dataset
from iis_finetune.arguments import find_template
from iis_finetune.errors import Place

WORDS = 40_000
QUESTION, ANSWER = 70, 80  # words, about 1 KB a row with its keys
TARGETS = {
    (10_000, "rows"): 0.5,
    (10_000, "rows and truncation"): 3.0,
    (1_000_000, "rows"): 60.0,
    (1_000_000, "rows and truncation"): 300.0,
}


def words(seed: int) -> list[str]:
    source = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = [1 / (rank + 2) for rank in range(len(letters))]
    return ["".join(source.choices(letters, weights, k=source.randint(2, 9))) for _ in range(WORDS)]


def write_rows(file: Path, count: int, as_array: bool = False) -> None:
    source, known = random.Random(1), words(2)
    frequent = [1 / (rank + 10) for rank in range(WORDS)]
    texts = [" ".join(source.choices(known, frequent, k=QUESTION + ANSWER)).split(" ") for _ in range(2000)]
    with file.open("w", encoding="utf-8") as out:
        out.write("[\n" if as_array else "")
        for number in range(count):
            drawn = texts[source.randrange(2000)]
            cut = source.randrange(QUESTION - 10, QUESTION + 10)
            mixed = [f"item{number}", *drawn[:cut]], [*drawn[cut:], str(number * 7)]
            row = {"instruction": " ".join(mixed[0]), "input": "", "output": " ".join(mixed[1])}
            out.write(json.dumps(row) + (",\n" if as_array and number < count - 1 else "\n"))
        out.write("]\n" if as_array else "")


def train_tokenizer(folder: Path) -> Path:
    """A byte-level BPE of 30,000 tokens, split like Qwen's."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    pattern += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=30_000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(words(2))], trainer)
    file = folder / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def measure(work: str, folder: Path, cutoff: int) -> dict[str, Any]:
    """One check in this process: seconds, peak memory and what it found."""
    (source,), _ = dataset.check_registered("rows", folder, "sft", Place())
    options = dataset.Options("sft", limit=None)
    start, cpu = time.perf_counter(), time.process_time()
    if work == "rows":
        found = f"{dataset.check_rows(source, options).kept} kept"
    else:
        asked = replace(options, template=find_template("qwen"), cutoff_len=cutoff)
        cuts = dataset.check_rows(source, asked, folder / "tokenizer.json").truncation
        found = f"{cuts.tokenised} tokenised, {sum(cuts.counts.values())} cut"
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"seconds": seconds, "cpu": time.process_time() - cpu, "memory_mib": used.ru_maxrss / 1024, "found": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--cutoff_len", type=int, nargs="+", default=[1024, 512, 256])
    given = parser.parse_args()
    print(f"{'rows':>9} {'file':>6} {'MB':>6} {'check':>19} {'cutoff':>6}", end=" ")
    print(f"{'seconds':>8} {'cpu s':>7} {'target':>7} {'MiB':>6}  found")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_tokenizer(folder)
        for count in given.rows:
            for kind in ("jsonl", "json"):
                file = folder / f"rows.{kind}"
                write_rows(file, count, kind == "json")
                (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": file.name}}), "utf-8")
                size = file.stat().st_size / 1e6
                for work, cutoff in [
                    ("rows", 0),
                    *[("rows and truncation", each) for each in given.cutoff_len if kind == "jsonl"],
                ]:
                    with multiprocessing.get_context("spawn").Pool(1) as pool:
                        got = pool.apply(measure, (work, folder, cutoff))
                    target = TARGETS.get((count, work), "")
                    head = f"{count:>9} {kind:>6} {size:>6.0f} {work:>19} {cutoff or '':>6}"
                    print(f"{head} {got['seconds']:>8.2f} {got['cpu']:>7.2f} {target:>7}", end=" ")
                    print(f"{got['memory_mib']:>6.0f}  {got['found']}", flush=True)
                file.unlink()


if __name__ == "__main__":
    main()

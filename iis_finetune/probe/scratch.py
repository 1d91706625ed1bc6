"""Make a model folder with random weights, and its tokenizer, from a spec.

    python -m iis_finetune.probe.scratch SPEC.json

SPEC.json holds
    config      the model's config.json as an object; `model_type` is needed. The token ids, and a `vocab_size`
                that is missing or too small, come from the tokenizer when that is trained here
    tokenizer   {"train_on": [FILE or {"file": FILE, "columns": [NAME, ..]}, ..], "vocab_size": N} trains a
                byte-level BPE with ChatML tokens, or with the "special_words" of another template, on all the
                texts or on "most_texts" of them;
                {"copy_from": FOLDER} takes the tokenizer of another model
    seed        of the weights (42)          dtype    of the weights (float32)
    to          the folder to make; one that is there is replaced
Prints {"model", "parameters", "vocab_size"}. The same spec gives the same bytes on one machine and one torch.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# How Qwen2 cuts text before merging: words, single digits, punctuation, line ends (Qwen2's tokenizer.json, Apache-2.0).
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# LLaMA-Factory's template `qwen` puts this sentence before every conversation that has no system message of its own.
SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{%- for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOKENIZER_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template.*"),
    *("*.tiktoken", "spiece.model", "sentencepiece*.model", "generation_config.json"),
)


def texts_of(source: str | dict[str, Any]) -> Iterator[str]:
    """The strings of one file: of the named columns, of all columns, or the whole of a plain text."""
    path = Path(source if isinstance(source, str) else source["file"])
    columns = None if isinstance(source, str) else source.get("columns")
    content = path.read_text(encoding="utf-8")
    if path.suffix not in {".json", ".jsonl"}:
        yield content
        return
    rows = json.loads(content) if content.lstrip().startswith("[") else map(json.loads, content.splitlines())
    for row in rows:
        yield from (row[name] for name in columns or sorted(row) if isinstance(row.get(name), str))


def train_tokenizer(spec: dict[str, Any]) -> Any:
    """A Qwen-style tokenizer whose merges come from the spec's files."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = list(islice((text for source in spec["train_on"] for text in texts_of(source)), spec.get("most_texts")))
    # The frame of a conversation is read as often as the texts are, so its words get tokens of their own.
    frame = [f"system\n{SYSTEM}\nuser\nassistant\n"] * len(texts)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    words = spec.get("special_words", [TURN_START, TURN_END])
    chat = TURN_END in words
    trainer = trainers.BpeTrainer(
        vocab_size=spec["vocab_size"],
        show_progress=False,
        special_tokens=list(dict.fromkeys([END_OF_TEXT, *words])),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts + frame, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END if chat else END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=words,
        chat_template=CHAT_TEMPLATE if chat else None,
        clean_up_tokenization_spaces=False,
    )


def write_tokenizer(spec: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    """Trains or copies the tokenizer into the folder; a trained one sets the config's vocabulary and token ids."""
    if "copy_from" in spec:
        found = {path for pattern in TOKENIZER_FILES for path in Path(spec["copy_from"]).glob(pattern)}
        for path in sorted(found):
            shutil.copyfile(path, folder / path.name)
        return
    tokenizer = train_tokenizer(spec)
    tokenizer.save_pretrained(folder)
    # transformers 5 writes a class name that older readers (vLLM, transformers 4) do not know; this one all of them do.
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config.update(ids, vocab_size=max(len(tokenizer), config.get("vocab_size", 0)))


def write_model(spec: dict[str, Any], config: dict[str, Any], folder: Path) -> int:
    """Writes random weights of the configured architecture; returns the number of parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(spec.get("seed", 42))
    settings = AutoConfig.for_model(**config)
    model = AutoModelForCausalLM.from_config(settings, dtype=getattr(torch, spec.get("dtype", "float32")))
    copied = folder / "generation_config.json"
    kept = copied.read_bytes() if copied.is_file() else None
    model.save_pretrained(folder)
    if kept is not None:
        copied.write_bytes(kept)
    return int(model.num_parameters())


def put_in_place(made: Path, target: Path) -> None:
    """Renames the finished folder to its name; an older folder of that name goes first."""
    old = made.with_name(f"{made.name}.old")
    if target.exists():
        target.rename(old)
    made.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def make_model(spec: dict[str, Any]) -> dict[str, Any]:
    """Makes the folder that the spec describes; nothing half-made ever has its name."""
    target = Path(spec["to"])
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    made.chmod(0o755)
    try:
        config = dict(spec["config"])
        write_tokenizer(spec["tokenizer"], config, made)
        parameters = write_model(spec, config, made)
        put_in_place(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return {"model": str(target), "parameters": parameters, "vocab_size": config["vocab_size"]}


if __name__ == "__main__":
    result = make_model(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")

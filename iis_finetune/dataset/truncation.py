"""What `cutoff_len` would cut from the rows, counted with the recipe's own template and tokenizer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..arguments import Template
from ..errors import Place, Problem
from .convert import Sample, Turn
from .files import Progress
from .layout import Source
from .rows import RowOptions, usable_samples

BATCH = 1000  # also LLaMA-Factory's preprocessing_batch_size, within which it packs the texts of stage pt
# Worst first; what LLaMA-Factory 0.9.5 does is in its data/processor/processor_utils.py, infer_seqlen.
KINDS = {
    "answer_lost": "the answer is cut away whole",
    "answer_shortened": "the answer loses its end and the stop token, so the model learns not to stop",
    "turns_lost": "later turns are left out",
    "prompt_cut": "the question loses its end and the header of the answer",
    "text_cut": "the text loses its end",
}


@dataclass(frozen=True)
class TruncationOptions:
    """LLaMA-Factory's arguments that decide what is cut; `default_system` None is the template's own."""

    rows: RowOptions
    template: Template
    cutoff_len: int
    default_system: str | None = None
    enable_thinking: bool | None = True
    mask_history: bool = False
    packing: bool = False


@dataclass(frozen=True)
class TruncationReport:
    """Rows by the worst that happens to them: `counts` has the keys of KINDS that were met.

    `tokenised` rows could be too long and were counted exactly; `longest_tokens` is the longest of those.
    """

    rows: int
    tokenised: int
    counts: dict[str, int]
    longest_tokens: int
    complete: bool
    problems: tuple[Problem, ...]


class _Message(NamedTuple):
    """The texts that a template makes of a turn, each tokenised by itself, and the special tokens between them."""

    texts: list[str]
    special: int


_Rendered = tuple[int, list[_Message]]  # a row's number and its turns


@dataclass(frozen=True)
class _Encoder:
    """The tokenizer as the template sets it up, and the options it serves."""

    tokenizer: Any
    options: TruncationOptions
    byte_level: bool
    has_bos: bool

    def counts(self, texts: list[str]) -> list[int]:
        try:
            encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):  # half a surrogate pair, which LLaMA-Factory's reader leaves out
            clean = [text.encode("utf-8", "ignore").decode("utf-8") for text in texts]
            encodings = self.tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        return [len(encoding) for encoding in encodings]


@dataclass
class _Cuts:
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[int]] = field(default_factory=dict)
    rows: int = 0
    tokenised: int = 0
    longest: int = 0
    blocks: int = 0
    last: int = 0


def check_truncation(
    source: Source, tokenizer_json: Path, options: TruncationOptions, progress: Progress | None = None
) -> TruncationReport:
    """Count what would be cut from the rows that `check_rows` finds usable.

    With a byte-level tokenizer only rows that could be too long by their bytes are tokenised whole. The texts of
    tools are counted without the template's sentences around them.
    """
    encoder, cuts = _encoder(tokenizer_json, options), _Cuts()
    samples = usable_samples(source, options.rows, progress)
    blocks = options.rows.stage == "pt" and options.packing
    while batch := list(islice(samples, BATCH)):
        cuts.rows, cuts.last = cuts.rows + len(batch), batch[-1][0]
        if blocks:
            _count_blocks(batch, encoder, cuts)
            continue
        rows = [(number, _render(sample, encoder)) for number, sample in batch]
        _count(_suspects(rows, encoder) if encoder.byte_level else rows, encoder, cuts)
    complete = options.rows.limit is None or cuts.last < options.rows.limit
    problems = tuple(_block_problems(source, options, cuts) if blocks else _problems(source, options, cuts))
    return TruncationReport(cuts.rows, cuts.tokenised, dict(cuts.counts), cuts.longest, complete, problems)


def _encoder(tokenizer_json: Path, options: TruncationOptions) -> _Encoder:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_special_tokens(list(options.template.stop_words))
    config = tokenizer_json.with_name("tokenizer_config.json")
    has_bos = config.is_file() and bool(json.loads(config.read_text("utf-8")).get("bos_token"))
    return _Encoder(tokenizer, options, "ByteLevel" in repr(tokenizer.pre_tokenizer), has_bos)


def _render(sample: Sample, encoder: _Encoder) -> list[_Message]:
    """The prompt's turns and the answers as the template writes them; stage pt has one bare text."""
    options, template = encoder.options, encoder.options.template
    if options.rows.processing == "pt":
        return [_Message([sample.prompt[0].text], 1)]
    unanswered = options.rows.processing == "generate" and not sample.answers
    turns = sample.prompt + ([Turn("assistant", "")] if unanswered else sample.answers)
    made = [_fill(encoder, turn.role, turn.text) for turn in turns]
    default = template.default_system if options.default_system is None else options.default_system
    system = (sample.system or default) + (sample.tools or "")
    opening = [_fill(encoder, "prefix", ""), *([_fill(encoder, "system", system)] if system else []), made[0]]
    made[0] = _Message([text for part in opening for text in part.texts], sum(part.special for part in opening))
    if template.reasoning:
        thought = _Message(["".join(template.thought_words)], 0)
        for number, turn in enumerate(turns):
            if turn.role == "assistant" and template.thought_words[0].strip() not in turn.text:
                at = number if options.enable_thinking else min(number, len(sample.prompt)) - 1
                made[at] = _Message(made[at].texts + thought.texts, made[at].special)
    return made


def _fill(encoder: _Encoder, role: str, text: str) -> _Message:
    texts, special = [], 0
    for slot in encoder.options.template.slots[role]:
        if isinstance(slot, str):
            texts.append(slot.replace("{{content}}", text, 1))
        else:
            special += 1 if slot.get("special") != "bos_token" else encoder.has_bos
    return _Message(texts, special)


def _suspects(rows: list[_Rendered], encoder: _Encoder) -> list[_Rendered]:
    """The rows that could be too long: none has more tokens than bytes, nor than its end's tokens and the rest's bytes.

    A token of ordinary text takes several bytes, so an end 1.8 times as long as the excess usually clears a row.
    """
    cutoff, cleared, parts = encoder.options.cutoff_len, set[int](), []
    for number, row in rows:
        text = "".join(text for message in row for text in message.texts)
        excess = _bytes(row) - cutoff + 1
        part = text[len(text) - int(excess * 1.8 * len(text) / max(_size(text), 1)) :]
        if excess <= 0:
            cleared.add(number)
        elif excess * 1.8 < 0.8 * _size(text):
            parts.append((number, excess, part))
    for (number, excess, part), tokens in zip(parts, encoder.counts([part for _, _, part in parts]), strict=True):
        if _size(part) - tokens >= excess:
            cleared.add(number)
    return [row for row in rows if row[0] not in cleared]


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "ignore"))


def _bytes(messages: list[_Message]) -> int:
    """At least as many as the row has tokens, the end token included."""
    return sum(message.special + sum(_size(text) for text in message.texts) for message in messages) + 1


def _count(rows: list[_Rendered], encoder: _Encoder, cuts: _Cuts) -> None:
    texts = dict.fromkeys(text for _, row in rows for message in row for text in message.texts)
    lengths = dict(zip(texts, encoder.counts(list(texts)), strict=True))
    for number, row in rows:
        tokens = [message.special + sum(lengths[text] for text in message.texts) for message in row]
        cuts.tokenised += 1
        kind, length = _what_is_cut(tokens, encoder.options)
        cuts.longest = max(cuts.longest, length)
        if kind:
            cuts.counts[kind] += 1
            if len(first := cuts.first.setdefault(kind, [])) < 3:
                first.append(number)


def _what_is_cut(tokens: list[int], options: TruncationOptions) -> tuple[str | None, int]:
    """The worst that happens to a row of these message lengths, and its length in tokens."""
    processing, cutoff = options.rows.processing, options.cutoff_len
    if processing == "pt":
        return "text_cut" if tokens[0] > cutoff else None, tokens[0]
    eos = int(options.template.efficient_eos)
    if processing == "sft":
        pairs = list(zip(tokens[::2], tokens[1::2], strict=True))
        pairs, left = pairs[::-1] if options.mask_history else pairs, cutoff - eos
    else:
        answers = 2 if processing in {"rm", "kto"} else 1
        pairs, left, eos = [(sum(tokens[:-answers]), max(tokens[-answers:]) + eos)], cutoff, 0
    length = sum(source + target for source, target in pairs) + eos
    return (None, length) if length <= cutoff else (_worst(pairs, left), length)


def _worst(pairs: list[tuple[int, int]], left: int) -> str | None:
    met = set()
    for source, target in pairs:
        if left <= 0:
            met.add("turns_lost")
            break
        kept_source, kept_target = _kept(source, target, left)
        left -= kept_source + kept_target
        met.add("answer_lost" if kept_target == 0 else "answer_shortened" if kept_target < target else "")
        met.add("prompt_cut" if kept_source < source else "")
    return next((kind for kind in KINDS if kind in met), None)


def _kept(source: int, target: int, cutoff: int) -> tuple[int, int]:
    """How many tokens of a question and its answer LLaMA-Factory keeps."""
    if target * 2 < cutoff:
        most = cutoff
    elif source * 2 < cutoff:
        most = cutoff - source
    else:
        most = int(cutoff * (target / (source + target)))
    kept = min(most, target)
    return min(max(cutoff - kept, 0), source), kept


def _count_blocks(batch: list[tuple[int, Sample]], encoder: _Encoder, cuts: _Cuts) -> None:
    """Stage pt joins the texts of a batch and keeps whole blocks: one block anywhere is enough to train."""
    if cuts.blocks:
        return
    texts = [sample.prompt[0].text for _, sample in batch]
    cuts.tokenised += len(batch)
    cuts.blocks += (sum(encoder.counts(texts)) + len(texts)) // encoder.options.cutoff_len


def _block_problems(source: Source, options: TruncationOptions, cuts: _Cuts) -> Iterator[Problem]:
    if cuts.rows and not cuts.blocks:
        what = f"the texts of '{source.name}' do not fill one block of cutoff_len {options.cutoff_len} tokens"
        yield Problem(what, "give more text, or lower cutoff_len", Place(str(source.files[0])))


def _problems(source: Source, options: TruncationOptions, cuts: _Cuts) -> Iterator[Problem]:
    for kind, what in KINDS.items():
        if count := cuts.counts[kind]:
            rows = ", ".join(str(row) for row in cuts.first[kind]) + (", ..." if count > 3 else "")
            text = f"cutoff_len {options.cutoff_len} is too short for {count} of {cuts.rows} rows: {what} (row {rows})"
            fix = f"cutoff_len: {cuts.longest} keeps every row whole; or shorten the rows"
            place = Place(str(source.files[0]), None, f"row {cuts.first[kind][0]}")
            yield Problem(text, fix, place, "error" if kind == "answer_lost" and count == cuts.rows else "warning")

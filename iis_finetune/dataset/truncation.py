"""What `cutoff_len` would cut from the rows, counted with the recipe's own template and tokenizer."""

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct, field

from ..arguments import Template
from ..errors import Place, Problem
from .convert import Sample, Turn
from .faults import Findings, Row
from .sources import Options, Source

BATCH = 1000  # LLaMA-Factory's preprocessing_batch_size
# Worst first; what LLaMA-Factory does is in its data/processor/processor_utils.py, infer_seqlen.
KINDS = {
    "answer_lost": "the answer is cut away whole",
    "answer_shortened": "the answer loses its end and the stop token, so the model learns not to stop",
    "turns_lost": "later turns are left out",
    "prompt_cut": "the question loses its end and the header of the answer",
    "text_cut": "the text loses its end",
}


class Truncation(Struct, frozen=True):
    """Rows by the worst that happens to them: `counts` has the keys of KINDS that were met.

    `tokenised` rows could be too long and were counted exactly; `longest_tokens` is the longest of those.
    `longest_answer` is that of any answer in tokens, where answers are generated and so compared with the rows' own.
    """

    tokenised: int = 0
    longest_tokens: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    longest_answer: int | None = None


class _Message(NamedTuple):
    """The texts that a template makes of a turn, each tokenised by itself, and the special tokens between them."""

    texts: list[str]
    special: int


_Rendered = tuple[Row, list[_Message]]


class _Encoder(Struct, frozen=True):
    """The tokenizer as the template sets it up, and the options it serves."""

    tokenizer: Any
    options: Options
    template: Template
    cutoff: int
    byte_level: bool
    has_bos: bool

    def counts(self, texts: list[str]) -> list[int]:
        try:
            encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):  # half a surrogate pair, which LLaMA-Factory's reader leaves out
            clean = [text.encode("utf-8", "ignore").decode("utf-8") for text in texts]
            encodings = self.tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        return [len(encoding) for encoding in encodings]


def count_cuts(
    source: Source, samples: Iterator[tuple[Row, Sample]], options: Options, tokenizer_json: Path
) -> Truncation:
    """Count what would be cut from usable samples; nothing is known without a template, a length and a tokenizer.

    With a byte-level tokenizer only rows that could be too long by their bytes are tokenised whole. The texts of
    tools are counted without the template's sentences around them.
    """
    if options.template is None or options.cutoff_len is None or not tokenizer_json.is_file():
        return Truncation()
    encoder = _encoder(tokenizer_json, options, options.template, options.cutoff_len)
    if options.stage == "pt" and options.packing:
        return _check_blocks(source, samples, encoder)
    rows = tokenised = longest = 0
    answer = 0 if options.generate else None
    found = Findings()
    while batch := list(islice(samples, BATCH)):
        rows += len(batch)
        rendered = [(row, _render(sample, encoder)) for row, sample in batch]
        for row, lengths in _lengths(_suspects(rendered, encoder) if encoder.byte_level else rendered, encoder):
            kind, length = _what_is_cut(lengths, encoder)
            tokenised, longest = tokenised + 1, max(longest, length)
            if kind:
                found.add(kind, row)
        answer = None if answer is None else _longest(batch, encoder, answer)
    problems = tuple(_problems(encoder, found, (rows, longest)))
    return Truncation(tokenised, longest, dict(found.counts), problems, answer)


def row_lengths(samples: Iterator[tuple[Row, Sample]], options: Options, tokenizer_json: Path | None) -> Iterator[int]:
    """The length of each sample with nothing cut: in tokens with a template and a tokenizer, else in characters."""
    if options.template is None or tokenizer_json is None or not tokenizer_json.is_file():
        yield from (len(sample.text) for _, sample in samples)
        return
    encoder = _encoder(tokenizer_json, options, options.template, 0)
    while batch := list(islice(samples, BATCH)):
        for _, tokens in _lengths([(row, _render(sample, encoder)) for row, sample in batch], encoder):
            yield _what_is_cut(tokens, encoder)[1]


def cut_rows(
    samples: Iterator[tuple[Any, Sample]], options: Options, tokenizer_json: Path
) -> Iterator[tuple[Any, str]]:
    """Of each sample that loses something what that is, by whatever it is numbered; nothing without a template."""
    if options.template is None or options.cutoff_len is None:
        return
    encoder = _encoder(tokenizer_json, options, options.template, options.cutoff_len)
    while batch := list(islice(samples, BATCH)):
        for number, tokens in _lengths([(number, _render(sample, encoder)) for number, sample in batch], encoder):
            kind, length = _what_is_cut(tokens, encoder)
            if kind:
                yield number, f"{length} tokens: {KINDS[kind]}"


def _longest(batch: list[tuple[Row, Sample]], encoder: _Encoder, known: int) -> int:
    """The longest answer in tokens; a byte-level tokenizer makes no more tokens than bytes, so short ones are left."""
    answers = [sample.answers[0].text for _, sample in batch if sample.answers]
    return max([known, *encoder.counts([text for text in answers if not encoder.byte_level or _bytes(text) > known])])


def _encoder(tokenizer_json: Path, options: Options, template: Template, cutoff: int) -> _Encoder:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_special_tokens(list(template.stop_words))
    config = tokenizer_json.with_name("tokenizer_config.json")
    has_bos = config.is_file() and bool(json.loads(config.read_text("utf-8")).get("bos_token"))
    return _Encoder(tokenizer, options, template, cutoff, "ByteLevel" in repr(tokenizer.pre_tokenizer), has_bos)


def _render(sample: Sample, encoder: _Encoder) -> list[_Message]:
    """The prompt's turns and the answers as the template writes them; stage pt has one bare text."""
    options, template = encoder.options, encoder.template
    if options.processing == "pt":
        return [_Message([sample.prompt[0].text], 1)]
    unanswered = options.processing == "generate" and not sample.answers
    turns = sample.prompt + ([Turn("assistant", "")] if unanswered else sample.answers)
    made = [_fill(encoder, turn.role, turn.text) for turn in turns]
    default = template.default_system if options.default_system is None else options.default_system
    system = (sample.system or default) + (sample.tools or "")
    opening = [_fill(encoder, "prefix", ""), *([_fill(encoder, "system", system)] if system else []), made[0]]
    made[0] = _Message([text for part in opening for text in part.texts], sum(part.special for part in opening))
    if template.reasoning:
        for number, turn in enumerate(turns):
            if turn.role == "assistant" and template.thought_words[0].strip() not in turn.text:
                at = number if options.enable_thinking else min(number, len(sample.prompt)) - 1
                made[at] = made[at]._replace(texts=[*made[at].texts, "".join(template.thought_words)])
    return made


def _fill(encoder: _Encoder, role: str, text: str) -> _Message:
    texts, special = [], 0
    for slot in encoder.template.slots[role]:
        if isinstance(slot, str):
            texts.append(slot.replace("{{content}}", text, 1))
        else:
            special += 1 if slot.get("special") != "bos_token" else encoder.has_bos
    return _Message(texts, special)


def _suspects(rows: list[_Rendered], encoder: _Encoder) -> list[_Rendered]:
    """The rows that could be too long: none has more tokens than bytes, nor than its end's tokens and the rest's bytes.

    A token of ordinary text takes several bytes, so an end 1.8 times as long as the excess usually clears a row.
    """
    suspects, parts = [], []
    for rendered in rows:
        text = "".join(text for message in rendered[1] for text in message.texts)
        size = _bytes(text)
        # No row has more tokens than this; the one added is the end token.
        excess = sum(message.special for message in rendered[1]) + size + 1 - encoder.cutoff + 1
        if excess > 0 and excess * 1.8 < 0.8 * size:
            parts.append((rendered, excess, text[len(text) - int(excess * 1.8 * len(text) / size) :]))
        elif excess > 0:
            suspects.append(rendered)
    for (rendered, excess, part), tokens in zip(parts, encoder.counts([part for _, _, part in parts]), strict=True):
        if _bytes(part) - tokens < excess:
            suspects.append(rendered)
    return sorted(suspects, key=lambda rendered: (rendered[0].file, rendered[0].number))


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "ignore"))


def _lengths(rows: list[_Rendered], encoder: _Encoder) -> Iterator[tuple[Row, list[int]]]:
    """How many tokens each message of each row has; a text that stands in several is tokenised once."""
    texts = list(dict.fromkeys(text for _, row in rows for message in row for text in message.texts))
    tokens = dict(zip(texts, encoder.counts(texts), strict=True))
    for row, messages in rows:
        yield row, [message.special + sum(tokens[text] for text in message.texts) for message in messages]


def _what_is_cut(tokens: list[int], encoder: _Encoder) -> tuple[str | None, int]:
    """The worst that happens to a row of these message lengths, and its length in tokens."""
    processing, cutoff = encoder.options.processing, encoder.cutoff
    if processing == "pt":
        return "text_cut" if tokens[0] > cutoff else None, tokens[0]
    eos = int(encoder.template.efficient_eos)
    if processing == "sft":
        pairs = list(zip(tokens[::2], tokens[1::2], strict=True))
        pairs, left = pairs[::-1] if encoder.options.mask_history else pairs, cutoff - eos
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


def _problems(encoder: _Encoder, found: Findings, whole: tuple[int, int]) -> Iterator[Problem]:
    rows, longest = whole
    for kind, what in KINDS.items():
        if count := found.counts[kind]:
            cut = f"cutoff_len {encoder.cutoff} is too short for {count} of {rows} rows: {what}"
            fix = f"cutoff_len: {longest} keeps every row whole; or shorten the rows"
            place = Place(found.first[kind][0].file, None, found.first[kind][0].key)
            hopeless = kind == "answer_lost" and count == rows
            yield Problem(f"{cut} ({found.rows(kind)})", fix, place, "error" if hopeless else "warning")


def _check_blocks(source: Source, samples: Iterator[tuple[Row, Sample]], encoder: _Encoder) -> Truncation:
    """Stage pt joins the texts of a batch and keeps whole blocks: one block anywhere is enough to train."""
    rows = 0
    while batch := list(islice(samples, BATCH)):
        rows += len(batch)
        texts = [sample.prompt[0].text for _, sample in batch]
        if sum(encoder.counts(texts)) + len(texts) >= encoder.cutoff:
            return Truncation(rows)
    what = f"the texts of '{source.name}' do not fill one block of cutoff_len {encoder.cutoff} tokens"
    problem = Problem(what, "give more text, or lower cutoff_len", Place(str(source.files[0])))
    return Truncation(rows, problems=(problem,) if rows else ())

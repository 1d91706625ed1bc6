"""Check the rows of a data set as LLaMA-Factory would meet them: what stops it, what it drops, what it trains oddly."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from msgspec import Struct

from ..errors import Place, Problem
from .convert import Sample, convert, hold
from .faults import Column, Fault, Findings, Row, note
from .near import row_key
from .readers import read_rows
from .sources import Layout, Options, Source
from .truncation import BATCH, Truncation, count_cuts

GROUPS = 40  # different findings kept apart; a file that is broken in more ways needs no longer list
PLACEHOLDERS = ("<image>", "<video>", "<audio>")
UNFILLED = ("{{name}}", "{{author}}")  # LLaMA-Factory's identity.json, as it is shipped
NOWHERE = Row(1, None, None)  # for what is wrong with a whole file
TOLD_ROWS = 2000

Progress = Callable[[float], None]  # is told the share that has been read, 0 to 1
Held = tuple[Row, Sample | Fault]  # a row with the sample that LLaMA-Factory makes of it, or why it makes none


class Reading(Struct, frozen=True):
    """What the rows of a data set are like; `complete` is False when `limit` ended the reading."""

    rows: int
    kept: int
    dropped: int
    complete: bool
    problems: tuple[Problem, ...]
    truncation: Truncation = Truncation()
    keys: bytes = b""  # where they were asked for: eight bytes a row, zeros for one that is not used


@dataclass
class _Tally:
    """What has been seen so far; a finding is known by its case, its detail and its file."""

    source: Source
    options: Options
    words: Mapping[str, str]  # that a text should not hold, with the case that each one is
    findings: Findings = field(default_factory=Findings)
    columns: Column = field(default_factory=Column)
    rows: int = 0
    kept: int = 0
    labels: set[bool | None] = field(default_factory=set)
    batch: set[str] = field(default_factory=set)
    complete: bool = False
    keys: bytearray = field(default_factory=bytearray)

    @property
    def used(self) -> int:
        """The rows that LLaMA-Factory converts: max_samples leaves out the others."""
        return min(self.rows, self.options.max_samples or self.rows)

    def add(self, fault: Fault, row: Row) -> None:
        detail = fault.detail if len(self.findings.first) < GROUPS else "..."
        self.findings.add((fault.case, detail, row.file or str(self.source.files[-1])), row)


def check_rows(
    source: Source, options: Options, tokenizer_json: Path | None = None, progress: Progress | None = None
) -> Reading:
    """Read a source's rows once, streamed, and report every kind of fault once, with its first rows and its count.

    With a tokenizer, what cutoff_len would cut from the usable rows is counted in the same reading.
    """
    template = options.template
    words = dict.fromkeys(template.tokens if template else (), "special_word")
    words |= dict.fromkeys(() if template and template.multimodal else PLACEHOLDERS, "placeholder")
    words |= dict.fromkeys(UNFILLED, "unfilled")
    tally = _Tally(source, options, words)
    samples = _usable(tally, progress)
    cuts = count_cuts(source, samples, options, tokenizer_json) if tokenizer_json else Truncation()
    deque(samples, maxlen=0)  # the rows that nothing asked for
    _check_columns(tally, source.layout)
    if options.processing == "kto" and tally.kept and len(tally.labels) == 1:
        tally.add(Fault("one_label", str(next(iter(tally.labels))).lower()), NOWHERE)
    dropped, keys = tally.used - tally.kept, bytes(tally.keys)
    return Reading(tally.rows, tally.kept, dropped, tally.complete, tuple(_problems(tally)), cuts, keys)


def count_rows(source: Source, progress: Progress | None = None) -> int:
    """How many rows there are, the unusable ones included: read, not checked."""
    return sum(1 for _ in _rows(source, None, progress))


def samples(source: Source, options: Options, progress: Progress | None = None) -> Iterator[Held]:
    """Every row with the sample that LLaMA-Factory makes of it, or why it makes none."""
    for row in islice(_rows(source, options.limit, progress), options.limit):
        yield row, held(row, source.layout, options.processing)


def held(row: Row, layout: Layout, processing: str) -> Sample | Fault:
    if not isinstance(row.value, dict):
        return row.value if isinstance(row.value, Fault) else Fault("not_object")
    try:
        sample = convert(row.value, layout)
        hold(sample, processing)
    except Fault as fault:
        return fault
    return sample


def _usable(tally: _Tally, progress: Progress | None) -> Iterator[tuple[Row, Sample]]:
    """Note every row, and give the samples that LLaMA-Factory would keep."""
    limit = tally.options.limit
    rows = _rows(tally.source, limit, progress)
    for row in islice(rows, limit):
        sample = _checked(tally, row)
        if tally.options.keyed:
            tally.keys += row_key(sample) if sample else bytes(8)
        if sample is not None:
            yield row, sample
    tally.complete = next(rows, None) is None
    _end_batch(tally, NOWHERE._replace(number=tally.rows))


def _rows(source: Source, limit: int | None, progress: Progress | None) -> Iterator[Row]:
    """Every row with its file; `progress` is told how much of the files, or of the `limit`, is behind it."""
    sizes, seen = [path.stat().st_size for path in source.files], 0
    for number, path in enumerate(source.files):
        with path.open("rb") as file:
            for row in read_rows(file, source.file_type):
                seen += 1
                if progress and seen % TOLD_ROWS == 0:
                    share = (sum(sizes[:number]) + file.tell()) / sum(sizes)
                    progress(min(1.0, max(share, seen / limit if limit else 0.0)))
                yield row._replace(file=str(path), first_table=row.first_table and number == 0)


def _checked(tally: _Tally, row: Row) -> Sample | None:
    """The sample of a row if it is usable and LLaMA-Factory converts it."""
    tally.rows += 1
    if not isinstance(row.value, dict):
        tally.add(row.value if isinstance(row.value, Fault) else Fault("not_object"), row)
        return None
    for fault in note(tally.columns, row.value, row):
        tally.add(fault, row)
    return _sample(tally, row) if tally.rows == tally.used else None


def _sample(tally: _Tally, row: Row) -> Sample | None:
    sample, kept, processing = None, False, tally.options.processing
    try:
        sample = convert(row.value, tally.source.layout)
        hold(sample, processing)
    except Fault as fault:
        tally.add(fault, row)
    else:
        kept = True
        tally.kept += 1
        tally.labels.add(sample.label)
        tally.batch.add("kept")
        for remark in _remarks(sample, processing, tally.words):
            tally.add(remark, row)
    if sample is None or (len(sample.answers) < 2 and not any(turn.text for turn in sample.answers)):
        tally.batch.add("without an answer")
    if tally.rows % BATCH == 0:
        _end_batch(tally, row)
    return sample if kept else None


def _end_batch(tally: _Tally, row: Row) -> None:
    """In KTO a row borrows its neighbour's answer within a batch, and an unusable neighbour has none."""
    if tally.batch >= {"kept", "without an answer"} and tally.options.processing == "kto":
        tally.add(Fault("kto_neighbour"), row)
    tally.batch.clear()


def _remarks(sample: Sample, processing: str, words: Mapping[str, str]) -> Iterator[Fault]:
    """What is odd about a row that is trained all the same."""
    answers = [turn.text for turn in sample.answers[: 2 if processing == "rm" else 1]]
    if processing == "sft" and answers == [""]:
        yield Fault("empty_answer")
    if processing == "rm" and answers[0] == answers[1]:
        yield Fault("same_pair")
    elif processing == "rm" and "" in answers:
        yield Fault("empty_pair")
    if not sample.prompt[0].text:
        yield Fault("empty_question")
    turns = sample.prompt[:1] if processing == "pt" else sample.trained(processing)
    text = "\n".join(turn.text for turn in turns)
    for word, case in words.items():
        if word in text:
            yield Fault(case, word)


def _check_columns(tally: _Tally, layout: Layout) -> None:
    """Faults of a whole column: in no row at all, or read as another type by its values."""
    there = tally.columns.members
    if not there:
        tally.add(Fault("no_rows"), NOWHERE) if not tally.findings.first else None
        return
    if lacking := _lacking(_needed(tally, layout), there):
        wrapped = [key for key, item in there.items() if tally.rows == 1 and item.items and item.items.members]
        tally.add(Fault("wrapped", wrapped[0]) if wrapped else Fault("no_column", lacking), NOWHERE)
    messages = there.get(layout.columns.get("messages", "")) if layout.formatting != "alpaca" else None
    if messages and messages.items and messages.items.members:
        tags = [layout.tags[tag] for tag in ("role_tag", "content_tag") if tag in layout.tags]
        if lacking := _lacking(tags, messages.items.members):
            tally.add(Fault("no_member", lacking), NOWHERE)
    for key in ("response", "prompt", "query", "chosen", "rejected"):
        column = there.get(layout.columns.get(key, ""))
        if column and column.only_dates and list(column.kinds) == ["text"]:
            tally.add(Fault("dates", column.name), NOWHERE)


def _lacking(wanted: list[str], there: dict[str, Column]) -> str:
    missing = ", ".join(f"'{name}'" for name in wanted if name not in there)
    return f"{missing} (there are: {', '.join(there)})" if missing else ""


def _needed(tally: _Tally, layout: Layout) -> list[str]:
    """The columns LLaMA-Factory looks up without asking whether they are there."""
    keys = ["messages"] if layout.formatting != "alpaca" else ["prompt", "query", "response", "history"]
    if layout.ranking and "response" in keys and not any(case == "no_pair" for case, _, _ in tally.findings.first):
        keys.remove("response")
    keys += ["kto_tag", "images", "videos", "audios"]
    keys += ["chosen", "rejected"] if layout.ranking else []
    keys += ["system", "tools"] if layout.formatting != "openai" else []
    return layout.named(*keys)


def _problems(tally: _Tally) -> Iterator[Problem]:
    faults = [(Fault(case, detail), file) for case, detail, file in tally.findings.first]
    whole = any(fault.effect == "file" for fault, _ in faults)
    for fault, file in faults:
        # A column that is missing or misread makes every row look bad; one sentence is enough.
        if not (whole and fault.effect in {"drop", "keep"}):
            yield _problem(tally, fault, file)


def _problem(tally: _Tally, fault: Fault, file: str) -> Problem:
    finding = (fault.case, fault.detail, file)
    first, about = tally.findings.first[finding], f"{tally.findings.counts[finding]} of {tally.used} rows"
    stops = fault.effect in {"stop", "file"} or (fault.effect == "drop" and tally.options.processing == "pt")
    what, fix = fault.sentence(file)
    place = Place(file, next((row.line for row in first if row.line), None))
    if fault.effect != "file":
        below = " below the header" if tally.source.file_type == "csv" and first[0].number else ""
        what, place = f"{what} ({tally.findings.rows(finding)}{below})", replace(place, key=first[0].key)
    if stops:
        return Problem(f"loading stops: {what}", fix, place, kind="missing" if fault.case == "package" else "invalid")
    if fault.effect == "keep":
        return Problem(f"{about}: {what}", fix, place, "warning")
    if not tally.kept:
        return Problem(f"no valid sample would be left, {about} are dropped: {what}", fix, place)
    return Problem(f"{about} are dropped: {what}", fix, place, "warning")

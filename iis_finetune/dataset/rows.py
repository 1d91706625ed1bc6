"""Check the rows of a data set as LLaMA-Factory would meet them: what stops it, what it drops, what it trains oddly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import Place, Problem
from .cases import CASES
from .columns import Column, note
from .convert import Fault, Sample, Turn, check_turns, convert
from .files import Progress, Row, is_lines, read_rows
from .layout import Layout, Source

BATCH = 1000  # LLaMA-Factory's preprocessing_batch_size
GROUPS = 40  # different findings kept apart; a file that is broken in more ways needs no longer list
PLACEHOLDERS = ("<image>", "<video>", "<audio>")


@dataclass(frozen=True)
class RowOptions:
    """What the rows are for; `special_words` are the template's and tokenizer's own tokens.

    `limit` is how many rows are read at most (None: all), `max_samples` LLaMA-Factory's argument, `generate` its
    predict_with_generate.
    """

    stage: str
    limit: int | None = 200_000
    max_samples: int | None = None
    generate: bool = False
    special_words: tuple[str, ...] = ()
    multimodal: bool = False

    @property
    def processing(self) -> str:
        return "generate" if self.generate or self.stage == "ppo" else "rm" if self.stage == "dpo" else self.stage


@dataclass(frozen=True)
class RowReport:
    """How many rows were read, kept and dropped; `complete` is False when `limit` ended the reading."""

    rows: int
    kept: int
    dropped: int
    complete: bool
    thinking_rows: int
    problems: tuple[Problem, ...]


@dataclass
class _Finding:
    count: int = 0
    rows: list[int] = field(default_factory=list)
    line: int | None = None


@dataclass
class _Tally:
    source: Source
    options: RowOptions
    findings: dict[tuple[str, str, str], _Finding] = field(default_factory=dict)
    columns: Column = field(default_factory=Column)
    file: str = ""
    rows: int = 0
    kept: int = 0
    thinking_rows: int = 0
    labels: set[bool | None] = field(default_factory=set)
    batch: set[str] = field(default_factory=set)

    @property
    def used(self) -> int:
        """The rows that LLaMA-Factory converts: max_samples leaves out the others."""
        return min(self.rows, self.options.max_samples or self.rows)

    def add(self, case: str, detail: str, row: Row) -> None:
        key = (case, detail, self.file) if len(self.findings) < GROUPS else (case, "...", self.file)
        finding = self.findings.setdefault(key, _Finding())
        finding.count += 1
        if len(finding.rows) < 3:
            finding.rows.append(row.number)
            finding.line = finding.line or row.line


def check_rows(source: Source, options: RowOptions, progress: Progress | None = None) -> RowReport:
    """Read a source's rows, streamed, and report every kind of fault once, with its first rows and its count."""
    tally, complete = _Tally(source, options), True
    for number, file in enumerate(source.files):
        tally.file = str(file)
        for row in read_rows(file, source.file_type, progress):
            if options.limit is not None and tally.rows >= options.limit:
                complete = False
                break
            _check_row(tally, row._replace(first_table=row.first_table and number == 0))
        if not complete:
            break
    _end_batch(tally, Row(tally.rows, None, None))
    _check_columns(tally, source.layout)
    problems = tuple(_problems(tally))
    return RowReport(tally.rows, tally.kept, tally.used - tally.kept, complete, tally.thinking_rows, problems)


def usable_samples(
    source: Source, options: RowOptions, progress: Progress | None = None
) -> Iterator[tuple[int, Sample]]:
    """The samples that LLaMA-Factory would keep, with their row's number over all files."""
    rows = (row for file in source.files for row in read_rows(file, source.file_type, progress))
    most = min(limit for limit in (options.limit, options.max_samples, float("inf")) if limit is not None)
    for number, row in enumerate(rows, 1):
        if number > most:
            return
        if isinstance(row.value, dict):
            try:
                sample = convert(row.value, source.layout)
                _judge(sample, options.processing)
            except Fault:
                continue
            yield number, sample


def _check_row(tally: _Tally, row: Row) -> None:
    tally.rows += 1
    if not isinstance(row.value, dict):
        fault = row.value if isinstance(row.value, Fault) else Fault("not_object")
        tally.add(fault.case, fault.detail, row)
        return
    for fault in note(tally.columns, row.value, row):
        tally.add(fault.case, fault.detail, row)
    if tally.rows == tally.used:
        _check_sample(tally, row)


def _check_sample(tally: _Tally, row: Row) -> None:
    sample, options = None, tally.options
    try:
        sample = convert(row.value, tally.source.layout)
        _judge(sample, options.processing)
    except Fault as fault:
        tally.add(fault.case, fault.detail, row)
    else:
        tally.kept += 1
        tally.batch.add("kept")
        _remark(tally, sample, row)
    if options.processing == "kto":
        if sample is None or not sample.answers or (len(sample.answers) == 1 and not sample.answers[0].text):
            tally.batch.add("bad")
        if tally.rows % BATCH == 0:
            _end_batch(tally, row)


def _end_batch(tally: _Tally, row: Row) -> None:
    """In KTO a row borrows its neighbour's answer within a batch, and an unusable neighbour has none."""
    if tally.batch >= {"kept", "bad"} and tally.options.processing == "kto":
        tally.add("kto_neighbour", "", row)
    tally.batch.clear()


def _judge(sample: Sample, processing: str) -> None:
    """Hold a sample to its stage; raises Fault where the stage drops it or stops."""
    if processing == "pt":
        if not sample.prompt:
            raise Fault("pt_empty")
        if not isinstance(sample.prompt[0].text, str):
            raise Fault("not_text", sample.prompt[0].role)
        return
    answers = len(sample.answers)
    if processing in {"rm", "kto"} and answers < 2:
        raise Fault("no_pair" if processing == "rm" else "no_label")
    if len(sample.prompt) % 2 != 1:
        raise Fault("empty")
    if processing == "sft" and answers != 1:
        raise Fault("labelled" if answers else "no_answer")
    check_turns(_encoded(sample, processing), sample)


def _encoded(sample: Sample, processing: str) -> list[Turn]:
    """The turns that the stage gives to the template."""
    if processing == "kto":
        first, second = sample.answers
        return [*sample.prompt, first if first.text else second]
    return sample.prompt + (sample.answers if processing == "rm" else sample.answers[:1])


def _remark(tally: _Tally, sample: Sample, row: Row) -> None:
    """Rows that are trained, though perhaps not as meant."""
    turns, processing = _encoded(sample, tally.options.processing), tally.options.processing
    tally.labels.add(sample.label)
    answers = [turn.text for turn in sample.answers[: 2 if processing == "rm" else 1]]
    if processing == "sft" and answers == [""]:
        tally.add("empty_answer", "", row)
    if processing == "rm" and ("" in answers or answers[0] == answers[1]):
        tally.add("same_pair" if answers[0] == answers[1] else "empty_pair", "", row)
    if not sample.prompt[0].text:
        tally.add("empty_question", "", row)
    text = "\n".join(turn.text for turn in turns) if processing != "pt" else sample.prompt[0].text
    for word in tally.options.special_words:
        if word in text:
            tally.add("special_word", word, row)
    for word in PLACEHOLDERS if not tally.options.multimodal else ():
        if word in text:
            tally.add("placeholder", word, row)
    tally.thinking_rows += "<think>" in text


def _check_columns(tally: _Tally, layout: Layout) -> None:
    """Faults of a whole column: in no row at all, or read as another type by its values."""
    there, start = tally.columns.members, Row(1, None, None)
    if not there:
        tally.add("no_rows", "", start) if not tally.findings else None
        return
    wrapped = [key for key, item in there.items() if tally.rows == 1 and item.items and item.items.members]
    if missing := [column for column in _needed(tally, layout) if column and column not in there]:
        listed = f"{_quoted(missing)} (there are: {', '.join(there)})"
        tally.add("wrapped" if wrapped else "no_column", wrapped[0] if wrapped else listed, start)
    messages = there.get(layout.columns.messages or "") if layout.formatting != "alpaca" else None
    if messages and messages.items and messages.items.members:
        members, tags = messages.items.members, (layout.tags.role_tag, layout.tags.content_tag)
        if missing := [tag for tag in tags if tag and tag not in members]:
            tally.add("no_member", f"{_quoted(missing)} (there are: {', '.join(members)})", start)
    columns = layout.columns
    texts = (columns.response, columns.prompt, columns.query, columns.chosen, columns.rejected)
    for name in texts if is_lines(tally.source) else ():
        item = there.get(name or "")
        if item and item.only_dates and list(item.kinds) == ["text"]:
            tally.add("dates", str(name), start)


def _quoted(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _needed(tally: _Tally, layout: Layout) -> list[str | None]:
    """The columns LLaMA-Factory looks up without asking whether they are there."""
    columns = layout.columns
    wanted = [columns.kto_tag, columns.images, columns.videos, columns.audios]
    if layout.ranking:
        wanted += [columns.chosen, columns.rejected]
    if layout.formatting != "openai":
        wanted += [columns.system, columns.tools]
    if layout.formatting != "alpaca":
        return [columns.messages, *wanted]
    answer = columns.response if not layout.ranking or any(case == "no_pair" for case, _, _ in tally.findings) else None
    return [columns.prompt, columns.query, answer, columns.history, *wanted]


def _problems(tally: _Tally) -> Iterator[Problem]:
    if tally.options.processing == "kto" and tally.kept and len(tally.labels) == 1:
        tally.add("one_label", str(next(iter(tally.labels))).lower(), Row(1, None, None))
    whole = any(CASES[case][0] == "file" for case, _, _ in tally.findings)
    for (case, detail, file), finding in tally.findings.items():
        # A column that is missing or misread makes every row look bad; one sentence is enough.
        if whole and CASES[case][0] in {"drop", "keep"}:
            continue
        yield _problem(tally, case, detail, (file, finding))


def _problem(tally: _Tally, case: str, detail: str, found: tuple[str, _Finding]) -> Problem:
    file, finding = found
    effect, what, fix = CASES[case]
    if effect == "drop" and tally.options.processing == "pt":
        effect = "stop"
    listed = ", ".join(str(row) for row in finding.rows) + (", ..." if finding.count > len(finding.rows) else "")
    about = f"{finding.count} of {tally.used} rows"
    opening = {
        "stop": "loading stops: ",
        "drop": f"no valid sample would be left, {about} are dropped: " if not tally.kept else f"{about} are dropped: ",
        "keep": f"{about}: ",
        "file": "loading stops: ",
    }[effect]
    text = opening + what.format(detail=detail) + ("" if effect == "file" else f" (row {listed})")
    key = f"row {finding.rows[0]}" if effect != "file" else None
    harmless = effect == "keep" or (effect == "drop" and tally.kept > 0)
    place = Place(file, finding.line, key)
    return Problem(text, fix.format(detail=detail, file=file), place, "warning" if harmless else "error")

"""A data set without the rows that have something wrong; each is told with its reason, and nothing is chosen."""

import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..errors import Misused
from .convert import Sample
from .faults import Fault, Row
from .made import Making, Meter, line_of, making
from .near import NEAR, NearIndex, answer_of, key_of, normalised, question_of
from .rows import Progress, held, samples

# What can be wrong with a row; the first that fits is told.
DROPPED = {
    "unusable": "LLaMA-Factory stops at it or drops it",
    "roles": "the roles do not take turns",
    "empty": "an answer is empty or white space",
    "control": "control characters in its text",
    "exact": "equal to an earlier row after normalising",
    "near": f"near an earlier row: Jaccard of word 3-grams, or character 5-grams, {NEAR} or more",
}
REPORTED = {  # only people know which answer is right, and whether a text is broken or meant
    "conflict": "another answer than an earlier row to the same question",
    "mojibake": "text decoded with the wrong encoding; --fix-text mends it",
}
ROLES = ("order", "role", "role_unknown", "pair_role", "count", "count_pair")  # cases of tables/row_faults.toml
CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
LABEL = 0.3  # of the question's length: rows with shorter answers could look near though they answer differently


class Wash(Struct, frozen=True):
    """How to clean: the kinds that are left out, whether broken text is mended, whether to look only, a name."""

    drop: tuple[str, ...] = tuple(DROPPED)
    fix_text: bool = False
    dry_run: bool = False
    name: str | None = None


class Cleaned(Struct, frozen=True):
    """The new data set's name, how many rows there were, stay and were mended, and the rows of each kind (from 1)."""

    name: str
    rows: int
    kept: int
    mended: int
    found: dict[str, list[int]]
    left_out: Path


def clean(name: str, data_dir: Path, wash: Wash, meter: Meter) -> Cleaned:
    """Make NAME_clean of a registered data set, and a file that tells each row found, with its reason.

    Raises ProblemsFound, with nothing written, when there is no such data set or nothing would be left of it.
    """
    clean_name = wash.name or f"{name}_clean"
    made = making(name, data_dir, [clean_name], f"{clean_name}_left_out")
    seen, rows, mended = _Seen(wash, made.options.processing), 0, 0
    with meter("reading rows") as progress:
        for rows, (row, sample, changed) in enumerate(_read(made, wash, progress), 1):
            mended += changed
            seen.add(rows, row, sample)
    with meter("comparing rows") as progress:
        seen.compare(progress)
    found = {kind: [row for row, (of, _) in seen.found.items() if of == kind] for kind in (*DROPPED, *REPORTED)}
    kept = rows - sum(len(found[kind]) for kind in wash.drop)
    if not kept:
        raise Misused("no row would be left", "leave fewer kinds out: --drop exact,near", "--drop")
    if not wash.dry_run:
        with meter("writing rows") as progress:
            _write(made, wash, seen.found, progress)
    return Cleaned(clean_name, rows, kept, mended, found, made.beside)


def _write(made: Making, wash: Wash, found: dict[int, tuple[str, str]], progress: Progress) -> None:
    with made.streams() as (whole, told):
        for number, (row, _, _) in enumerate(_read(made, wash, progress), 1):
            kind, reason = found.get(number, ("", ""))
            left = {"row": number, "line": row.line, "left_out": kind in wash.drop, "kind": kind, "reason": reason}
            if kind:
                told.write(line_of(left))
            if kind not in wash.drop:
                whole.write(line_of(row.value))


def _read(made: Making, wash: Wash, progress: Progress) -> Iterator[tuple[Row, Sample | Fault, bool]]:
    """Every row, mended where that is asked for, with its sample or fault, and whether it was changed."""
    for row, sample in samples(made.source, made.options, progress):
        value = _mended(row.value) if wash.fix_text else row.value
        changed = row._replace(value=value)
        yield (
            (row, sample, False)
            if value == row.value
            else (changed, held(changed, made.source.layout, made.options.processing), True)
        )


def _mended(value: Any) -> Any:
    """The texts in a value without control characters, and decoded anew where they were decoded wrongly."""
    if isinstance(value, dict):
        return {key: _mended(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_mended(item) for item in value]
    return _decoded(CONTROL.sub("", value)) if isinstance(value, str) else value


def _decoded(text: str) -> str:
    from ftfy import fix_encoding
    from ftfy.badness import is_bad

    return fix_encoding(text) if not text.isascii() and is_bad(text) else text


class _Seen:
    """What was found by row number, its kind and the reason; and what later rows are held against."""

    def __init__(self, wash: Wash, processing: str) -> None:
        self.wash, self.processing, self.found = wash, processing, dict[int, tuple[str, str]]()
        self.asked, self.repeated = dict[bytes, tuple[int, bytes]](), dict[bytes, int]()
        self.index, self.rows, self.labels = NearIndex(), array("I"), array("Q")

    def add(self, number: int, row: Row, sample: Sample | Fault) -> None:
        fault = self._fault(row, sample)
        if isinstance(sample, Sample) and (fault is None or fault[0] not in self.wash.drop):
            fault = self._repeats(number, sample) or fault
        if fault:
            self.found[number] = fault

    def _fault(self, row: Row, sample: Sample | Fault) -> tuple[str, str] | None:
        """What is wrong with a row by itself."""
        if isinstance(sample, Fault):
            return "roles" if sample.case in ROLES else "unusable", sample.sentence(row.file)[0]
        answers = sample.prompt[:1] if self.processing == "pt" else sample.answers
        if (any if self.processing == "rm" else all)(not str(turn.text or "").strip() for turn in answers):
            return "empty", DROPPED["empty"]
        text = f"{question_of(sample)}\n{answer_of(sample)}\n{sample.system or ''}"
        if control := CONTROL.search(text):
            return "control", f"it holds U+{ord(control[0]):04X}"
        return ("mojibake", f"it would be: {_decoded(text)[:60]}") if _decoded(text) != text else None

    def _repeats(self, number: int, sample: Sample) -> tuple[str, str] | None:
        question, answer = normalised(question_of(sample)), normalised(answer_of(sample))
        setting = f"{sample.system or ''}\0{sample.tools or ''}\0"
        asked, said = key_of(setting + question), key_of(answer)
        asked_first, said_first = self.asked.setdefault(asked, (number, said))
        first = asked_first if said == said_first else self.repeated.setdefault(asked + said, number)
        if first != number:
            return "exact", f"equal to row {first}"
        if "near" in self.wash.drop:
            self.index.add(f"{question} {answer}")
            self.rows.append(number)
            label = setting + (answer if len(answer) < LABEL * len(question) else "")
            self.labels.append(int.from_bytes(key_of(label)[:8]))
        another = said != said_first and self.processing == "sft"
        return ("conflict", f"row {asked_first} has another answer to this question") if another else None

    def compare(self, progress: Progress) -> None:
        """Find the rows that are near an earlier one that stays."""
        labels, gone = self.labels, set[int]()

        def wanted(one: int, other: int) -> bool:
            return labels[one] == labels[other] and not gone & {one, other}

        for one, other, jaccard in self.index.pairs(wanted, progress):
            gone.add(one)
            self.found[self.rows[one]] = "near", f"Jaccard {jaccard:.2f} with row {self.rows[other]}"

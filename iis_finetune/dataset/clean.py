"""A data set without the rows that have something wrong; each is told with its reason, and nothing is chosen."""

import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..errors import Misused
from ..tables import read
from .convert import Sample
from .faults import Fault
from .made import Making, Meter, line_of, making
from .near import NearIndex, answer_of, key_of, learned_of, normalised, question_of
from .rows import Held, Progress, held, samples
from .sources import Options
from .truncation import cut_rows

ROLES = ("order", "role", "role_unknown", "pair_role", "count", "count_pair")  # cases of tables/row_faults.toml
CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
LABEL = 0.3  # of the question's length: rows with shorter answers could look near though they answer differently


class Wash(Struct, frozen=True):
    """How to clean: the kinds that are left out, whether broken text is mended, whether to look only, a name; and for
    `cut`, the recipe's way to read rows and its tokenizer.json."""

    drop: Sequence[str]
    fix_text: bool = False
    dry_run: bool = False
    name: str | None = None
    encoding: tuple[Options, Path] | None = None


class Cleaned(Struct, frozen=True):
    """How many rows there were and stay, and which were found, from 1, of each kind in row_kinds.toml."""

    rows: int
    kept: int
    found: dict[str, list[int]]
    template: int  # rows that mostly are one, and were compared by the rest


def clean(name: str, data_dir: Path, wash: Wash, meter: Meter) -> Cleaned:
    """Make NAME_clean of a registered data set, and NAME_clean_found.jsonl, which tells each row found and why.

    Raises ProblemsFound, with nothing written, when there is no such data set or nothing would be left of it.
    """
    new, kinds, rows = f"{wash.name or name}_clean", read("row_kinds.toml"), 0
    drop = [kind for kind in wash.drop if not (wash.fix_text and kinds[kind].get("mended"))]
    with making(name, data_dir, () if wash.dry_run else (new, f"{new}_found")) as made:
        seen = _Seen(drop, made.options.processing, _cut(made, wash, meter))
        with meter("reading rows") as progress:
            for rows, (before, after) in enumerate(_mended_rows(made, wash, progress), 1):
                seen.add(rows, before, after)
        with meter("comparing rows") as progress:
            seen.compare(progress)
        found = {kind: sorted(row for row, (of, _) in seen.found.items() if of == kind) for kind in kinds}
        kept = rows - len(seen.gone())
        if not kept:
            raise Misused("no row would be left", "leave fewer kinds out: --drop exact,near", "--drop")
        with meter("writing rows") as progress:
            again = _mended_rows(made, wash, progress) if made.streams else ()
            for number, ((row, _), (mended, _)) in enumerate(again, 1):
                kind, reason = seen.found.get(number, ("", ""))
                gone = kind in drop or number in seen.unreadable
                left = {"row": number, "line": row.line, "left_out": gone, "kind": kind, "reason": reason}
                left["is"] = None if isinstance(row.value, Fault) else row.value
                made.streams[1].write(line_of(left) if kind else b"")
                made.streams[0].write(b"" if gone else line_of(mended.value))
    return Cleaned(rows, kept, found, seen.index.template)


def _mended_rows(made: Making, wash: Wash, progress: Progress) -> Iterator[tuple[Held, Held]]:
    """Each row as it stands, and as it may stay: mended where that is asked for."""
    for row, sample in samples(made.source, made.options, progress):
        before = after = row, sample
        if wash.fix_text and (value := _mended(row.value)) != row.value:
            mended = row._replace(value=value)
            after = mended, held(mended, made.source.layout, made.options.processing)
        yield before, after


def _cut(made: Making, wash: Wash, meter: Meter) -> dict[int, str]:
    """What each row loses by its number, where a recipe says what is cut."""
    if wash.encoding is None:
        return {}
    with meter("counting tokens") as progress:
        pairs = enumerate(_mended_rows(made, wash, progress), 1)
        usable = ((number, sample) for number, (_, (_, sample)) in pairs if isinstance(sample, Sample))
        return dict(cut_rows(usable, *wash.encoding))


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

    def __init__(self, drop: Sequence[str], processing: str, cut: dict[int, str]) -> None:
        self.drop, self.processing, self.cut, self.found = drop, processing, cut, dict[int, tuple[str, str]]()
        self.asked, self.repeated = dict[bytes, tuple[int, bytes]](), dict[bytes, int]()
        self.unreadable = set[int]()
        self.marked = dict[bytes, tuple[int, bool | None]]()
        self.index, self.rows, self.labels = NearIndex(), array("I"), array("Q")

    def gone(self) -> set[int]:
        """The rows that do not stay; what is no object cannot, whatever was asked for."""
        return self.unreadable | {number for number, (kind, _) in self.found.items() if kind in self.drop}

    def add(self, number: int, before: Held, after: Held) -> None:
        row, sample = after
        if not isinstance(row.value, dict):
            self.unreadable.add(number)
        fault = ("cut", self.cut[number]) if number in self.cut else self._fault(after)
        if fault is None and before is not after and isinstance(before[1], Sample):
            fault = self._fault(before)
        if isinstance(sample, Sample) and (fault is None or fault[0] not in self.drop):
            fault = self._repeats(number, sample) or fault
        if fault:
            self.found[number] = fault

    def _fault(self, looked: Held) -> tuple[str, str] | None:
        """What is wrong with a row by itself."""
        row, sample = looked
        if isinstance(sample, Fault):
            return "roles" if sample.case in ROLES else "unusable", sample.sentence(row.file)[0]
        said = sample.prompt if self.processing == "pt" else sample.trained(self.processing)[len(sample.prompt) :]
        if not all(str(turn.text or "").strip() for turn in said):
            return "empty", "its answer is empty or white space"
        text = f"{question_of(sample)} {answer_of(sample)} {sample.system or ''}"
        if control := None if text.isprintable() else CONTROL.search(text):
            return "control", f"it holds U+{ord(control[0]):04X}"
        return ("mojibake", f"it would be: {_decoded(text)[:60]}") if _decoded(text) != text else None

    def _repeats(self, number: int, sample: Sample) -> tuple[str, str] | None:
        question, answer = normalised(question_of(sample)), normalised(answer_of(sample))
        setting = f"{sample.system or ''}\0{sample.tools or ''}\0"
        asked, said = key_of(setting + question), key_of(answer)
        if self.processing == "kto":
            earlier, mark = self.marked.setdefault(asked + said, (number, sample.label))
            if mark != sample.label:
                return "conflict", f"row {earlier} is marked otherwise"
        asked_first, said_first = self.asked.setdefault(asked, (number, said))
        first = asked_first if said == said_first else self.repeated.setdefault(asked + said, number)
        if first != number:
            return "exact", f"equal to row {first}"
        if "near" in self.drop:
            self.index.add(f"{question} {answer}")
            self.rows.append(number)
            better = normalised(learned_of(sample)) if self.processing == "rm" else sample.label
            label = f"{setting}{better}\0" + (answer if len(answer) < LABEL * len(question) else "")
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

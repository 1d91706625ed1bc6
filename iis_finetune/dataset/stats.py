"""Numbers of a data set: rows, turns, lengths, repeated answers, scripts; how several are mixed; what to change."""

import random
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from statistics import fmean
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ..arguments import Settings
from .convert import Sample
from .faults import Row
from .rows import Progress, samples
from .sources import Options, Source
from .truncation import row_lengths

COUNTED = 20_000  # rows whose lengths are counted when not all are asked for
BARS = 10  # of a histogram
FITTING, REPEATED = 0.95, 0.05  # shares of the rows that make a change worth it
Samples = Iterator[tuple[Row, Sample]]


class Stats(Struct, frozen=True, kw_only=True):
    """`turns` of the usable rows and `lengths` of those that were drawn are in ascending order.

    `repeated` is the share of the answers that an earlier row has as well, `copies` of the rows; `scripts` of letters.
    """

    rows: int
    turns: list[int]
    lengths: list[int]
    repeated: float
    copies: float
    scripts: dict[str, float]

    def within(self, length: int) -> float:
        """The share of the rows that are not longer."""
        return bisect_right(self.lengths, length) / max(1, len(self.lengths))

    def as_json(self, cutoff_len: int) -> dict[str, Any]:
        """The figures to show; a bar is a length, one equal step after another, and the share of the rows up to it."""
        ends = [-(-self.lengths[-1] // BARS) * number for number in range(1, BARS + 1)] if self.lengths else []
        return {
            "rows": self.rows,
            "usable": len(self.turns),
            "counted": len(self.lengths),
            "turns": spread(self.turns),
            "lengths": spread(self.lengths),
            "over_cutoff_len": 1 - self.within(cutoff_len),
            "over_half": 1 - self.within(cutoff_len // 2),
            "bars": [(end, self.within(end) - self.within(end - ends[0])) for end in ends],
            "repeated": self.repeated,
            "scripts": self.scripts,
        }


def spread(ordered: Sequence[int]) -> dict[str, int]:
    last = len(ordered) - 1
    places = {"min": 0, "median": last // 2, "p95": round(last * 0.95), "max": last}
    return {name: ordered[place] for name, place in places.items()} if ordered else {}


def measure(source: Source, options: Options, tokenizer_json: Path | None, progress: Progress | None = None) -> Stats:
    """Read every row once; of `options.limit` rows the lengths are counted, as `row_lengths` does."""
    rows, turns, answers, letters, texts = count(), list[int](), Counter[int](), Counter[str](), set[int]()

    def usable() -> Samples:
        for row, sample in samples(source, replace(options, limit=None), progress):
            next(rows)
            if isinstance(sample, Sample):
                turns.append(len(sample.prompt) + bool(sample.answers))
                answers.update(hash(answer.text) for answer in sample.answers if answer.text)
                texts.add(hash(sample.text))
                yield row, sample

    def lettered(drawn: Samples) -> Samples:
        for each in drawn:
            letters.update(each[1].text)
            yield each

    lengths = sorted(row_lengths(lettered(_drawn(usable(), options.limit)), options, tokenizer_json))
    scripts = Counter[str]()
    for letter in filter(str.isalpha, letters):  # Unicode's name of a letter begins with its script
        scripts[unicodedata.name(letter, "OTHER").split()[0].lower()] += letters[letter]
    shares = {name: many / scripts.total() for name, many in scripts.most_common(5)}
    repeated, copies = 1 - len(answers) / max(1, answers.total()), 1 - len(texts) / max(1, len(turns))
    told = {"repeated": repeated, "copies": copies}
    return Stats(rows=next(rows), turns=sorted(turns), lengths=lengths, scripts=shares, **told)


def _drawn(found: Samples, most: int | None) -> Samples:
    """All samples, or as many as are asked for, each with the same chance and the same ones each time."""
    kept, chance = list(islice(found, most or 0)), random.Random(42)  # noqa: S311 - no secret
    for number, each in enumerate(found, len(kept) + 1):
        if most is None:
            yield each
        elif (place := chance.randrange(number)) < most:  # Vitter's algorithm R
            kept[place] = each
    yield from kept


def figures(found: Mapping[str, Stats], settings: Settings, counted: bool) -> dict[str, Any]:
    """All that is told of data sets that are trained together; `counted`: their lengths are in tokens."""
    rows, length = mixed(found, settings), settings["cutoff_len"]
    most = length if counted else None
    kept = {name: [min(tokens, most or tokens) for tokens in each.lengths] or [0] for name, each in found.items()}
    tokens = {name: rows[name] * fmean(each) for name, each in kept.items()}
    return {
        "cutoff_len": length,
        "unit": "tokens" if counted else "characters",
        "data": {name: each.as_json(length) for name, each in found.items()},
        "mix_strategy": settings["mix_strategy"],
        "mixed": {name: {"rows": rows[name], "share": tokens[name] / (sum(tokens.values()) or 1)} for name in found},
        "advice": [said for name, each in found.items() for said in advice(name, each, most)],
    }


def mixed(found: Mapping[str, Stats], settings: Settings) -> dict[str, int]:
    """How many rows of each data set an epoch has; where they are interleaved, `datasets` draws them as in training."""
    most, strategy = settings["max_samples"], settings["mix_strategy"]
    rows = {name: min(each.rows, most or each.rows) for name, each in found.items()}
    if len(rows) == 1 or strategy == "concat" or 0 in rows.values():
        return rows
    from datasets import Dataset, interleave_datasets

    sets = [Dataset.from_dict({"from": [name] * number}) for name, number in rows.items()]
    shares = [float(share) for share in settings.names("interleave_probs")] or None
    stopping = "first_exhausted" if strategy == "interleave_under" else "all_exhausted"
    drawn = Counter(interleave_datasets(sets, shares, settings["seed"], stopping_strategy=stopping)["from"])
    return {name: drawn[name] for name in rows}


def advice(name: str, stats: Stats, cutoff_len: int | None) -> Iterator[str]:
    """What to change in the recipe, where lengths are in tokens, and in the rows."""
    best = cutoff_len if stats.lengths else None
    if best and cutoff_len:
        while best >= 64 and stats.within(best // 2) >= FITTING:
            best //= 2
        while stats.within(best) < FITTING:
            best *= 2
        share = f"{int(stats.within(best) * 100)}% of the rows of '{name}' fit in cutoff_len={best}"
        if best < cutoff_len:
            part = "half" if best * 2 == cutoff_len else f"1/{cutoff_len // best}"
            others = "; others are cut" if stats.within(best) < 1 else ""
            yield f"{share}: {part} of a full row's tokens, and so of a step's activations and logits{others}"
        elif best > cutoff_len:
            yield f"{share}, {stats.within(cutoff_len):.0%} in cutoff_len={cutoff_len}: the others are cut"
    if stats.copies > REPEATED:
        yield f"{stats.copies:.0%} of the rows of '{name}' equal an earlier row: iis-finetune data clean {name}"

"""Whether one model is better than the other on the same rows: paired bootstrap intervals; pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .metrics import Declared, Scores, labels_of

Verdict = Literal["better", "worse", "cannot tell"]
RESAMPLES = 2000
LABEL_RESAMPLES = 400  # scikit-learn's F1 takes a millisecond each
SEED = 20260101
FEWEST_ROWS = 10  # below, resampling says little about rows that were not seen
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """One metric of two models: means, mean difference over the rows both have, its 95 % interval, the verdict."""

    name: str
    higher_is_better: bool
    rows: int
    base: float | None
    tuned: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: Verdict | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(base: Scores | None, tuned: Scores, lower_is_better: Sequence[str] = ()) -> list[Comparison]:
    """Each metric of the tuned model against the base's; without a base only the tuned means."""
    return [
        _one(name, base[name] if base and name in base else None, column, not _is_error(name, lower_is_better))
        for name, column in tuned.items()
    ]


def _is_error(name: str, lower_is_better: Sequence[str]) -> bool:
    return name.startswith("error.") or name in lower_is_better


def _one(
    name: str, base: Sequence[float | None] | None, tuned: Sequence[float | None], higher_is_better: bool
) -> Comparison:
    if base is None:
        known = [value for value in tuned if value is not None]
        return Comparison(name, higher_is_better, len(known), None, _mean(known))
    pairs = [(one, other) for one, other in zip(base, tuned, strict=True) if one is not None and other is not None]
    differences = [other - one for one, other in pairs]
    low, high = interval(differences)
    return Comparison(
        name,
        higher_is_better,
        len(pairs),
        _mean([value for value in base if value is not None]),
        _mean([value for value in tuned if value is not None]),
        _mean(differences),
        low,
        high,
        verdict(low, high, len(pairs), higher_is_better),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def interval(differences: Sequence[float]) -> tuple[float | None, float | None]:
    """The 2.5 and 97.5 percentiles of the mean of resampled rows; the same rows give the same interval."""
    if not differences:
        return None, None
    import numpy as np

    values, random = np.asarray(differences, dtype=float), np.random.default_rng(SEED)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    return _percentiles(means)


def _percentiles(values: Sequence[Any]) -> tuple[float, float]:
    import numpy as np

    edge = (1 - CONFIDENCE) / 2 * 100
    low, high = np.percentile(values, [edge, 100 - edge])
    return float(low), float(high)


def verdict(low: float | None, high: float | None, rows: int, higher_is_better: bool) -> Verdict:
    """`better` or `worse` only when the whole interval is on one side of 0 and there are rows enough."""
    if low is None or high is None or rows < FEWEST_ROWS or low <= 0 <= high:
        return "cannot tell"
    return "better" if (low > 0) == higher_is_better else "worse"


def macro_f1(
    base: Sequence[str] | None, tuned: Sequence[str], references: Sequence[str], declared: Declared
) -> Comparison:
    """Macro-F1 over the declared labels (else those expected), with an interval from resampled rows."""
    expected = labels_of(references, declared)
    names = list(declared.labels) or sorted(set(expected))
    first = labels_of(base, declared) if base is not None else None
    second = labels_of(tuned, declared)
    ours = _f1(expected, second, names)
    if first is None:
        return Comparison("macro_f1", True, len(expected), None, ours)
    theirs = _f1(expected, first, names)
    low, high = _resampled(len(expected), _difference(expected, (first, second), names))
    decided = verdict(low, high, len(expected), True)
    return Comparison("macro_f1", True, len(expected), theirs, ours, ours - theirs, low, high, decided)


def _f1(expected: Sequence[str], found: Sequence[str], names: Sequence[str]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(expected, found, labels=names, average="macro", zero_division=0))


def _difference(
    expected: Sequence[str], sides: tuple[Sequence[str], Sequence[str]], names: Sequence[str]
) -> Callable[[Sequence[int]], float]:
    def of(rows: Sequence[int]) -> float:
        wanted = [expected[row] for row in rows]
        theirs, ours = ([side[row] for row in rows] for side in sides)
        return _f1(wanted, ours, names) - _f1(wanted, theirs, names)

    return of


def _resampled(count: int, statistic: Callable[[Sequence[int]], float]) -> tuple[float | None, float | None]:
    import numpy as np

    if not count:
        return None, None
    random = np.random.default_rng(SEED)
    return _percentiles([statistic(random.integers(0, count, count).tolist()) for _ in range(LABEL_RESAMPLES)])


def weighted(losses: Sequence[float | None], rows: Sequence[int | None]) -> float | None:
    """The mean loss of slices by their rows."""
    known = [(loss, count or 1) for loss, count in zip(losses, rows, strict=True) if loss is not None]
    total = sum(count for _, count in known)
    return sum(loss * count for loss, count in known) / total if known else None


__all__ = ["Comparison", "compare", "interval", "macro_f1", "verdict", "weighted"]

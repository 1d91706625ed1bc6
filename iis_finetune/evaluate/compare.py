"""Whether one model is better than the other on the same rows: paired bootstrap intervals; pure."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from .metrics import Declared, Scores, labels_of

Verdict = Literal["better", "worse", "cannot tell"]
RESAMPLES = 2000
LABEL_RESAMPLES = 400  # scikit-learn's F1 takes a millisecond each
SEED = 20260101
FEWEST_ROWS = 10  # below, resampling says little about rows that were not seen
CONFIDENCE = 0.95
MARGIN = 0.02  # of the base's loss


class Comparison(Struct, frozen=True):
    """One metric of two models: means, what changed over the rows both have, its 95 % interval, the verdict.

    A perplexity's change is a ratio, tuned by base: both sides of it are uncertain, and both are in its interval.
    """

    name: str
    higher_is_better: bool
    rows: int
    base: float | None
    tuned: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: Verdict | None = None
    change: Literal["difference", "ratio"] = "difference"


def compare(base: Scores | None, tuned: Scores, lower_is_better: Sequence[str] = ()) -> list[Comparison]:
    """Each metric of the tuned model against the base's; without a base only the tuned means."""
    return [
        _one(name, (base or {}).get(name), column, not (name.startswith("error.") or name in lower_is_better))
        for name, column in tuned.items()
    ]


def _one(
    name: str, base: Sequence[float | None] | None, tuned: Sequence[float | None], higher_is_better: bool
) -> Comparison:
    means = _mean(base or ()), _mean(tuned)
    if base is None:
        return Comparison(name, higher_is_better, sum(value is not None for value in tuned), *means)
    pairs = zip(base, tuned, strict=True)
    differences = [other - one for one, other in pairs if one is not None and other is not None]
    low, high = interval(differences)
    decided = verdict(low, high, len(differences), higher_is_better)
    return Comparison(name, higher_is_better, len(differences), *means, _mean(differences), low, high, decided)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def interval(differences: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of the mean of differences."""
    import numpy as np

    values = np.asarray(differences, dtype=float)
    return _bootstrap(len(values), lambda rows: values[rows].mean(), RESAMPLES)


def _bootstrap(count: int, statistic: Callable[[Any], float], resamples: int) -> tuple[float | None, float | None]:
    """The 2.5 and 97.5 percentiles of a statistic of resampled rows; the same rows give the same interval."""
    import numpy as np

    if not count:
        return None, None
    random, edge = np.random.default_rng(SEED), (1 - CONFIDENCE) / 2 * 100
    values = [statistic(random.integers(0, count, count)) for _ in range(resamples)]
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
    import numpy as np
    from sklearn.metrics import f1_score

    known = labels_of(references, declared)
    names, count = list(declared.labels) or sorted(set(known)), len(known)
    expected, ours = np.array(known), np.array(labels_of(tuned, declared))

    def f1(found: Any, rows: Any) -> float:
        return float(f1_score(expected[rows], found[rows], labels=names, average="macro", zero_division=0))

    every = slice(None)
    if base is None:
        return Comparison("macro_f1", True, count, None, f1(ours, every))
    theirs = np.array(labels_of(base, declared))
    low, high = _bootstrap(count, lambda rows: f1(ours, rows) - f1(theirs, rows), LABEL_RESAMPLES)
    first, second = f1(theirs, every), f1(ours, every)
    decided = verdict(low, high, count, True)
    return Comparison("macro_f1", True, count, first, second, second - first, low, high, decided)


def compare_losses(
    base: Sequence[float | None] | None, tuned: Sequence[float | None], rows: Sequence[int | None]
) -> list[Comparison]:
    """Loss and perplexity over slices of the rows; each slice weighs as much as it has rows, in the interval too."""
    import numpy as np

    first, second = (weighted(values, rows) if values else None for values in (base, tuned))
    pairs = zip(base, tuned, strict=True) if base else ()
    paired = [None if one is None or other is None else other - one for one, other in pairs]
    known = [(change, count or 1) for change, count in zip(paired, rows, strict=False) if change is not None]
    changes, weights = np.array(known, dtype=float).reshape(-1, 2).T
    low, high = _bootstrap(len(known), lambda at: np.average(changes[at], weights=weights[at]), RESAMPLES)
    count = len(known) if base else sum(value is not None for value in tuned)
    decided = verdict(low, high, count, False) if base else None
    change = weighted(paired, rows) if base else None
    loss = Comparison("loss", False, count, first, second, change, low, high, decided)
    logarithms = {name: getattr(loss, name) for name in ("base", "tuned", "difference", "low", "high")}
    powers: dict[str, Any] = {
        name: math.exp(min(value, 700.0)) for name, value in logarithms.items() if value is not None
    }
    return [loss, replace(loss, name="perplexity", change="ratio", **powers)]


def forgotten(
    base: Sequence[float | None], tuned: Sequence[float | None], rows: Sequence[int | None], margin: float = MARGIN
) -> dict[str, Any]:
    """Whether the loss grew by more than a share of the base's, over slices as above: with its interval, in words."""
    import numpy as np

    triples = zip(base, tuned, rows, strict=True)
    known = [(one, other, count or 1) for one, other, count in triples if one is not None and other is not None]
    first, second, weights = np.array(known, dtype=float).reshape(-1, 3).T

    def change(at: Any) -> float:
        return float(np.average(second[at], weights=weights[at]) / np.average(first[at], weights=weights[at]) - 1)

    low, high = _bootstrap(len(known), change, RESAMPLES)
    decided, told = "cannot tell", "too few rows"
    if low is not None and high is not None and len(known) >= FEWEST_ROWS:
        decided = "worse" if low > margin else "not worse" if high <= margin else decided
        told = f"the loss changes by {low:+.1%} to {high:+.1%} of the base's (95 %), {margin:.0%} is allowed"
    told = f"did it forget? {decided}: {told}"
    return {"margin": margin, "low": low, "high": high, "verdict": decided, "told": told}


def weighted(losses: Sequence[float | None], rows: Sequence[int | None]) -> float | None:
    """The mean loss of slices by their rows."""
    known = [(loss, count or 1) for loss, count in zip(losses, rows, strict=True) if loss is not None]
    total = sum(count for _, count in known)
    return sum(loss * count for loss, count in known) / total if known else None

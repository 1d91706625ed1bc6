"""An evaluation told on the terminal: base against tuned side by side, what was cut, and two examples."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import set_cell_size

from ..evaluate import Declared, kind_of, name_of, parse
from ..runs import Run, read_json, read_lines
from . import show

HIDDEN_FOR_JSON = ("exact_match", "rouge-1", "rouge-2", "rouge-l", "bleu-4")
LONGEST_CELLS = 200


def tell_evaluation(run: Run, data: Sequence[str] = ()) -> None:
    """A run's evaluation on each of the data sets, else its last one, and what comes after it."""
    every = sorted(run.evaluation.glob("*/scores*.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in [run.evaluation / name / "scores.json" for name in data] or every[-1:] or [run.evaluation]:
        scores = read_json(path) or {}
        if not scores:
            show.line(f"{run.name} has not been evaluated")
        elif scores.get("problem"):
            show.line(f"not evaluated on {scores['data']}: {scores['problem']}")
        else:
            _tell(run, scores)
    show.line(f"next: iis-finetune export {run.number:04d}")


def tell_found(run: Run, found: Mapping[str, Any]) -> None:
    """What was just found: a comparison, or which checkpoint is the best, or what people prefer."""
    if "told" not in found:
        tell_evaluation(run)
        return
    checkpoint = f" --checkpoint {found['keep']}" if "keep" in found else ""
    show.line(f"{'checkpoints' if checkpoint else 'votes'} of {run.name} on {found['data']}")
    if checkpoint:
        intervals = [
            (_between(at["alone"], ".3f"), _between(at["against_best"], "+.3f")) for at in found["checkpoints"]
        ]
        means = [(f"  step {at['step']}", f"{at['alone']['tuned']:.3f}", at["verdict"]) for at in found["checkpoints"]]
        rows = [(*mean, *each, verdict) for (*mean, verdict), each in zip(means, intervals, strict=True)]
        show.table(("", "loss", "95 %", "against the best, 95 %", ""), rows, numbers=(1, 2, 3))
    show.line(found["told"])
    if found.get("overfits"):
        show.line(f"warning: {found['overfits']}")
    show.line(f"next: iis-finetune export {run.number:04d}{checkpoint}")


def _tell(run: Run, scores: Mapping[str, Any]) -> None:
    show.line(f"evaluation on {scores['data']}" + (f", {scores['rows']} rows" if "rows" in scores else ""))
    hidden = HIDDEN_FOR_JSON if scores.get("kind") == "json" else ()
    columns = ("", scores["base"] or "-", scores["tuned"], "difference, 95 %", "")
    show.table(columns, [_row(each) for each in scores["metrics"] if each["name"] not in hidden], numbers=(1, 2, 3))
    if scores.get("guard"):
        show.line(scores["guard"]["told"])
    for sentence in scores.get("cut", ()):
        show.line(f"note: {sentence}")
    if without := [_row(each) for each in scores.get("without_leaks", ()) if each["name"] not in hidden]:
        show.table(("without them", *columns[1:]), without, numbers=(1, 2, 3))
    names = [name for name in (scores["base"], scores["tuned"]) if name]
    sides = {name: list(read_lines(run.evaluation / scores["data"] / f"{name}.jsonl")) for name in names}
    expected = [row["label"] for row in sides[scores["tuned"]]]
    for row in example_rows(expected):
        show.line(f"\nrow {row + 1}")
        answers = [(name, sides[name][row]["predict"]) for name in names if row < len(sides[name])]
        for name, text in [*answers, ("expected", expected[row])]:
            show.line(f"  {name:{max(map(len, [*names, 'expected']))}}  {shortened(text)}")


def _row(metric: Mapping[str, Any]) -> tuple[str, ...]:
    """What it is, both means, the difference's 95 % interval, the verdict."""
    means = ("-" if each is None else _number(each) for each in (metric["base"], metric["tuned"]))
    ratio = metric["low"] is not None and metric.get("change") == "ratio"
    between = _between(metric, ".3g" if ratio else "+.2f") + " times" * ratio
    return (f"  {name_of(metric['name'])}", *means, between, metric["verdict"] or "")


def _between(found: Mapping[str, Any], form: str) -> str:
    return "-" if found["low"] is None else f"{found['low']:{form}} to {found['high']:{form}}"


def _number(value: float) -> str:
    """Two digits of a share, four of anything larger."""
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.4g}"


def example_rows(references: Sequence[str], count: int = 2) -> list[int]:
    """Rows that differ in kind where there are kinds: the first of each set of keys, else the first ones."""
    if kind_of(references, Declared()) != "json":
        return list(range(min(count, len(references))))
    first: dict[tuple[str, ...], int] = {}
    for row, text in enumerate(references):
        first.setdefault(tuple(sorted(parse(text) or {})), row)
    kinds = list(first.values())[:count]
    return sorted([*kinds, *(row for row in range(len(references)) if row not in kinds)][:count])


def shortened(text: str, cells: int = LONGEST_CELLS) -> str:
    """One line of at most so many columns; Chinese characters take two."""
    line = text.strip().replace("\r", "").replace("\n", "\\n")
    if not line:
        return "(empty)"
    return line if show.cell_width(line) <= cells else set_cell_size(line, cells - 4).rstrip() + " ..."

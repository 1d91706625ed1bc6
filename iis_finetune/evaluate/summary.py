"""An evaluation as lines to read: base against tuned side by side, and two examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runs import Run, read_json, read_lines
from .metrics import Declared, kind_of, parse

NAMES = {
    "exact_match": "answer exactly as expected",
    "valid_json": "valid JSON",
    "keys_present": "all expected keys there",
    "decision": "right decision (same keys as expected)",
    "label": "right label",
    "macro_f1": "macro-F1",
    "rouge-1": "ROUGE-1",
    "rouge-2": "ROUGE-2",
    "rouge-l": "ROUGE-L",
    "bleu-4": "BLEU-4",
    "loss": "loss",
    "perplexity": "perplexity",
}
HIDDEN_FOR_JSON = ("exact_match", "rouge-1", "rouge-2", "rouge-l", "bleu-4")
LONGEST_CELLS = 200


def summary_lines(run: Run) -> list[str]:
    """The last evaluation of a run as lines: a table of metrics, what was cut, two rows with all answers."""
    newest = max(run.evaluation.glob("*/scores*.json"), key=lambda path: path.stat().st_mtime_ns, default=None)
    scores = (read_json(newest) if newest else None) or {}
    if not scores:
        return [f"{run.name} has not been evaluated"]
    if scores.get("problem"):
        return [f"not evaluated on {scores['data']}: {scores['problem']}"]
    rows = f", {scores['rows']} rows" if "rows" in scores else ""
    title = f"evaluation on {scores['data']}{rows}"
    hidden = HIDDEN_FOR_JSON if scores.get("kind") == "json" else ()
    metrics = [each for each in scores["metrics"] if each["name"] not in hidden]
    lines = [title, *_table(metrics, scores["base"], scores["tuned"])]
    lines += [f"note: {sentence}" for sentence in scores.get("cut", ())]
    return [*lines, *_examples(run.evaluation / scores["data"], scores)]


def name_of(metric: str) -> str:
    """How a metric is called: `field.title` is `title right`, `error.rating` its mean absolute error."""
    group, _, field = metric.partition(".")
    if group == "field" and field:
        return f"{field} right"
    return f"{field}, mean absolute error" if group == "error" and field else NAMES.get(metric, metric)


def _table(metrics: Sequence[Mapping[str, Any]], base: str | None, tuned: str) -> list[str]:
    """Aligned columns: metric, both means, the difference's 95 % interval, the verdict."""
    header = ["", base or "-", tuned, "difference, 95 %", ""]
    body = [
        [name_of(each["name"]), _number(each["base"]), _number(each["tuned"]), _interval(each), each["verdict"] or ""]
        for each in metrics
    ]
    widths = [max(map(_width, column)) for column in zip(header, *body, strict=True)]
    return ["  " + _row(cells, widths) for cells in [header, *body]]


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (" " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True))
    numbers = [space + cell for space, cell in zip(rest, cells[1:], strict=True)]
    return "  ".join([cells[0] + first, *numbers[:-1], cells[-1]]).rstrip()


def _number(value: float | None) -> str:
    """Two digits of a share, four of anything larger."""
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.4g}"


def _interval(metric: Mapping[str, Any]) -> str:
    if metric["low"] is None:
        return "-"
    if metric.get("change") == "ratio":
        return f"{metric['low']:.3g} to {metric['high']:.3g} times"
    return f"{metric['low']:+.2f} to {metric['high']:+.2f}"


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _examples(folder: Path, scores: Mapping[str, Any]) -> list[str]:
    names = [name for name in (scores["base"], scores["tuned"]) if name]
    sides = {name: list(read_lines(folder / f"{name}.jsonl")) for name in names}
    expected = [row["label"] for row in sides[scores["tuned"]]]
    lines: list[str] = []
    width = max(len(name) for name in [*names, "expected"])
    for row in example_rows(expected):
        lines += ["", f"row {row + 1}"]
        answers = [(name, sides[name][row]["predict"]) for name in names if row < len(sides[name])]
        lines += [f"  {name:{width}}  {shortened(text)}" for name, text in [*answers, ("expected", expected[row])]]
    return lines


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
    from rich.cells import set_cell_size

    line = text.strip().replace("\r", "").replace("\n", "\\n")
    if not line:
        return "(empty)"
    return line if _width(line) <= cells else set_cell_size(line, cells - 4).rstrip() + " ..."

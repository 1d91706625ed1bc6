"""What answers are worth, row by row; pure. None stands where a row has no such value."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

Kind = Literal["json", "labels", "text"]
Scores = dict[str, list[float | None]]
JSON_SHARE = 0.9  # of the expected answers that are JSON objects, from which on answers are judged as JSON
OTHER = "(other)"
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


class Declared(Struct, frozen=True):
    """The label set that answers are held to: of the whole answer, or of one field of a JSON answer."""

    labels: tuple[str, ...] = ()
    field: str | None = None


def kind_of(references: Sequence[str], declared: Declared) -> Kind:
    objects = sum(parse(text) is not None for text in references)
    if references and objects >= JSON_SHARE * len(references):
        return "json"
    return "labels" if declared.labels else "text"


def parse(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, whole and strictly; None for anything else."""

    def refuse(word: str) -> None:
        raise ValueError(word)  # NaN and Infinity are not JSON

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of an object's fields, inner objects taken apart."""
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def score(predictions: Sequence[str], references: Sequence[str], declared: Declared) -> Scores:
    """Every metric's value of every row; all columns are as long as the rows."""
    pairs = zip(predictions, references, strict=True)
    columns: Scores = {"exact_match": [float(found.strip() == wanted.strip()) for found, wanted in pairs]}
    columns |= _similarities(predictions, references)
    if kind_of(references, declared) == "json":
        columns |= _json_scores([parse(text) for text in predictions], [parse(text) or {} for text in references])
    if declared.labels or declared.field:
        found, expected = labels_of(predictions, declared), labels_of(references, declared)
        columns["label"] = [float(one == other) for one, other in zip(found, expected, strict=True)]
    return columns


def _similarities(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """ROUGE and BLEU-4 of 0 to 100, the way LLaMA-Factory computes them (train/sft/metric.py)."""
    import logging

    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    jieba.setLogLevel(logging.WARNING)
    columns: Scores = {"rouge-1": [], "rouge-2": [], "rouge-l": [], "bleu-4": []}
    for predicted, expected in zip(predictions, references, strict=True):
        words = [" ".join(jieba.cut(text)) for text in (predicted, expected)]
        both = all(text.split() for text in words)
        rouge = Rouge().get_scores(*words)[0] if both else {}
        for name in ("rouge-1", "rouge-2", "rouge-l"):
            columns[name].append(round(rouge[name]["f"] * 100, 4) if both else 0.0)
        smoothed = sentence_bleu([list(expected)], list(predicted), smoothing_function=SmoothingFunction().method3)
        columns["bleu-4"].append(round(float(smoothed) * 100, 4))
    return columns


def _json_scores(predicted: Sequence[dict[str, Any] | None], expected: Sequence[dict[str, Any]]) -> Scores:
    pairs = list(zip(predicted, expected, strict=True))
    columns: Scores = {
        "valid_json": [float(found is not None) for found, _ in pairs],
        "keys_present": [float(found is not None and found.keys() >= wanted.keys()) for found, wanted in pairs],
        "decision": [float(found is not None and found.keys() == wanted.keys()) for found, wanted in pairs],
    }
    fields = [(dict(flat(found or {})), dict(flat(wanted))) for found, wanted in pairs]
    names = list(dict.fromkeys(name for _, wanted in fields for name in wanted))
    for name in names:
        columns[f"field.{name}"] = [
            float(_same(found.get(name), wanted[name])) if name in wanted else None for found, wanted in fields
        ]
        if all(is_number(wanted[name]) for _, wanted in fields if name in wanted):
            columns[f"error.{name}"] = [_error(found.get(name), wanted.get(name)) for found, wanted in fields]
    return columns


def _same(found: Any, wanted: Any) -> bool:
    return bool(found == wanted) and isinstance(found, bool) == isinstance(wanted, bool)


def _error(found: Any, wanted: Any) -> float | None:
    return abs(found - wanted) if is_number(found) and is_number(wanted) else None


def row_values(columns: Scores, kind: Kind) -> list[float]:
    """One value of 0 to 1 a row, to tell which of two answers is the better one."""
    names = {"json": ["valid_json", "decision"], "labels": ["label"], "text": ["exact_match"]}[kind]
    chosen = [columns[name] for name in [*names, *(name for name in columns if name.startswith("field."))]]
    if kind == "text":
        chosen.append([value and value / 100 for value in columns["rouge-l"]])
    rows = [[value for value in row if value is not None] for row in zip(*chosen, strict=True)]
    return [sum(row) / len(row) for row in rows]


def labels_of(texts: Sequence[str], declared: Declared) -> list[str]:
    """The label that each answer is or holds; `(other)` when it is none of the declared ones."""
    found = [_label(text, declared.field) for text in texts]
    return [label if not declared.labels or label in declared.labels else OTHER for label in found]


def _label(text: str, field: str | None) -> str:
    if field is None:
        return text.strip()
    value = dict(flat(parse(text) or {})).get(field, OTHER)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def confusion(predictions: Sequence[str], references: Sequence[str], declared: Declared) -> dict[str, Any]:
    """Rows of the matrix are the expected labels, columns the predicted ones."""
    from sklearn.metrics import confusion_matrix

    expected, found = labels_of(references, declared), labels_of(predictions, declared)
    names = [*(declared.labels or sorted(set(expected) - {OTHER})), OTHER]
    found = [label if label in names else OTHER for label in found]
    return {"labels": names, "counts": confusion_matrix(expected, found, labels=names).tolist()}


def name_of(metric: str) -> str:
    """How a metric is called: `field.title` is `title right`, `error.rating` its mean absolute error."""
    group, _, field = metric.partition(".")
    if group == "field" and field:
        return f"{field} right"
    return f"{field}, mean absolute error" if group == "error" and field else NAMES.get(metric, metric)

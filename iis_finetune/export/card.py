"""The model card: what the exported folder is, where it comes from, what was measured, what it is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..plan.after import Trained
from ..runs import Run, read_json


def card(trained: Trained, run: Run | None, dtype: str, found: Mapping[str, Any]) -> str:
    """README.md of the exported folder; its head is what model hubs read."""
    base = str((read_json(run.provenance) or {}).get("model") if run else None or trained.weights.model)
    base = base if base and base != "None" else trained.weights.model
    head = ["---", f"base_model: {Path(base).name}", "library_name: transformers", "tags: [llama-factory]", "---"]
    lines = [*head, "", f"# {trained.name}", "", f"A fine-tuned model, made from `{base}`, saved in {dtype}.", ""]
    lines += ["## Training", "", *_training(trained), *(_data(run) if run else []), ""]
    if run:
        lines += [*_metrics(run), "## Recipe", "", "```yaml", _text(run.recipe).rstrip(), "```", ""]
    lines += ["## How it was checked", "", *_parity(found), ""]
    lines += ["## How to load it", "", *_loading(), ""]
    lines += ["## Limits", "", *_limits(), ""]
    return "\n".join(lines)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _training(trained: Trained) -> list[str]:
    values = trained.arguments
    method = values.get("finetuning_type", "lora")
    rank = f", rank {values['lora_rank']}" if method == "lora" and "lora_rank" in values else ""
    rows = [
        ("method", f"{values.get('stage', 'sft')}, {method}{rank}"),
        ("data", values.get("dataset")),
        ("template", values.get("template")),
        ("longest row, tokens", values.get("cutoff_len")),
        ("precision of training", trained.precision),
    ]
    if values.get("quantization_bit"):
        rows.append(
            ("base in training", f"quantised to {values['quantization_bit']} bit; merged into the base as saved")
        )
    return [f"- {name}: {value}" for name, value in rows if value is not None]


def _data(run: Run) -> list[str]:
    hashes = (read_json(run.provenance) or {}).get("data_sha256") or {}
    return [f"- SHA-256 of {Path(name).name}: `{digest}`" for name, digest in hashes.items()]


def _metrics(run: Run) -> list[str]:
    paths = sorted(run.evaluation.glob("*/scores.json"))
    lines = ["## Metrics", ""]
    for path in paths:
        scores = read_json(path) or {}
        if not scores.get("metrics"):
            continue
        lines += [f"On `{scores['data']}`, {scores.get('rows', '?')} rows that base and tuned both answered:", ""]
        lines += ["| metric | base | tuned | difference, 95 % | |", "|---|---|---|---|---|"]
        lines += [_metric(each) for each in scores["metrics"]] + [""]
    return lines if len(lines) > 2 else [*lines, "Not evaluated.", ""]


def _metric(each: Mapping[str, Any]) -> str:
    interval = "" if each["low"] is None else f"{each['low']:+.3g} to {each['high']:+.3g}"
    cells = [
        each.get("title", each["name"]),
        *("" if each[key] is None else f"{each[key]:.4g}" for key in ("base", "tuned")),
    ]
    return f"| {' | '.join([*cells, interval, each['verdict'] or ''])} |"


def _parity(found: Mapping[str, Any]) -> list[str]:
    ties = f" ({found['near_ties']} more part at a near tie)" if found["near_ties"] else ""
    return [
        "Against base and adapter, before this folder got its name:",
        "",
        f"- largest difference of a logit: {found['logit_difference']:.3g} (allowed: {found['tolerance']:.3g})",
        f"- greedy answers that are equal: {found['equal_texts']} of {found['texts']}{ties}",
        f"- tensors compared one by one: {found['weights']['compared']}",
        "- prompts are cut into the same tokens, with the same chat template and the same end of an answer",
    ]


def _loading() -> list[str]:
    return [
        '- transformers: `AutoModelForCausalLM.from_pretrained(FOLDER, dtype="auto")`',
        "- vLLM: `vllm serve FOLDER`",
        "- Ollama: `ollama create NAME -f Modelfile` in this folder",
    ]


def _limits() -> list[str]:
    return [
        "It answers in the manner of its training data and can be wrong with confidence. The metrics hold for data",
        "like the held-out rows above and say nothing about other uses. The base model's licence and limits apply too.",
    ]

"""The model card: what the exported folder is, where it comes from, what was measured, what it is not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..arguments import trained_with
from ..launch import KIT
from ..plan.after import Trained
from ..runs import Provenance, Run, provenance_of, read_json

TEMPLATE = "card.md.j2"
ALWAYS = ("stage", "finetuning_type")  # what else a YAML file does not state may have been otherwise in the training
TOLD = (*ALWAYS, "lora_rank", "dataset", "template", "cutoff_len", "quantization_bit")


def card(trained: Trained, run: Run | None, dtype: str, found: Mapping[str, Any]) -> str:
    """README.md of the exported folder; its head is what model hubs read."""
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(KIT / "tables")
    environment = Environment(loader=loader, trim_blocks=True, keep_trailing_newline=True)  # noqa: S701 - not HTML
    settings, provenance = trained_with(trained.arguments), provenance_of(run) if run else Provenance()
    return environment.get_template(TEMPLATE).render(
        trained=trained,
        settings={name: settings[name] for name in TOLD if run or name in ALWAYS or settings.states(name)},
        base=provenance.model or trained.weights.model,
        data={Path(name).name: digest for name, digest in provenance.data_sha256.items()},
        recipe=run.recipe.read_text(encoding="utf-8").rstrip() if run and run.recipe.is_file() else "",
        evaluations=_evaluations(run) if run else None,
        dtype=dtype,
        found=found,
    )


def _evaluations(run: Run) -> list[dict[str, Any]]:
    scores = [read_json(path) or {} for path in sorted(run.evaluation.glob("*/scores.json"))]
    return [each for each in scores if each.get("metrics")]

"""Known faults of cards, packages and LLaMA-Factory itself: rows of the machine table, and a few rules beside."""

import json
from fnmatch import fnmatchcase
from pathlib import Path

from ..arguments import find_template
from ..machine import Row, applies, load, package_version, quantization_problems
from .case import Case
from .packages import optimizer_package
from .rule import OWN, Rule, warning

GATED_DELTA = ("qwen3_5*", "qwen3_next*")  # model types whose layers flash-linear-attention computes
PADDED = ("qwen2*", "qwen3*")  # model types whose embedding has more rows than the tokenizer has tokens


def meets(row: Row, case: Case) -> bool:
    """Whether a case meets every condition of a row of `[[fault]]`."""
    wanted = row.get("settings", {})
    return (
        case.trains
        and row.get("unless_env") not in case.recipe.kit.env
        and applies(row, case.machine, case.processes)
        and case.precision in row.get("precision", [case.precision])
        and case.micro_batch * case["cutoff_len"] >= row.get("tokens_from", 0)
        and ("package" not in row or _version(row, case) in row["versions"])
        and all(any(fnmatchcase(_value(case, name), each) for each in wanted[name]) for name in wanted)
    )


def _value(case: Case, name: str) -> str:
    if name == "attention":
        return str(case["flash_attn"] if case.states("flash_attn") else case.recipe.kit.attention)
    return str(case[name]).lower()


def _version(row: Row, case: Case) -> str | None:
    """The installed version; for a named machine the one that the kit's constraints install."""
    return package_version(row["package"]) if case.machine.here else str(row["pinned"])


def rule_of(row: Row) -> Rule:
    what, fix = (row[part].replace("{device}", "{c.machine.device}") for part in ("what", "fix"))
    what += "" if row["confirmed"] else " (unconfirmed)"
    kind, date = row.get("kind", "machine"), row["date"].isoformat()
    return Rule(OWN, row["keys"], lambda c: meets(row, c), what, fix, row["source"], row["severity"], kind, date=date)


def packs(case: Case) -> bool:
    return case.trains and case["stage"] == "sft" and case.some("packing", "neat_packing")


def packs_a_blank_picture(case: Case) -> bool:
    """Gemma 3 and 4 get a blank picture behind each row without one, which a packed row's positions do not count."""
    template = find_template(case["template"]) if packs(case) and case["template"] else None
    return template is not None and template.multimodal and template.name.startswith(("gemma3", "gemma4"))


def fills_wrong_rows(case: Case) -> bool:
    """Whether the embedding has more rows than the tokenizer has tokens; the tokens are counted where they are here."""
    shapes, added = case.model.shapes, case.some("add_tokens", "add_special_tokens", "new_special_tokens_config")
    if not (case.trains and added and shapes):
        return False
    tokens = tokens_in(case.model.folder) if case.model.folder else None
    if tokens is None:
        return any(fnmatchcase(shapes.model_type, each) for each in PADDED)
    return shapes.vocabulary_size > tokens


def tokens_in(folder: Path) -> int | None:
    """How many tokens the tokenizer of a model folder has; None when that cannot be read."""
    try:
        content = json.loads((folder / "tokenizer.json").read_bytes())
        numbers = [*content["model"]["vocab"].values(), *(each["id"] for each in content["added_tokens"])]
        return int(max(numbers)) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def slow_layers(case: Case) -> bool:
    kind = case.model.shapes.model_type if case.model.shapes else str(case.model.config.get("model_type", ""))
    here = case.machine.here and package_version("flash-linear-attention")
    return case.trains and bool(case.machine.devices) and not here and any(fnmatchcase(kind, o) for o in GATED_DELTA)


def without_build(case: Case, severity: str) -> bool:
    """Whether the optimizer is one of bitsandbytes, which has no ready-made build for this card."""
    if not case.trains or optimizer_package(case) != "bitsandbytes":
        return False
    said = [each.severity for each in quantization_problems(case.machine) if each.kind == "machine"]
    return severity in said


RULES = (
    *map(rule_of, load()["fault"]),
    Rule(OWN, "optim", lambda c: without_build(c, "error"),
         "optim {c[optim]} is bitsandbytes', which has no build for {c.machine.device}",
         "optim: adamw_torch", "tables/machine.toml, bitsandbytes", kind="machine"),
    Rule(OWN, "optim", lambda c: without_build(c, "warning"),
         "optim {c[optim]} is bitsandbytes', which has no ready-made build for {c.machine.device} and this ROCm",
         "optim: adamw_torch, or build bitsandbytes yourself", "tables/machine.toml, bitsandbytes", severity="warning",
         kind="machine"),
    Rule(OWN, "cutoff_len packing neat_packing", lambda c: packs(c) and c["cutoff_len"] % 8,
         "packed rows are filled up to a multiple of 8 and their positions are not: with cutoff_len {c[cutoff_len]} "
         "the first step fails",
         "a cutoff_len that 8 divides, such as 1024", "LlamaFactory#10736, pull request 10737; own runs on a CPU"),
    Rule(OWN, "packing neat_packing template", packs_a_blank_picture,
         "a packed row without a picture fails at the first step with template '{c[template]}': LLaMA-Factory adds a "
         "blank picture and no positions for it",
         "remove packing and neat_packing", "LlamaFactory#10736, pull request 10737"),
    warning(OWN, "packing", lambda c: packs(c) and not c["neat_packing"],
            "packed rows see each other, and a step holds several of them: there are fewer steps, and the loss cannot "
            "be compared with one without packing",
            "neat_packing: true keeps the rows apart", "LlamaFactory#8277; data/processor/supervised.py:213"),
    warning(OWN, "add_tokens add_special_tokens new_special_tokens_config", fills_wrong_rows,
            "the embedding of {c.model.name} has spare rows, and new tokens land in them: LLaMA-Factory gives "
            "them no start value, and fills other rows if it adds any",
            "expect them to need more steps, or use words that the tokenizer has",
            "LlamaFactory pull request 10547; model/model_utils/embedding.py:44"),
    warning(OWN, "model_name_or_path", slow_layers,
            "without the package flash-linear-attention a step of {c.model.name} takes about 1.7 times as long",
            "pip install flash-linear-attention", "LlamaFactory#10221; transformers#48718: 1.22, then 0.70 s"),
)  # fmt: skip

"""Do a recipe's adapter, lora_target and template belong to this model?"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..arguments import find_model, find_template
from ..errors import Place, Problem, did_you_mean
from ..runs import read_json
from ..tensors import Header, read_header
from .facts import ADAPTER_CONFIG, CONFIG, ModelFacts
from .folder_check import has_token

TIED = ("lm_head", "embed_tokens")
LORA_TENSOR = re.compile(r"\.([^.]+)\.lora_([AB])\.(?:[^.]+\.)?weight$")
VIEW = re.compile(r"(-[0-9a-f]{8})?@(fp32|fp16|bf16)$")


def check_targets(names: Sequence[str], facts: ModelFacts, place: Place) -> list[Problem]:
    """Names that match no layer of this model: PEFT ignores them silently when another one matches."""
    if names == ["all"] or not facts.linear_layers:
        return []
    if "all" in names:
        return [Problem("'all' cannot be combined with other names", "lora_target: all, alone", place)]
    known = {*facts.linear_layers, *TIED}
    return [*_unknown(names, known, facts, place), *_tied(names, facts, place)]


def check_additional_target(names: Sequence[str], facts: ModelFacts, place: Place) -> list[Problem]:
    """Names of whole modules to train that this model does not have: they would silently stay untrained."""
    return _unknown(names, set(facts.modules), facts, place) if facts.modules else []


def _unknown(names: Iterable[str], known: set[str], facts: ModelFacts, place: Place) -> list[Problem]:
    usual = f"use one of {', '.join(sorted(facts.linear_layers))}"
    return [
        Problem(
            f"{facts.name} has no layer '{name}', so this name would be ignored",
            did_you_mean(name.rsplit(".", 1)[-1], sorted(known), usual, 0.6),
            place,
        )
        for name in names
        if name.rsplit(".", 1)[-1] not in known
    ]


def _tied(names: Iterable[str], facts: ModelFacts, place: Place) -> list[Problem]:
    shared = [name for name in names if name.rsplit(".", 1)[-1] in TIED]
    if not shared or facts.shapes is None or not facts.shapes.tie_word_embeddings:
        return []
    what = f"{facts.name} ties its output layer to its embedding: an adapter on {' and '.join(shared)} merges wrongly"
    return [Problem(what, f"leave out {' and '.join(shared)}", place)]


def check_template(template: str, facts: ModelFacts, place: Place) -> list[Problem]:
    """A template other than LLaMA-Factory's own for this model; its tokens that the tokenizer on disk lacks."""
    row = find_template(template)
    if row is None:
        return []  # the check of values says that there is no such template
    problems = []
    folder_name = VIEW.sub("", Path(facts.name).name).replace("--", "/", 1)  # as far as it tells the hub's name
    model = find_model(facts.name) or find_model(folder_name)
    if model and model.template and model.template != template:
        what = f"LLaMA-Factory's template for {model.name} is '{model.template}', not '{template}'"
        problems.append(Problem(what, f"template: {model.template}", place, severity="warning"))
    lacking = [token for token in row.tokens if facts.folder and has_token(facts.folder, token) is False]
    if lacking:
        fix = f"template: {model.template}" if model and model.template else "use the template this model was made for"
        what = f"template '{template}' needs {', '.join(lacking)}, which the tokenizer of {facts.name} does not have"
        problems.append(Problem(what, fix, place))
    return problems


def check_adapter(folder: Path, base: ModelFacts, place: Place) -> list[Problem]:
    """Whether an adapter is whole and fits the base: the model it names, its layers, their shapes, its rank."""
    config = read_json(folder / ADAPTER_CONFIG)
    if config is None:
        whole = read_json(folder / CONFIG) is not None
        what = f"{folder} is a whole model, not an adapter" if whole else f"{folder} holds no {ADAPTER_CONFIG}"
        given = "give the folder that training wrote, such as runs/NAME/output, or one checkpoint of it"
        fix = f"model_name_or_path: {folder} in its place" if whole else given
        return [Problem(what, fix, place, kind="invalid" if whole else "missing", code=2)]
    problems = list(_other_base(folder, config, base, place))
    weights = folder / "adapter_model.safetensors"
    header = read_header(weights)
    if header is None:
        if (folder / "adapter_model.bin").is_file():
            return problems
        state = "is damaged" if weights.is_file() else "is missing"
        return [*problems, Problem(f"{weights} {state}", "use another checkpoint", place, kind="missing", code=2)]
    if weights.stat().st_size < header.file_bytes:
        problems.append(Problem(f"{weights} is cut off", "use another checkpoint", place, kind="missing", code=2))
    fix = "use the base model that the adapter was trained on"
    faults = _misfits(header, config, base)
    return [*problems, *(Problem(f"the adapter {folder} {fault}", fix, place) for fault in faults)]


def _other_base(folder: Path, config: dict[str, Any], base: ModelFacts, place: Place) -> Iterator[Problem]:
    named = str(config.get("base_model_name_or_path") or "")
    names = [VIEW.sub("", Path(each).name.replace("--", "/")).rsplit("/", 1)[-1].lower() for each in (named, base.name)]
    if named and names[0] != names[1]:
        what = f"the adapter {folder} was trained on {named}, the base here is {base.name}"
        yield Problem(what, f"model_name_or_path: {named}", place, severity="warning")


def _misfits(header: Header, config: dict[str, Any], base: ModelFacts) -> Iterator[str]:
    """One fault for each kind of layer, not one for each of its layers."""
    found: dict[str, str] = {}
    same_rank = not config.get("rank_pattern")
    for name, tensor in header.tensors.items():
        match = LORA_TENSOR.search(name)
        if not match or not base.linear_layers or match[1] in TIED:
            continue
        layer, half = match[1], match[2]
        rank, size = tensor.shape if half == "A" else tensor.shape[::-1]
        expected = base.linear_layers.get(layer)
        if expected is None:
            found.setdefault(layer, f"has weights for '{layer}', which {base.name} does not have")
        elif size != expected["AB".index(half)]:
            found.setdefault(layer, f"is {size} wide on '{layer}', {base.name} is {expected['AB'.index(half)]}")
        elif same_rank and isinstance(config.get("r"), int) and rank != config["r"]:
            found.setdefault(layer, f"has rank {rank} on '{layer}', its {ADAPTER_CONFIG} says {config['r']}")
    yield from found.values()

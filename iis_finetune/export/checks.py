"""What can be told before a merge, and what the comparison after it says; pure but for reading small files."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import models
from ..arguments import trained_with
from ..errors import COMMAND_LINE, Place, Problem
from ..plan.after import Trained
from ..runs import read_json

# Largest difference of a logit that FP32's own rounding explains, for logits up to 10; more for larger ones. Measured
# 2026-11 on models of 0.1 M to 2 M parameters: 2e-6. In half precision the comparison itself measures what is allowed.
TOLERANCE = 1e-4
DTYPES = ("float32", "float16", "bfloat16")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")
VALUE_HEAD = "value_head.safetensors"
TIED = {"lm_head", "embed_tokens"}
ANOTHER_MODEL = "the merged model is not the one that was trained: do not use it"
SAME_TEMPLATE = "export again with the template of the training"
OF_TOKENIZER = (  # what must hold, what it means when it does not, what to do
    (("prompts_equal",), "the tokenizer splits the prompts into other tokens than the base model's", "export again"),
    (
        ("template_equal", "modelfile_equal"),
        "the chat template or the Modelfile differs from the template of the training",
        SAME_TEMPLATE,
    ),
    (("stops_equal",), "answers end with another token than in the training", SAME_TEMPLATE),
)


def check_target(target: Path) -> list[Problem]:
    """A folder that is new or empty: LLaMA-Factory would write over a model or an adapter without asking."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        what = f"'{target}' exists and is not empty"
        return [Problem(what, "give --to a new folder", Place(COMMAND_LINE, key="--to"))]
    return []


def check_sources(trained: Trained, known_fingerprint: str | None = None) -> list[Problem]:
    """Whether base and adapters belong together and can be merged to what was trained."""
    folder = Path(trained.weights.model)
    place = Place(str(folder))
    problems = models.check_folder(folder, place)
    if any(problem.severity == "error" for problem in problems):
        return problems
    problems = []
    if known_fingerprint and models.fingerprint(folder) != known_fingerprint:
        what = f"the weights in {folder} are not those that {trained.name} was trained on"
        problems.append(Problem(what, "put back the base model of the training", place))
    facts = models.look(str(folder), folder.parent)
    if facts.quantization and trained.weights.adapters:
        what = f"{folder} is quantised ({facts.quantization}): an adapter cannot be merged into it"
        problems.append(Problem(what, "serve the run as it is: iis-finetune serve RUN", place))
    for adapter in trained.weights.adapters:
        problems += models.check_adapter(Path(adapter), facts, Place(adapter))
        problems += _adapter(Path(adapter), facts)
    return problems


def _adapter(folder: Path, facts: models.ModelFacts) -> Iterator[Problem]:
    config, place = read_json(folder / "adapter_config.json") or {}, Place(str(folder / "adapter_config.json"))
    targets = config.get("target_modules")
    names = {str(name).rsplit(".", 1)[-1] for name in (targets if isinstance(targets, list) else [targets])}
    if facts.shapes and facts.shapes.tie_word_embeddings and names & TIED:
        changed = " and ".join(sorted(names & TIED))
        what = f"the adapter changes {changed}, one matrix in this model: the merge would be wrong"
        yield Problem(what, "serve the run as it is, or train without them in lora_target", place)
    # PEFT draws the fast decomposition anew at each load, so the merge starts from other matrices than the training.
    if str(config.get("init_lora_weights", "")).startswith("pissa_niter"):
        what = "a PiSSA adapter made with the fast decomposition cannot be rebuilt exactly"
        yield Problem(what, "train with pissa_iter: -1, or with pissa_convert: true", place)


def check_files(trained: Trained, merged: Path) -> list[Problem]:
    """Files beside the weights: without a tokenizer's transformers makes up an empty one, a reward needs its head."""
    source = Path(trained.weights.model)
    missing = [name for name in TOKENIZER_FILES if (source / name).is_file() and not (merged / name).is_file()]
    what = f"tokenizer files are missing: {', '.join(missing)}"
    problems = [Problem(what, "export again, or copy them from the base model", Place(str(merged)))] if missing else []
    result = Path(trained.weights.adapters[-1] if trained.weights.adapters else trained.weights.model)
    if trained_with(trained.arguments)["stage"] == "rm" and not _same(result / VALUE_HEAD, merged / VALUE_HEAD):
        what = f"{VALUE_HEAD}, by which a reward model scores, is not that of {result}"
        problems.append(Problem(what, "export again; if this stays, the training saved none", Place(str(merged))))
    return problems


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def judge(found: Mapping[str, Any], merged: Path) -> list[Problem]:
    """Every reason why the merged folder is not the model that was trained; warnings for what is only unusual."""
    place, tokenizer = Place(str(merged)), found["tokenizer"]
    told = [*_weights(found), *_answers(found)]
    told += [(what, fix) for keys, what, fix in OF_TOKENIZER if not all(tokenizer[key] for key in keys)]
    problems = [Problem(what, fix, place) for what, fix in told]
    if found["own_template_equal"] is False:
        what = "the chat template in the folder formats prompts differently than the training did"
        fix = "use LLaMA-Factory's `api` or the Modelfile: they format prompts as the training did"
        problems.append(Problem(what, fix, place, severity="warning"))
    return problems


def _weights(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    weights, again = found["weights"], "export again; if this stays, the run's folder or the base model has changed"
    exceeded, compared = weights["tolerance_exceeded"], weights["compared"]
    if exceeded and 2 * len(exceeded) >= compared:
        what = f"{len(exceeded)} of {compared} tensors differ from base and adapter: merged from another base model"
        yield what, "merge with the base model of the training"
    elif exceeded:
        named = ", ".join(exceeded[:3]) + (f" and {len(exceeded) - 3} more" if len(exceeded) > 3 else "")
        yield f"weights differ from base and adapter, by up to {weights['largest_difference']:.3g}: {named}", again
    for kind, names in (("lacks", found["missing"]), ("has too many", found["unexpected"])):
        if names:
            yield f"the merged folder {kind} tensors: {', '.join(names[:3])}", again


def _answers(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    difference, allowed = found["logit_difference"], found["tolerance"]
    if not math.isfinite(allowed):
        what = "rounded to this precision, the weights give no numbers any more: they are too large for it"
        yield what, "export with --dtype fp32 or bf16"
    elif difference > allowed:
        yield f"logits differ by up to {difference:.3g}, {allowed:.3g} is allowed", ANOTHER_MODEL
    wrong = found["texts"] - found["equal_texts"] - found["near_ties"]
    if wrong:
        yield f"{wrong} of {found['texts']} greedy answers differ from those of base and adapter", ANOTHER_MODEL

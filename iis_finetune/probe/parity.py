"""Compare a merged model with the base and adapter it came from.

    python -m iis_finetune.probe.parity SPEC.json

SPEC.json holds `arguments` (those LLaMA-Factory merged with), `adapters` (folders, in order), `merged` (the folder),
`dtype` (float32, float16, bfloat16), `tolerance`, `prompts`, `new_tokens`, `rows` ([prompt, answer], held out). Base
and adapter are loaded as LLaMA-Factory loads them, the merged folder with plain transformers. All compute in FP32, so
that only the weights differ. In half precision the merged folder is compared with base and adapter joined and rounded
as it is; what a rounding of all weights changes is the measure of what a few may. Prints one JSON object:
    logit_difference, largest_logit   over every position of every prompt
    rounding                          null in FP32, else what rounding costs against base and adapter in FP32:
                                      {logit_difference, texts, equal_texts, rows, loss, rounded_loss,
                                      joined_difference: of the logits by joining the two, before rounding}
    texts, equal_texts, near_ties     greedy answers; a near tie differs where the two best tokens are level
    weights                           {compared, largest_difference, tolerance_exceeded: [names]}: files against a merge
    missing, unexpected               tensors that the merged folder lacks or has too many
    tokenizer                         {prompts_equal, template_equal, stops_equal, modelfile_equal}
    stops, generation_stops           token ids that end an answer: in training, and as the folder says
    own_template_equal                whether the folder's chat template writes the prompts as training did
    untied                            whether embedding and output layer differ though config.json says they are tied
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROUNDINGS = 3.0  # of the weights lie between two ways to merge: of the base, of what is added, of the sum
LONGEST_ROW = 1024  # tokens of a held-out row
ROOM = 1.3  # times its weights is what a model takes while it answers short prompts
# Relative difference of one weight after the same merge: FP32's own, else two units in the last place, as LLaMA-Factory
# rounds the base and the sum, and the two can lie on both sides of a power of two.
ROUNDING = {"float32": 1e-6, "float16": 2**-9, "bfloat16": 2**-6}


def load_reference(spec: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Base model with the last adapter on top in FP32, its tokenizer and template, as LLaMA-Factory sets them up."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import get_infer_args
    from llamafactory.model import load_model, load_tokenizer
    from peft import PeftModel

    *merged_before, last = spec["adapters"] or [None]
    arguments = {key: value for key, value in spec["arguments"].items() if key != "adapter_name_or_path"}
    if merged_before:
        arguments["adapter_name_or_path"] = ",".join(merged_before)
    arguments["infer_dtype"] = "float32"
    model_arguments, data_arguments, finetuning, _ = get_infer_args(arguments)
    tokenizer = load_tokenizer(model_arguments)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_arguments)
    model = load_model(tokenizer, model_arguments, finetuning, is_trainable=False).float()
    if last:
        model = PeftModel.from_pretrained(model, last, is_trainable=False)
    return model.eval(), tokenizer, template


def rounded(model: Any, dtype: str) -> Any:
    """The weights as they are once saved in that dtype, in place; they still compute in FP32."""
    for weights in model.parameters():
        weights.data = weights.data.to(getattr(torch, dtype)).float()
    return model


def loss_of(model: Any, tokenizer: Any, rows: list[list[str]]) -> float | None:
    """Mean loss of the answers' tokens."""
    total = count = 0.0
    for prompt, answered in rows:
        asked, wanted = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answered))
        ids = [*asked, *wanted][:LONGEST_ROW]
        if len(asked) < len(ids):
            logits = logits_of(model, ids)[len(asked) - 1 : -1]
            total += torch.nn.functional.cross_entropy(logits, torch.tensor(ids[len(asked) :]), reduction="sum").item()
            count += len(ids) - len(asked)
    return total / count if count else None


def encode(template: Any, tokenizer: Any, prompts: list[str]) -> list[list[int]]:
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": ""}] for text in prompts]
    return [template.encode_oneturn(tokenizer, each)[0] for each in turns]


def logits_of(model: Any, ids: list[int]) -> Any:
    """Logits of every position, (tokens, vocabulary), in FP32 on the CPU."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids], device=device)).logits[0].float().cpu()


def answer(model: Any, ids: list[int], spec: dict[str, Any], stops: list[int]) -> list[int]:
    """The tokens of a greedy answer; `generate` itself switches gradients off."""
    device = next(model.parameters()).device
    inputs = torch.tensor([ids], device=device)
    made = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=spec["new_tokens"],
        do_sample=False,
        num_beams=1,
        eos_token_id=stops,
        pad_token_id=stops[0],
    )
    return [int(token) for token in made[0, len(ids) :]]


def near_tie(model: Any, ids: list[int], answers: tuple[list[int], list[int]], tolerance: float) -> bool:
    """Whether two answers part where the reference holds both next tokens for equally likely, within the tolerance."""
    same = next((at for at, (one, other) in enumerate(zip(*answers, strict=False)) if one != other), None)
    if same is None:
        return False
    last = logits_of(model, [*ids, *answers[0][:same]])[-1]
    return bool(abs(last[answers[0][same]] - last[answers[1][same]]) <= 2 * tolerance)


def compare_weights(model: Any, folder: Path, dtype: str) -> dict[str, Any]:
    """The files' tensors against those of the merge in memory, each within the rounding of its own size."""
    from safetensors import safe_open

    ours, exceeded, largest, compared = model.state_dict(), [], 0.0, 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if name not in ours:
                    continue
                theirs, mine = file.get_tensor(name).float(), ours[name].float().cpu()
                if theirs.shape != mine.shape:
                    exceeded.append(name)
                    continue
                difference = (theirs - mine).abs()
                compared += 1
                largest = max(largest, difference.max().item())
                allowed = ROUNDING[dtype] * (mine.abs() + mine.abs().mean())
                if not bool((difference <= allowed).all()):
                    exceeded.append(name)
    return {"compared": compared, "largest_difference": largest, "tolerance_exceeded": exceeded}


def compare_tokenizers(spec: dict[str, Any], reference: tuple[Any, Any], ids: list[list[int]]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokenizer, template = reference
    merged = Path(spec["merged"])
    theirs = AutoTokenizer.from_pretrained(merged)
    modelfile = (merged / "Modelfile").read_text(encoding="utf-8") if (merged / "Modelfile").is_file() else None
    own = None
    if theirs.chat_template:
        asked = [[{"role": "user", "content": text}] for text in spec["prompts"]]
        own = [list(theirs.apply_chat_template(each, add_generation_prompt=True, return_dict=False)) for each in asked]
    return {
        "tokenizer": {
            "prompts_equal": encode(template, theirs, spec["prompts"]) == ids,
            "template_equal": tokenizer.chat_template == theirs.chat_template,
            "stops_equal": tokenizer.eos_token_id == theirs.eos_token_id,
            "modelfile_equal": template.get_ollama_modelfile(tokenizer) == modelfile,
        },
        "own_template_equal": None if own is None else own == ids,
    }


def untied(model: Any, folder: Path) -> bool:
    """Whether the weights hold two different matrices though the config says that there is one."""
    tied = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings")
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    return bool(tied and outputs is not None and not torch.equal(inputs.weight, outputs.weight))


def load_merged(spec: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The merged folder with plain transformers in FP32, and what it lacks or has too many."""
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(spec["merged"], dtype=torch.float32, output_loading_info=True)
    names = {"missing": sorted(loading["missing_keys"]), "unexpected": sorted(loading["unexpected_keys"])}
    return model.eval(), names


@dataclass
class Side:
    """What one of the models says to the same prompts, and its loss on the held-out rows."""

    logits: list[Any]
    answers: list[list[int]]
    loss: float | None


def ask(model: Any, ids: list[list[int]], spec: dict[str, Any], words: tuple[Any, list[int]]) -> Side:
    """Logits and greedy answers to every prompt; on the accelerator while they are made, where the model fits."""
    tokenizer, stops = words
    if torch.cuda.is_available():
        size = sum(each.numel() * each.element_size() for each in model.parameters())
        if torch.cuda.mem_get_info()[0] > ROOM * size:
            model.to("cuda")
    loss = loss_of(model, tokenizer, spec["rows"]) if spec["dtype"] != "float32" else None
    said = Side([logits_of(model, each) for each in ids], [answer(model, each, spec, stops) for each in ids], loss)
    model.to("cpu")
    return said


def compare_logits(mine: list[Any], theirs: list[Any]) -> dict[str, float]:
    difference = largest = 0.0
    for one, other in zip(mine, theirs, strict=True):
        largest = max(largest, one.abs().max().item())
        width = min(one.shape[-1], other.shape[-1])
        difference = max(
            difference, (one[:, :width] - other[:, :width]).abs().nan_to_num(torch.inf, torch.inf).max().item()
        )
    return {"logit_difference": difference, "largest_logit": largest}


def compare_answers(model: Any, ids: list[list[int]], answers: tuple[Any, Any], tolerance: float) -> dict[str, int]:
    """How many greedy answers are equal."""
    pairs = zip(ids, zip(*answers, strict=True), strict=True)
    differing = [(each, pair) for each, pair in pairs if pair[0] != pair[1]]
    ties = sum(near_tie(model, each, pair, tolerance) for each, pair in differing)
    return {"texts": len(ids), "equal_texts": len(ids) - len(differing), "near_ties": ties}


def rounding(exact: Side, after: Side, rows: int) -> dict[str, Any]:
    """What rounding the weights changes, whoever merges them."""
    equal = sum(one == other for one, other in zip(exact.answers, after.answers, strict=True))
    cost = {"logit_difference": compare_logits(exact.logits, after.logits)["logit_difference"]}
    cost |= {"texts": len(exact.answers), "equal_texts": equal}
    return {**cost, "rows": rows, "loss": exact.loss, "rounded_loss": after.loss}


def compare(spec: dict[str, Any]) -> dict[str, Any]:
    """All that is printed; the tolerance grows with logits above 10, as rounding does."""
    model, tokenizer, template = load_reference(spec)
    ids = encode(template, tokenizer, spec["prompts"])
    known = tokenizer.convert_tokens_to_ids(list(template.stop_words))
    stops = list(dict.fromkeys([tokenizer.eos_token_id, *(word for word in known if isinstance(word, int))]))
    mine, cost = ask(model, ids, spec, (tokenizer, stops)), None
    if spec["dtype"] != "float32":
        exact, model = mine, model.merge_and_unload() if spec["adapters"] else model
        joined = compare_logits(exact.logits, [logits_of(model, each) for each in ids])["logit_difference"]
        mine = ask(rounded(model, spec["dtype"]), ids, spec, (tokenizer, stops))
        cost = {**rounding(exact, mine, len(spec["rows"])), "joined_difference": joined}
    theirs, names = load_merged(spec)
    others = ask(theirs, ids, spec, (tokenizer, stops))
    found = compare_logits(mine.logits, others.logits)
    tolerance = exactly = spec["tolerance"] * max(1.0, found["largest_logit"] / 10)
    if cost and cost["joined_difference"] <= exactly:
        tolerance = max(tolerance, ROUNDINGS * cost["logit_difference"])
    elif cost:  # joining base and adapter changed more than rounding explains
        found["logit_difference"] = max(found["logit_difference"], cost["joined_difference"])
    equal = compare_answers(model, ids, (mine.answers, others.answers), tolerance)
    generation = theirs.generation_config.eos_token_id
    whole = model.merge_and_unload() if spec["adapters"] and not cost else model
    return {
        **found,
        **equal,
        **names,
        **compare_tokenizers(spec, (tokenizer, template), ids),
        "rounding": cost,
        "tolerance": tolerance,
        "weights": compare_weights(whole, Path(spec["merged"]), spec["dtype"]),
        "stops": stops,
        "generation_stops": generation if isinstance(generation, list) else [generation],
        "untied": untied(theirs, Path(spec["merged"])),
    }


if __name__ == "__main__":
    result = compare(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    sys.stdout.write("\n" + json.dumps(result, ensure_ascii=False) + "\n")

"""Quantise a GGUF file, and compare it and what comes out with the merged model it was made from.

    python -m iis_finetune.probe.gguf SPEC.json

SPEC.json holds `tools` (llama.cpp's folder), `merged` (the model's folder), `source` (its GGUF file in FP32), `files`
({kind: file to make}; kinds are llama.cpp's names in small letters), `prompts`, `rows` ([prompt, answer], held out;
where there are any, their prompts are answered) and `new_tokens`. Prints one JSON object:
    source          {logit_difference, largest_logit, tokens_equal, template_equal, stops_equal}: the FP32 file against
                    the merged folder in plain transformers; all compute in FP32 on the CPU
    files           {kind: {bytes, texts, equal_texts, near_ties, loss,
                    tensors: {type: {compared, largest, name}}}}: greedy answers and loss against the merged folder,
                    the largest relative error (root of the mean square) of a tensor against the FP32 file
    rows, loss      how many held-out rows, and the merged folder's own loss on them; null without rows
"""

import ctypes
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from .parity import LONGEST_ROW, answer, compare_answers, compare_logits, logits_of, loss_of

EXACT = 0  # llama.cpp's number of FP32, which the cache of keys and values is to have as well


class Speaker:
    """A GGUF file in llama.cpp, asked in the way a model of transformers is."""

    def __init__(self, file: Path, context: int) -> None:
        import llama_cpp

        exact: dict[str, Any] = {"type_k": EXACT, "type_v": EXACT, "flash_attn": False}
        self.llama = llama_cpp.Llama(str(file), n_ctx=context, logits_all=True, verbose=False, n_gpu_layers=0, **exact)

    def parameters(self) -> Iterator[torch.Tensor]:
        """Where it computes, as `logits_of` asks."""
        return iter([torch.empty(0)])

    def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
        tokens = input_ids[0].tolist()
        self.llama.reset()
        self.llama.eval(tokens)
        return SimpleNamespace(logits=torch.from_numpy(self.llama.scores[: len(tokens)].copy())[None])

    def answer(self, ids: list[int], new_tokens: int, stops: list[int]) -> list[int]:
        """The tokens of a greedy answer, the one that ends it included, as `generate` gives them."""
        self.llama.reset()
        said: list[int] = []
        asked = ids
        while len(said) < new_tokens and not set(said[-1:]) & set(stops):
            self.llama.eval(asked)
            said.append(int(self.llama.scores[self.llama.n_tokens - 1].argmax()))
            asked = said[-1:]
        return said


def quantise(source: Path, target: Path, kind: str) -> None:
    import llama_cpp

    chosen = llama_cpp.llama_model_quantize_default_params()
    chosen.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(chosen))
    if failed:
        raise SystemExit(f"llama.cpp could not quantise to {kind}: code {failed}")


def errors_of_tensors(source: Path, file: Path) -> dict[str, Any]:
    """By type, how many tensors there are, and the largest relative error with the tensor's name."""
    import gguf  # type: ignore[import-not-found]
    import numpy

    exact = {each.name: each for each in gguf.GGUFReader(source).tensors}
    found: dict[str, Any] = {}
    for tensor in gguf.GGUFReader(file).tensors:
        here = found.setdefault(tensor.tensor_type.name, {"compared": 0, "largest": 0.0, "name": ""})
        here["compared"] += 1
        wanted = exact.pop(tensor.name).data
        made = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(wanted.shape)
        size = float(numpy.sqrt(numpy.mean(numpy.square(wanted, dtype=numpy.float64)))) or 1.0
        error = float(numpy.sqrt(numpy.mean(numpy.square(made - wanted, dtype=numpy.float64)))) / size
        error = math.inf if math.isnan(error) else error
        if error > here["largest"]:
            here |= {"largest": error, "name": tensor.name}
    if exact:
        raise SystemExit(f"{file.name} lacks {len(exact)} tensors: {', '.join(list(exact)[:3])}")
    return found


def compare(spec: dict[str, Any]) -> dict[str, Any]:
    """All that is printed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(spec["merged"])
    model = AutoModelForCausalLM.from_pretrained(spec["merged"], dtype=torch.float32).eval()
    texts = [prompt for prompt, _ in spec["rows"]] or [framed(tokenizer, text) for text in spec["prompts"]]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][:LONGEST_ROW] for text in texts]
    ends = model.generation_config.eos_token_id
    stops = ends if isinstance(ends, list) else [ends]
    mine = [logits_of(model, each) for each in ids]
    answers = [answer(model, each, spec, stops) for each in ids]
    context = LONGEST_ROW + spec["new_tokens"]

    def against(file: Path) -> tuple[Speaker, dict[str, float]]:
        speaker = Speaker(file, context)
        return speaker, compare_logits(mine, [logits_of(speaker, each) for each in ids])

    source = Path(spec["source"])
    speaker, told = against(source)
    whole: dict[str, Any] = {**told, **words(speaker, tokenizer, texts, ids)}
    files = {}
    for kind, name in spec["files"].items():
        file = Path(name)
        quantise(source, file, kind)
        speaker, told = against(file)
        said = [speaker.answer(each, spec["new_tokens"], stops) for each in ids]
        files[kind] = {
            "bytes": file.stat().st_size,
            **compare_answers(model, ids, (answers, said), told["logit_difference"]),
            "loss": loss_of(speaker, tokenizer, spec["rows"]),
            "tensors": errors_of_tensors(source, file),
        }
    loss = loss_of(model, tokenizer, spec["rows"])
    return {"source": whole, "files": files, "rows": len(spec["rows"]), "loss": loss}


def framed(tokenizer: Any, text: str) -> str:
    """A question as a chat has it; as it is where the model has no template."""
    if not tokenizer.chat_template:
        return text
    asked = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))


def words(speaker: Speaker, tokenizer: Any, texts: list[str], ids: list[list[int]]) -> dict[str, bool]:
    """Whether the file cuts and frames texts, and ends an answer, as the folder does."""
    llama = speaker.llama
    cut = [llama.tokenize(text.encode(), add_bos=False, special=True)[:LONGEST_ROW] for text in texts]
    return {
        "tokens_equal": cut == ids,
        "template_equal": llama.metadata.get("tokenizer.chat_template") == tokenizer.chat_template,
        "stops_equal": llama.token_eos() == tokenizer.eos_token_id,
    }


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.path.insert(0, str(Path(asked["tools"]) / "gguf-py"))
    sys.stdout.write("\n" + json.dumps(compare(asked), ensure_ascii=False) + "\n")

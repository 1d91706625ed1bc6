"""The merged model as GGUF files, which Ollama and llama.cpp read; each is proven before it gets its name."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from .. import launch, process
from ..errors import COMMAND_LINE, Misused, Place, Problem, ProblemsFound, RunFailed, did_you_mean
from ..plan import after
from ..runs import write

LONGEST_SECONDS = 12 * 3600.0
SET_UP = Path(sys.prefix) / "llama.cpp"  # where set-up puts it
FAILURE = "no GGUF file was made, the export stays as it is"
CONVERTER = "convert_hf_to_gguf.py"
KINDS = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")
EXACT = ("f16", "bf16")  # rounded to 16 bits: these are to answer as the merged model does
# Largest relative error of a tensor (root of the mean square) that rounding explains, by llama.cpp's types. Gaussian
# weights show F16 2.1e-4, Q8_0 0.0054, Q6_K 0.018, Q4_K 0.072 (measured 2026-11, llama.cpp of llama-cpp-python 0.3.36).
ROUNDING = {
    "F32": 0.0,
    "F16": 5e-4,
    "BF16": 3e-3,
    "Q8_0": 0.015,
    "Q6_K": 0.03,
    "Q5_K": 0.06,
    "Q5_0": 0.07,
    "Q5_1": 0.06,
    "Q4_K": 0.12,
    "Q4_0": 0.14,
    "Q4_1": 0.12,
    "IQ4_NL": 0.12,
    "Q3_K": 0.25,
    "Q2_K": 0.45,
}
TOLERANCE = 1e-3  # of a logit up to 10, between llama.cpp's FP32 and torch's
FRAME = {
    "tokens_equal": "texts are cut into other tokens than by the exported tokenizer",
    "template_equal": "the chat template in the file is not that of the training",
    "stops_equal": "answers end with another token than in the training",
}
MARGIN = 0.02  # of the loss: what costs more is said to be worse


class Wish(Struct, frozen=True):
    """Which kinds of GGUF files, and the folder of llama.cpp that makes them."""

    kinds: Sequence[str]
    tools: Path


class Asked(Struct, frozen=True, kw_only=True):
    """The children's environment, and what every model is asked."""

    environment: Mapping[str, str]
    prompts: Sequence[str]
    rows: Sequence[Sequence[str]]  # prompt and answer, held out
    new_tokens: int


def _kinds_of(text: str) -> list[str]:
    kinds = [each.strip().lower() for each in text.split(",") if each.strip()]
    for kind in kinds:
        if kind not in KINDS:
            raise Misused(f"no GGUF kind '{kind}'", did_you_mean(kind, KINDS, f"one of {', '.join(KINDS)}"), "--gguf")
    return list(dict.fromkeys(kinds))


def wish_of(text: str, environment: Mapping[str, str]) -> Wish:
    """`q8_0,q4_k_m` with what is needed for it; raises Misused for a kind that is not known, ProblemsFound."""
    return Wish(_kinds_of(text), _tools(environment.get("IIS_LLAMA_CPP"), environment.get("PATH")))


def _tools(named: str | None, path: str | None) -> Path:
    """The folder that is named, else that of a converter on PATH, else set-up's; raises ProblemsFound without one."""
    on_path = shutil.which(CONVERTER, path=path)
    folders = [Path(named)] if named else [*([Path(on_path).resolve().parent] if on_path else []), SET_UP]
    folder = next((each for each in folders if (each / CONVERTER).is_file()), None)
    lacking = None
    if folder is None:
        lacking = f"IIS_LLAMA_CPP={named} has no {CONVERTER}" if named else "llama.cpp's converter to GGUF is not here"
    elif importlib.util.find_spec("llama_cpp") is None:
        lacking = "llama-cpp-python, which quantises and proves GGUF files, is not installed"
    if folder is None or lacking:
        fix = "make setup EXTRA=gguf in a clone of the kit (it compiles llama.cpp), or IIS_LLAMA_CPP=FOLDER"
        raise ProblemsFound([Problem(str(lacking), fix, Place(COMMAND_LINE, key="--gguf"), kind="missing")])
    return folder


def convert(exported: Path, name: str, wish: Wish, asked: Asked) -> dict[str, Any]:
    """The wished GGUF files of an exported folder, in its `gguf/`, with a Modelfile each; what the proof found.

    Raises RunFailed, and ProblemsFound with every reason against a file; the folder is then kept as `gguf.refused`.
    """
    target, making, refused = (exported / each for each in ("gguf", ".gguf.unproven", "gguf.refused"))
    for earlier in (making, refused):
        shutil.rmtree(earlier, ignore_errors=True)
    making.mkdir()
    try:
        files = {kind: making / f"{name}-{kind}.gguf" for kind in wish.kinds}
        found = _made(exported, files, wish.tools, asked)
        wrong = judge(found, files)
        if wrong:
            making.replace(refused)
            raise ProblemsFound([Problem(what, fix, Place(str(refused))) for what, fix in wrong])
        modelfile = (exported / "Modelfile").read_text(encoding="utf-8")
        for kind, file in files.items():
            write(making / f"Modelfile.{kind}", modelfile.replace("FROM .", f"FROM ./{file.name}", 1))
        shutil.rmtree(target, ignore_errors=True)
        making.replace(target)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return found


def _made(exported: Path, files: Mapping[str, Path], tools: Path, asked: Asked) -> dict[str, Any]:
    """Make the files; what their comparison with the exported folder found."""
    making = next(iter(files.values())).parent
    source, file = making / "exact.gguf", making / "spec.json"
    printed("gguf_convert", [str(tools), str(exported), str(source)], asked.environment, FAILURE)
    spec = {
        "tools": str(tools),
        "merged": str(exported),
        "source": str(source),
        "files": {kind: str(path) for kind, path in files.items()},
        "prompts": asked.prompts,
        "rows": asked.rows,
        "new_tokens": asked.new_tokens,
    }
    write(file, json.dumps(spec, ensure_ascii=False))
    found: dict[str, Any] = json.loads(printed("gguf", [str(file)], asked.environment, FAILURE))
    for each in (source, file):
        each.unlink()
    return found


def printed(probe: str, words: Sequence[str], environment: Mapping[str, str], failure: str) -> str:
    """The last line that a probe printed; raises RunFailed with the sentence for a failure and the probe's own."""
    child = after.one_process(environment)
    child["PYTHONPATH"] = ":".join([str(launch.KIT.parent), *filter(None, [child["PYTHONPATH"]])])
    command = [sys.executable, "-m", f"iis_finetune.probe.{probe}", *words]
    done = process.capture(process.bound(command), LONGEST_SECONDS, child)
    if done is None or done.returncode != 0:
        why = [line for line in done.stderr.splitlines() if line.strip()][-1:] if done else []
        raise RunFailed(f"{failure}: {' '.join(why)}")
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def judge(found: Mapping[str, Any], files: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Every reason why a file is not the merged model, each with its fix."""
    told = [*_of_source(found["source"])]
    for kind, file in found["files"].items():
        told += (f"{files[kind].name}: {what}" for what in _of_file(kind, file))
    return [(what, "do not use the file; try again with a newer llama.cpp in IIS_LLAMA_CPP") for what in told]


def _of_source(whole: Mapping[str, Any]) -> Iterator[str]:
    allowed = TOLERANCE * max(1.0, whole["largest_logit"] / 10)
    if not whole["logit_difference"] <= allowed:
        yield f"logits in FP32 differ by up to {whole['logit_difference']:.3g}, {allowed:.1g} is allowed"
    for equal, what in FRAME.items():
        if not whole[equal]:
            yield what


def _of_file(kind: str, file: Mapping[str, Any]) -> Iterator[str]:
    for type_, tensors in file["tensors"].items():
        if not tensors["largest"] <= ROUNDING.get(type_, max(ROUNDING.values())):
            yield f"{tensors['name']} ({type_}) is {tensors['largest']:.1%} off, more than rounding explains"
    if kind in EXACT and file["equal_texts"] + file["near_ties"] < file["texts"]:
        yield f"{file['equal_texts']} of {file['texts']} greedy answers are equal to the exported model's"


def cost(exact: float | None, loss: float | None) -> str:
    """What a quantisation costs on held-out rows, in words; empty without any."""
    if exact is None or loss is None:
        return ""
    more = loss / exact - 1
    return f"{loss:.4f} ({more:+.1%}): {'worse' if more > MARGIN else 'as good'}"

"""Is a model folder whole and what it claims to be, and which weights does it hold? Little of the weights is read."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import Place, Problem
from ..runs import read_json
from ..tensors import Header, read_headers
from .facts import ADAPTER_CONFIG, CONFIG, config_dtype, shapes_of

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.tiktoken", "*.model")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.index.json")
POINTER = b"version https://git-lfs"
LONGEST_POINTER = 1024
LONGEST_ADDED = 2_000_000  # bytes of tokenizer.json that are looked through for the added tokens
EMBEDDING = "embed_tokens.weight"
WHOLE = "fetch the model again, whole"
SAMPLES = 64  # of a weight file that its fingerprint is made of
SAMPLE_BYTES = 4096
HEAD_BYTES = 1 << 16


def check_folder(folder: Path, place: Place) -> list[Problem]:
    """Every reason why a model folder would fail to load, or would load as something else than meant."""
    if not folder.is_dir():
        fix = "give the path of a model folder, or download it first; a run is merged by: iis-finetune export last"
        return [Problem(f"the folder {folder} is not there", fix, place, kind="missing")]
    if not (folder / CONFIG).is_file() and (folder / ADAPTER_CONFIG).is_file():
        base = (read_json(folder / ADAPTER_CONFIG) or {}).get("base_model_name_or_path")
        fix = f"model_name_or_path: {base or 'the model it was trained on'} and adapter_name_or_path: {folder}"
        return [Problem(f"{folder} is an adapter, not a whole model", fix, place)]
    config = read_json(folder / CONFIG)
    lacking = list(_lacking(folder))
    if config is None and folder / CONFIG not in [path for path, _, _ in lacking]:
        state = "cannot be read as JSON" if (folder / CONFIG).exists() else "is missing"
        lacking.append((folder / CONFIG, state, WHOLE))
    problems = [Problem(f"{path} {state}", fix, place, kind="missing") for path, state, fix in lacking]
    return problems if config is None else [*problems, *_contradictions(folder, config, read_headers(folder), place)]


def _lacking(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Files that are not there, or not whole: the path, its state, the fix."""
    from ..hub import weights_faults  # 20 ms that a model that is not here yet need not cost

    small = [path for path in sorted(folder.iterdir()) if path.is_file() and path.stat().st_size <= LONGEST_POINTER]
    pointers = [path for path in small if path.read_bytes().startswith(POINTER)]
    for path in pointers:  # three lines of text, where git cloned without git-lfs
        yield path, "is a git-lfs pointer, not the file itself", "run `git lfs pull` there"
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZERS):
        # Seen with LLaMA-Factory: it trains on nothing but unknown tokens and exits 0.
        state = "has no tokenizer (tokenizer.json or tokenizer.model): every token would be an unknown one"
        yield folder, state, "copy the tokenizer files of the model it was made from"
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        yield folder, "has no weights (model.safetensors)", WHOLE
    for name, fault in weights_faults(folder):
        if folder / name not in pointers:
            yield folder / name, fault, "fetch this file again: its download is incomplete"


def _contradictions(folder: Path, config: dict[str, Any], headers: Header, place: Place) -> Iterator[Problem]:
    rows = next((each.shape[0] for name, each in headers.tensors.items() if name.endswith(EMBEDDING)), None)
    shapes = shapes_of(config)
    if rows and shapes and rows != shapes.vocabulary_size:
        said = f"{folder / CONFIG} says vocab_size {shapes.vocabulary_size}"
        what = f"{said}, the embedding in the weights has {rows} rows"
        yield Problem(what, "take config.json and weights from the same source", place)
    tokens = max((added_tokens(folder) or {}).values(), default=-1)
    if rows and tokens >= rows:
        what = f"the tokenizer in {folder} has token {tokens}, the embedding only {rows} rows"
        yield Problem(what, "take the tokenizer of this very model, or set resize_vocab: true", place)
    named = config_dtype(config)
    if {named, headers.dtype} == {"float16", "bfloat16"}:
        saved = f"the weights are saved as {headers.dtype}; they are converted on loading"
        what = f"{folder / CONFIG} says {named}, {saved}"
        yield Problem(what, f'write "dtype": "{headers.dtype}" into config.json', place, severity="warning")


def added_tokens(folder: Path) -> dict[str, int] | None:
    """Added tokens and their ids: tokenizer.json has them before its long vocabulary, so that part alone is parsed."""
    try:
        with (folder / "tokenizer.json").open("rb") as file:
            text = file.read(LONGEST_ADDED).decode("utf-8", errors="ignore")
        start = text.index('"added_tokens"')
        rows, _ = json.JSONDecoder().raw_decode(text, text.index("[", start))
        return {row["content"]: row["id"] for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def has_token(folder: Path, token: str) -> bool | None:
    """Whether the tokenizer holds this text as one token, added or in its vocabulary; None when that cannot be seen."""
    added = added_tokens(folder)
    if added is None:
        return None
    if token in added:
        return True
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    written = {json.dumps(token, ensure_ascii=escaped) for escaped in (True, False)}
    return any(word + sign in text for word in written for sign in ":,")  # BPE vocabularies are objects, others lists


def fingerprint(folder: Path) -> str | None:
    """A SHA-256 of sizes, headers and samples of the weights; tells models apart, proves no download."""
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            digest.update(file.read(HEAD_BYTES))
            for number in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()

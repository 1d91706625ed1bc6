"""A model made from nothing: the same bytes twice, and a tokenizer that keeps ChatML and both languages whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow  # three starts of transformers
CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def make(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    file = folder.parent / f"{folder.name}.json"
    file.write_text(json.dumps(spec | {"to": str(folder)}), encoding="utf-8")
    command = [sys.executable, "-m", "iis_finetune.probe.scratch", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    text = {"file": str(ROOT / "data" / "quickstart_text.json"), "columns": ["text"]}
    return {"config": CONFIG, "tokenizer": {"train_on": [text], "vocab_size": 600}, "seed": 42, "dtype": "float32"}


@pytest.fixture(scope="module")
def model(spec: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scratch") / "first"
    assert make(spec, folder)["vocab_size"] == 600
    return folder


def test_the_same_spec_gives_the_same_bytes(spec: dict[str, Any], model: Path, tmp_path: Path) -> None:
    make(spec, tmp_path / "second")
    assert bytes_of(tmp_path / "second") == bytes_of(model)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["second"]


def test_another_seed_changes_the_weights_alone_and_a_copied_tokenizer_is_the_same(
    spec: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    make({"config": config, "tokenizer": {"copy_from": str(model)}, "seed": 7}, tmp_path / "other")
    first, other = bytes_of(model), bytes_of(tmp_path / "other")
    assert first["tokenizer.json"] == other["tokenizer.json"]
    assert first["model.safetensors"] != other["model.safetensors"]


def test_chatml_tokens_are_single_and_both_languages_come_back_whole(model: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        assert len(tokenizer.encode(token).ids) == 1
    for text in ("港口罢工，货物滞留。", "The port is on strike; 12 loads wait.", "混合 mixed 文本 🚢\n"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text

"""llama.cpp's converter, which also takes a tokenizer made here from scratch.

    python -m iis_finetune.probe.gguf_convert FOLDER-OF-LLAMA.CPP FOLDER-OF-THE-MODEL FILE.gguf

It knows how a tokenizer cuts text before merging by a hash of ids, so it knows no tokenizer with another vocabulary;
one that cuts as Qwen2's does is named so. FP32, so that nothing is lost before a quantisation.
"""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

from .scratch import PIECES


def cuts_as_qwen2(folder: Path) -> bool:
    """Whether the first cut of the tokenizer is Qwen2's expression."""
    written = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["pre_tokenizer"] or {}
    first = (written.get("pretokenizers") or [written])[0]
    return bool(first.get("pattern") == {"Regex": PIECES})


def main(tools: Path, model: Path, target: Path) -> None:
    sys.path[:0] = [str(tools), str(tools / "gguf-py")]
    from conversion.base import TextModel  # type: ignore[import-not-found]

    known = TextModel.get_vocab_base_pre

    def named(self: Any, tokenizer: Any) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            if not cuts_as_qwen2(model):
                raise
            return "qwen2"

    TextModel.get_vocab_base_pre = named
    script = tools / "convert_hf_to_gguf.py"
    sys.argv = [str(script), str(model), "--outtype", "f32", "--outfile", str(target)]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))

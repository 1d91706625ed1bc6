"""Ask LLaMA-Factory itself: its own reading of the arguments, then tokenizer and template if the model lies here.

Usage: python -m iis_finetune.probe.parser '{"command": "train", "arguments": {...}}'
The last line printed is JSON: {"stage": what it got to, "error": the exception's type or null, "message": its text}.
"""

import json
import sys
from pathlib import Path
from typing import Any


def read(asked: dict[str, Any]) -> tuple[Any, Any]:
    """Model and data arguments as LLaMA-Factory reads them, or its exception."""
    from llamafactory.hparams import get_infer_args, get_train_args

    reader = get_train_args if asked["command"] == "train" else get_infer_args
    model, data, *_ = reader(asked["arguments"])
    return model, data


def load(model: Any, data: Any) -> None:
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.model import load_tokenizer

    get_template_and_fix_tokenizer(load_tokenizer(model)["tokenizer"], data)


def answer(asked: dict[str, Any]) -> dict[str, str | None]:
    stage = "reading the arguments"
    try:
        model, data = read(asked)
        if Path(model.model_name_or_path).is_dir():
            stage = "loading the tokenizer and the template"
            load(model, data)
    except BaseException as error:  # noqa: BLE001 - whatever ends LLaMA-Factory, a SystemExit too, is the answer
        return {"stage": stage, "error": type(error).__name__, "message": str(error)}
    return {"stage": stage, "error": None, "message": None}


if __name__ == "__main__":
    found = answer(json.loads(sys.argv[1]))
    sys.stdout.write("\n" + json.dumps(found, ensure_ascii=False) + "\n")

"""Ask LLaMA-Factory itself: its own reading of the arguments, then tokenizer and template if the model lies here.

Usage: python -m iis_finetune.probe.parser '{"command": "train", "arguments": {...}}'
The last line printed is JSON: {"stage": what it got to, "error": the exception's type or null, "message": its text,
"found": what the work on them gave, where there was no exception}.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOADING = "loading the tokenizer and the template"


def read(asked: dict[str, Any]) -> Any:
    """The arguments as LLaMA-Factory reads them, model and data first, or its exception."""
    from llamafactory.hparams import get_infer_args, get_train_args

    return (get_train_args if asked["command"] == "train" else get_infer_args)(asked["arguments"])


def load(_: dict[str, Any], model: Any, data: Any, *_rest: Any) -> None:
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.model import load_tokenizer

    if Path(model.model_name_or_path).is_dir():
        get_template_and_fix_tokenizer(load_tokenizer(model)["tokenizer"], data)


def answer(asked: dict[str, Any], work: Callable[..., Any] = load, doing: str = LOADING) -> dict[str, Any]:
    stage, found = "reading the arguments", None
    try:
        arguments, stage = read(asked), doing
        found = work(asked, *arguments)
    except BaseException as error:  # noqa: BLE001 - whatever ends LLaMA-Factory, a SystemExit too, is the answer
        return {"stage": stage, "error": type(error).__name__, "message": str(error)}
    return {"stage": stage, "error": None, "message": None, "found": found}


def main(work: Callable[..., Any] = load, doing: str = LOADING) -> None:
    sys.stdout.write("\n" + json.dumps(answer(json.loads(sys.argv[1]), work, doing), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

"""Tell what LLaMA-Factory's own classes and registers hold: its arguments, models, templates and needed packages.

Usage: python arguments.py PARTS [FOLDER ...]   (PARTS: names of PARTS below, with commas; folders to import from first)
The last line printed is one JSON object: the versions, then each part.
"""

import dataclasses
import enum
import importlib.metadata
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Described = tuple[list[str], list[Any], bool]  # kinds, choices, whether null is allowed

GROUPS = {
    "ModelArguments": "model",
    "DataArguments": "data",
    "TrainingArguments": "training",
    "FinetuningArguments": "finetuning",
    "GeneratingArguments": "generating",
}
KINDS = {"bool", "int", "float", "str", "list", "dict"}
HUBS = {"huggingface": "hf", "modelscope": "ms", "openmind": "om"}
ROLES = ("user", "assistant", "system", "function", "observation", "prefix")
WORDS = ("stop_words", "thought_words", "tool_call_words")
PLACEHOLDER = Path(__file__).parent.parent / "hook" / "torchaudio_placeholder"
FLAGS = ("default_system", "efficient_eos", "replace_eos", "replace_jinja_template")


def ranges() -> dict[str, list[str]]:
    """Package -> the lowest and the highest version that LLaMA-Factory starts with, as its own check asks for them."""
    from llamafactory.extras import misc

    asked: list[str] = []
    check, misc.check_version = misc.check_version, lambda requirement, *_, **__: asked.append(requirement)
    try:
        misc.check_dependencies()
    finally:
        misc.check_version = check
    parts = [re.findall(r"^[\w-]+|(?<=[<>]=)[\d.]+", text) for text in asked]
    return {name: [lowest, highest] for name, lowest, highest in parts}


def arguments() -> dict[str, Row]:
    """The fields of the classes that LLaMA-Factory's parser reads a recipe into."""
    from llamafactory.hparams import parser

    rows = {name: row for each in parser._TRAIN_ARGS for name, row in fields(each)}
    for name, words in word_lists().items():
        rows[name]["choices"] = words
    return rows


def word_lists() -> dict[str, list[str]]:
    """The words of the arguments whose choices stand in a register, not in their type."""
    from llamafactory.data.template import TEMPLATES
    from llamafactory.data.tool_utils import TOOLS
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    trackers = [*INTEGRATION_TO_CALLBACK, "all", "none"]
    return {"template": list(TEMPLATES), "tool_format": list(TOOLS), "report_to": trackers}


def fields(kind: type) -> Iterator[tuple[str, Row]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.init:
            whose = {"owner": owner(kind, field.name), "group": GROUPS[kind.__name__]}
            yield field.name, {**row(field, hints[field.name]), **whose}


def row(field: dataclasses.Field[Any], hint: Any) -> Row:
    kinds, choices, nullable = describe(hint)
    default = [] if field.default is dataclasses.MISSING else field.default
    return {
        "kinds": list(dict.fromkeys(kinds)),
        "choices": list(field.metadata.get("choices") or choices) or None,
        "nullable": nullable,
        "default": default.value if isinstance(default, enum.Enum) else default,
        "help": field.metadata.get("help", "").replace("%%", "%"),
    }


def owner(kind: type, name: str) -> str:
    """The class that declares a field, or declares it anew."""
    return next(each.__name__ for each in kind.__mro__ if name in vars(each).get("__annotations__", {}))


def describe(hint: Any) -> Described:
    """What a type hint allows."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return [], [], True
    if origin in (typing.Union, types.UnionType):
        parts = [describe(part) for part in inner]
        kinds = [kind for part, _, _ in parts for kind in part]
        return kinds, [choice for _, part, _ in parts for choice in part], any(part for _, _, part in parts)
    if origin is typing.Literal:
        return sorted({type(word).__name__ for word in inner}), [word for word in inner if isinstance(word, str)], False
    if origin in (list, dict):
        return [origin.__name__], describe(inner[0])[1] if origin is list else [], False
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ["str"], [member.value for member in hint], False
    name = "str" if hint.__name__ == "Path" else hint.__name__
    return [name] if name in KINDS else [], [], False


def models() -> dict[str, Row]:
    """Display name -> its id on each hub, its template (null for base models), whether it is multimodal."""
    from llamafactory.extras.constants import DEFAULT_TEMPLATE, MULTIMODAL_SUPPORTED_MODELS, SUPPORTED_MODELS

    return {
        name: {
            **{hub: ids.get(word) for hub, word in HUBS.items()},
            "template": DEFAULT_TEMPLATE.get(name),
            "multimodal": name in MULTIMODAL_SUPPORTED_MODELS,
        }
        for name, ids in SUPPORTED_MODELS.items()
    }


def templates() -> dict[str, Row]:
    """Name -> stop words, flags, texts and each role's slots, a special token as `{"special": "bos_token"}`."""
    from llamafactory.data.template import TEMPLATES, ReasoningTemplate

    return {
        name: {
            **{word: list(getattr(template, word)) for word in WORDS},
            **{flag: getattr(template, flag) for flag in FLAGS},
            "reasoning": isinstance(template, ReasoningTemplate),
            "multimodal": type(template.mm_plugin).__name__ != "BasePlugin",
            "tool_format": template.format_tools.tool_format,
            "slots": {role: slots(getattr(template, f"format_{role}")) for role in ROLES},
        }
        for name, template in TEMPLATES.items()
    }


def slots(formatter: Any) -> list[Any]:
    return [{"special": next(iter(slot))} if isinstance(slot, set) else slot for slot in formatter.slots or []]


def prepare(folders: list[str]) -> None:
    """Import from the folders given, not from this one, and do without a torchaudio that cannot load."""
    sys.path[:1] = folders
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    try:
        import torchaudio  # type: ignore[import-untyped]  # noqa: F401
    except (ImportError, OSError):
        sys.path.insert(0, str(PLACEHOLDER))


PARTS: dict[str, Callable[[], Row]] = {
    "ranges": ranges,
    "arguments": arguments,
    "models": models,
    "templates": templates,
}

if __name__ == "__main__":
    parts, *folders = sys.argv[1:]
    prepare(folders)
    versions = {name: importlib.metadata.version(name) for name in ("llamafactory", "transformers")}
    found = {"versions": versions, **{part: PARTS[part]() for part in parts.split(",")}}
    sys.stdout.write("\n" + json.dumps(found, ensure_ascii=False) + "\n")

"""Read LLaMA-Factory's model and template registers from its source with `ast`: nothing of it is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

HUBS = {"DEFAULT": "huggingface", "MODELSCOPE": "modelscope", "OPENMIND": "openmind"}
# LLaMA-Factory gives a model its group's template only if the name says that it was tuned for talking.
TUNED = ("-Chat", "-Distill", "-Instruct", "-Thinking")
SLOTS = ("user", "assistant", "system", "function", "observation", "prefix")


def read_models(llamafactory: Path) -> dict[str, Row]:
    """Display name -> hub ids, default template (null for base models) and whether the model is multimodal."""
    rows: dict[str, Row] = {}
    for call in _calls(llamafactory / "extras" / "constants.py", "register_model_group"):
        template, multimodal = call.get("template"), bool(call.get("multimodal", False))
        for name, ids in call["models"].items():
            tuned = multimodal or any(mark in name for mark in TUNED)
            hubs = {hub: ids.get(attribute) for attribute, hub in HUBS.items()}
            rows[name] = {**hubs, "template": template if tuned else None, "multimodal": multimodal}
    return rows


def read_templates(llamafactory: Path) -> dict[str, Row]:
    """Name -> stop words, flags, texts and the slots of each role, a special token as `{"special": "bos_token"}`."""
    calls = _calls(llamafactory / "data" / "template.py", "register_template")
    return {call["name"]: _template(call) for call in calls}


def _template(call: Row) -> Row:
    efficient = call.get("efficient_eos", False)
    plain = {"slots": ["{{content}}"]}
    answer = call.get("format_assistant") or {"slots": ["{{content}}"] if efficient else ["{{content}}", {"eos_token"}]}
    user = call.get("format_user") or plain
    formats = {
        "user": user,
        "assistant": answer,
        "system": call.get("format_system") or plain,
        "function": call.get("format_function") or answer,
        "observation": call.get("format_observation") or user,
        "prefix": call.get("format_prefix") or {"slots": []},
    }
    return {
        "stop_words": call.get("stop_words") or [],
        "thought_words": list(call.get("thought_words") or ("<think>\n", "\n</think>\n\n")),
        "tool_call_words": list(call.get("tool_call_words") or ("<tool_call>", "</tool_call>")),
        "default_system": call.get("default_system", ""),
        "efficient_eos": efficient,
        "replace_eos": call.get("replace_eos", False),
        "replace_jinja_template": call.get("replace_jinja_template", False),
        "reasoning": "Reasoning" in str(call.get("template_class", "")),
        "multimodal": "mm_plugin" in call,
        "tool_format": call["format_tools"].get("tool_format") if "format_tools" in call else "default",
        "slots": {role: [_slot(slot) for slot in formats[role].get("slots") or []] for role in SLOTS},
    }


def _slot(slot: Any) -> Any:
    return {"special": next(iter(slot))} if isinstance(slot, set) else slot


def _calls(file: Path, function: str) -> Iterator[Row]:
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == function:
            yield _keywords(node.value)


def _keywords(call: ast.Call) -> Row:
    return {word.arg: _plain(word.value) for word in call.keywords if word.arg}


def _plain(node: ast.expr) -> Any:
    """A literal as plain Python; a call as its keywords; a name or a member as its last word."""
    match node:
        case ast.Call():
            return _keywords(node)
        case ast.Attribute() | ast.Name():
            return ast.unparse(node).rpartition(".")[2]
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            return {_plain(key): _plain(value) for key, value in pairs if key}
        case ast.List() | ast.Tuple() | ast.Set():
            items = [_plain(item) for item in node.elts]
            return set(items) if isinstance(node, ast.Set) else items
        case _:
            return ast.literal_eval(node)

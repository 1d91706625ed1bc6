"""Recognise the format of a file's rows, and the entry of dataset_info.json that reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .layout import Tags

# Names that files in the wild give to LLaMA-Factory's columns, the likeliest first.
COLUMNS = {
    "messages": ("conversations", "messages", "conversation", "dialogue", "dialog"),
    "prompt": ("instruction", "prompt", "question", "input", "query", "content"),
    "query": ("input", "context"),
    "response": ("output", "response", "answer", "completion", "target", "summary"),
    "history": ("history",),
    "system": ("system", "system_prompt"),
    "tools": ("tools",),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "kto_tag": ("kto_tag", "label"),
    "text": ("text", "content", "raw_content"),
}
SPEAKER = ("from", "role")
SAYS = ("value", "content")
ROLES = {
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant", "bot", "model"),
    "system_tag": ("system",),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call", "function"),
}
NEEDED = (
    "instruction and output (Alpaca), conversations or messages (ShareGPT, ChatML), chosen and rejected beside "
    "a prompt (pairs), a true/false label beside prompt and output (KTO), or text (plain text)"
)


ANSWERS = {"sft": ("response",), "rm": ("chosen", "rejected"), "kto": ("response", "kto_tag")}


class Format(NamedTuple):
    """A format's name, the stage it is for, and its entry without file_name."""

    name: str
    stage: str
    entry: dict[str, Any]


def recognise(rows: list[dict[str, Any]], seen: list[str]) -> Format | None:
    """The format of these rows, whose columns are `seen`; None when nothing fits."""
    columns = {key: next((name for name in names if name in seen), None) for key, names in COLUMNS.items()}
    label, pair = columns["kto_tag"] or "", (columns["chosen"] or "", columns["rejected"] or "")
    labelled = any(isinstance(row.get(label), bool) for row in rows)
    stage = "rm" if all(pair) else "kto" if labelled else "sft"
    if any(_is_messages(row.get(columns["messages"] or "")) for row in rows):
        return _talk(rows, columns, stage)
    if stage == "rm" and not any(isinstance(row.get(pair[0]), str) for row in rows):
        return None
    if stage != "rm" and not columns["response"] and columns["text"]:
        return Format("plain text", "pt", {"columns": {"prompt": columns["text"]}})
    return _single(columns, stage)


def _single(columns: dict[str, str | None], stage: str) -> Format | None:
    """One question and its answer a row."""
    if not columns["prompt"] or not all(columns[key] for key in ANSWERS[stage]):
        return None
    if columns["query"] == columns["prompt"]:
        columns["query"] = None
    keys = ("prompt", "query", "history", "system", "tools", *ANSWERS[stage])
    entry = {"ranking": True} if stage == "rm" else {}
    name = {"rm": "preference pairs", "kto": "KTO", "sft": "Alpaca"}[stage]
    return Format(name, stage, {**entry, "columns": {key: columns[key] for key in keys if columns[key]}})


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _talk(rows: list[dict[str, Any]], columns: Mapping[str, str | None], stage: str) -> Format | None:
    """The entry of rows that hold messages; tool calls need LLaMA-Factory's openai formatting, all others do not.

    That formatting adds "detailed thinking off" to every system text (LLaMA-Factory 0.9.5, data/converter.py).
    """
    messages = list(_all_messages(rows, columns))
    members = {key for message in messages for key in message}
    role_tag = next((key for key in SPEAKER if key in members), None)
    content_tag = next((key for key in SAYS if key in members), None)
    if not role_tag or not content_tag:
        return None
    said = {message.get(role_tag) for message in messages}
    defaults = Tags()
    tags = {"role_tag": role_tag, "content_tag": content_tag}
    tags |= {
        tag: next((word for word in words if word in said), getattr(defaults, tag)) for tag, words in ROLES.items()
    }
    calls = "tool_calls" in members or "tool" in said
    keys = ["messages", "system", "tools", *(["chosen", "rejected"] if stage == "rm" else [])]
    keys += ["kto_tag"] if stage == "kto" else []
    entry: dict[str, Any] = {"formatting": "openai" if calls else "sharegpt"} | (
        {"ranking": True} if stage == "rm" else {}
    )
    entry |= {"columns": {key: columns[key] for key in keys if columns[key]}, "tags": tags}
    return Format("ShareGPT" if role_tag == "from" else "ChatML messages", stage, entry)


def _all_messages(rows: list[dict[str, Any]], columns: Mapping[str, str | None]) -> Iterator[dict[str, Any]]:
    for row in rows:
        for item in row.get(columns["messages"] or "") or ():
            if isinstance(item, dict):
                yield item
        for key in ("chosen", "rejected"):
            if isinstance(item := row.get(columns[key] or ""), dict):
                yield item

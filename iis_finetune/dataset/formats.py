"""Recognise the format of a file's rows, and the entry of dataset_info.json that reads it."""

import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..tables import read
from .sources import COLUMNS, TAGS

NEEDED = (
    "instruction and output (Alpaca), conversations or messages (ShareGPT, ChatML), chosen and rejected beside "
    "a prompt (pairs), a true/false label beside prompt and output (KTO), or text (plain text)"
)
ANSWERS = {"sft": ("response",), "rm": ("chosen", "rejected"), "kto": ("response", "kto_tag")}
NAMES = {"sft": "Alpaca", "rm": "preference pairs", "kto": "KTO"}

Rows = list[dict[Any, Any]]  # a column that is not there is looked up as None


class Format(NamedTuple):
    """A format's name, the stage it is for, and its entry without file_name."""

    name: str
    stage: str
    entry: dict[str, Any]


def recognise(rows: Rows, seen: Collection[str], given: Mapping[str, str] | None = None) -> Format | None:
    """The format of these rows, whose columns are `seen`, or `given` by LLaMA-Factory's keys; None: nothing fits."""
    known = read("row_formats.toml")
    columns = dict(given or _found(known["columns"], seen))
    labelled = any(isinstance(row.get(columns.get("kto_tag")), bool) for row in rows)
    stage = "rm" if {"chosen", "rejected"} <= columns.keys() else "kto" if labelled else "sft"
    talks = [row.get(columns.get("messages")) for row in rows]
    if any(isinstance(talk, list) and talk and all(isinstance(item, dict) for item in talk) for talk in talks):
        return _talk(list(_all_messages(rows, columns)), columns, stage, known)
    if stage == "rm" and not any(isinstance(row.get(columns["chosen"]), str) for row in rows):
        return None
    if stage != "rm" and "response" not in columns and "text" in columns:
        return Format("plain text", "pt", {"columns": {"prompt": columns["text"]}})
    return _single(columns, stage)


def _found(known: Mapping[str, Iterable[str]], there: Collection[Any]) -> dict[str, str]:
    """Which name of each thing is there, if any, as it is spelled there: capitals and spaces around it do not count."""
    words = [each for each in there if isinstance(each, str)]
    spelled = {word.strip().lower(): word for word in reversed(words)} | {word: word for word in words}
    found = {key: next((spelled[name] for name in names if name in spelled), None) for key, names in known.items()}
    return {key: word for key, word in found.items() if word is not None}


def doubt(seen: Collection[str], path: Path) -> tuple[str, str] | None:
    """What to ask when several columns may hold the question or the answer, and none has LLaMA-Factory's own name."""
    known = read("row_formats.toml")["columns"]
    for key in ("prompt", "response"):
        names = [name for name in seen if name in known[key] and name not in (*known["query"], *known["text"])]
        if len(names) > 1 and COLUMNS[key] not in names and not set(known["messages"]) & set(seen):
            what = f"it is not certain which column is the {COLUMNS[key]}: {', '.join(names)}"
            return what, f"say which is which: {guess(seen, path)}"
    return None


def guess(seen: Collection[str], path: Path) -> str:
    """The command that says what may be meant: known names, or parts of `data.question` that are, else the first."""
    known = read("row_formats.toml")["columns"]
    parts = {part: name for name in reversed([*seen]) for part in name.split(".")} | {name: name for name in seen}
    found = {key: parts[part] for key, part in _found(known, parts).items() if key != "text"}
    left = iter([name for name in seen if name not in found.values()])
    keys = ("prompt", "response")
    said = ",".join(f"{COLUMNS[key]}={found.get(key) or next(left, 'COLUMN')}" for key in keys)
    return f"iis-finetune data add {shlex.quote(str(path))} --columns {shlex.quote(said)}"


def _single(columns: dict[str, str], stage: str) -> Format | None:
    """One question and its answer a row."""
    if not {"prompt", *ANSWERS[stage]} <= columns.keys():
        return None
    if columns.get("query") == columns["prompt"]:
        del columns["query"]
    keys = ("prompt", "query", "history", "system", "tools", *ANSWERS[stage])
    return Format(NAMES[stage], stage, _entry(stage, columns, keys))


def _talk(messages: Rows, columns: dict[str, str], stage: str, known: Mapping[str, Any]) -> Format | None:
    """The entry of rows that hold messages; tool calls need LLaMA-Factory's openai formatting, all others do not.

    That formatting adds "detailed thinking off" to every system text (LLaMA-Factory, data/converter.py).
    """
    members = {key for message in messages for key in message}
    tags = _found(known["members"], members)
    if len(tags) < len(known["members"]):
        return None
    said = [message.get(tags["role_tag"]) for message in messages]
    tags |= {tag: TAGS[tag] for tag in known["roles"]} | _found(known["roles"], said)
    formatting = "openai" if "tool_calls" in members or "tool" in said else "sharegpt"
    answers = [key for key in ANSWERS[stage] if key != "response"]
    named = _entry(stage, columns, ("messages", "system", "tools", *answers))
    entry = {"formatting": formatting, **named, "tags": tags}
    return Format("ShareGPT" if tags["role_tag"] == "from" else "ChatML messages", stage, entry)


def _entry(stage: str, columns: Mapping[str, str], keys: Iterable[str]) -> dict[str, Any]:
    """What the entry says of the stage and of those columns that are there."""
    named = {"columns": {key: columns[key] for key in keys if key in columns}}
    return {"ranking": True, **named} if stage == "rm" else named


def _all_messages(rows: Rows, columns: Mapping[str, str]) -> Iterator[dict[Any, Any]]:
    for row in rows:
        talk = row.get(columns.get("messages"))
        pair = [row.get(columns.get(key)) for key in ("chosen", "rejected")]
        yield from (item for item in [*(talk if isinstance(talk, list) else ()), *pair] if isinstance(item, dict))

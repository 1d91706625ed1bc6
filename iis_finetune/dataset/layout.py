"""How a data set's rows are laid out: LLaMA-Factory's words for columns, tags and file types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Source of every table here: LLaMA-Factory, data/parser.py and extras/constants.py, read 2026-11.
REGISTRY_FILE = "dataset_info.json"
HUB_KEYS = ("hf_hub_url", "ms_hub_url", "om_hub_url")
SOURCE_KEYS = (*HUB_KEYS, "script_url", "cloud_file_name", "file_name")
OPTION_KEYS = ("formatting", "ranking", "subset", "split", "folder", "num_samples", "columns", "tags")
FORMATTINGS = ("alpaca", "sharegpt", "openai")
FILE_TYPES = {"arrow": "arrow", "csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet", "txt": "text"}
COLUMN_KEYS = (
    *("prompt", "query", "response", "history", "messages", "system", "tools"),
    *("images", "videos", "audios", "chosen", "rejected", "kto_tag"),
)
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}  # by default
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
ROLES = ("user", "assistant", "observation", "function", "system")


@dataclass(frozen=True)
class Layout:
    """One entry's formatting, the columns and tags that it names, and which role each of its role words stands for."""

    formatting: str
    ranking: bool
    columns: Mapping[str, str]
    tags: Mapping[str, str]
    roles: Mapping[Any, str]


def layout_of(entry: Mapping[str, Any]) -> Layout:
    """The layout LLaMA-Factory sees: a `columns` or `tags` block that is there has no defaults."""
    columns, tags = (_named(entry.get(block), usual) for block, usual in (("columns", COLUMNS), ("tags", TAGS)))
    roles = {tags.get(f"{role}_tag"): role for role in ROLES}
    return Layout(entry.get("formatting") or "alpaca", bool(entry.get("ranking")), columns, tags, roles)


def _named(block: Any, usual: Mapping[str, str]) -> Mapping[str, str]:
    return (
        {key: str(word) for key, word in block.items() if word not in (None, "")} if isinstance(block, dict) else usual
    )


def stage_of(entry: Any) -> str:
    """The stage that the columns of a registered data set are for."""
    layout = layout_of(entry if isinstance(entry, dict) else {})
    if layout.ranking:
        return "rm"
    if "kto_tag" in layout.columns:
        return "kto"
    return "sft" if "response" in layout.columns or layout.formatting != "alpaca" else "pt"


@dataclass(frozen=True)
class Source:
    """A registered data set: its files here, their type, its layout."""

    name: str
    files: tuple[Path, ...]
    file_type: str
    layout: Layout

"""How a data set's rows are laid out: LLaMA-Factory's words for columns, tags and file types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import Place

# Source of every table here: LLaMA-Factory 0.9.5, data/parser.py and extras/constants.py, read 2026-11.
REGISTRY_FILE = "dataset_info.json"
HUB_KEYS = ("hf_hub_url", "ms_hub_url", "om_hub_url")
SOURCE_KEYS = (*HUB_KEYS, "script_url", "cloud_file_name", "file_name")
OPTION_KEYS = ("formatting", "ranking", "subset", "split", "folder", "num_samples", "columns", "tags")
FORMATTINGS = ("alpaca", "sharegpt", "openai")
FILE_TYPES = {"arrow": "arrow", "csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet", "txt": "text"}
MEDIA = ("images", "videos", "audios")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column of a row holds what; None is a column that is not there."""

    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None


@dataclass(frozen=True, slots=True)
class Tags:
    """The words that messages use for the speaker, the text and each role."""

    role_tag: str | None = "from"
    content_tag: str | None = "value"
    user_tag: str | None = "human"
    assistant_tag: str | None = "gpt"
    observation_tag: str | None = "observation"
    function_tag: str | None = "function_call"
    system_tag: str | None = "system"


COLUMN_KEYS = tuple(column.name for column in fields(Columns))
TAG_KEYS = tuple(column.name for column in fields(Tags))


@dataclass(frozen=True, slots=True)
class Layout:
    """Formatting, columns and tags of one entry of dataset_info.json."""

    formatting: str = "alpaca"
    ranking: bool = False
    columns: Columns = Columns()
    tags: Tags = Tags()


def layout_of(entry: Mapping[str, Any]) -> Layout:
    """The layout LLaMA-Factory sees: a `columns` or `tags` block that is there has no defaults."""
    given_columns, given_tags = entry.get("columns"), entry.get("tags")
    columns = Columns() if given_columns is None else Columns(**{key: given_columns.get(key) for key in COLUMN_KEYS})
    tags = Tags() if given_tags is None else Tags(**{key: given_tags.get(key) for key in TAG_KEYS})
    return Layout(entry.get("formatting") or "alpaca", bool(entry.get("ranking")), columns, tags)


def stage_of(entry: Any) -> str:
    """The stage that the columns of a registered data set are for."""
    layout = layout_of(entry) if isinstance(entry, dict) else Layout()
    if layout.ranking:
        return "rm"
    if layout.columns.kto_tag:
        return "kto"
    return "sft" if layout.columns.response or layout.formatting != "alpaca" else "pt"


@dataclass(frozen=True)
class Source:
    """A registered data set: its files here (none for one on a hub), its layout, and where it is registered."""

    name: str
    files: tuple[Path, ...]
    file_type: str
    layout: Layout
    place: Place = field(default_factory=Place)

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

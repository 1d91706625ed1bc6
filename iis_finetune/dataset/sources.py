"""A registered data set: how its rows are laid out, in LLaMA-Factory's words, and what a training does with them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..arguments import Settings, Template, find_template
from ..errors import did_you_mean

# Source of every table here: LLaMA-Factory, data/parser.py and extras/constants.py, read 2026-11.
REGISTRY_FILE = "dataset_info.json"
HUB_KEYS = ("hf_hub_url", "ms_hub_url", "om_hub_url")
SOURCE_KEYS = (*HUB_KEYS, "script_url", "cloud_file_name", "file_name")
OPTION_KEYS = ("formatting", "ranking", "subset", "split", "folder", "num_samples", "columns", "tags")
LAYOUT_KEYS = ("formatting", "ranking", "columns", "tags")
FORMATTINGS = ("alpaca", "sharegpt", "openai")
FILE_TYPES = {"arrow": "arrow", "csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet", "txt": "text"}
COLUMN_KEYS = (
    *("prompt", "query", "response", "history", "messages", "system", "tools"),
    *("images", "videos", "audios", "chosen", "rejected", "kto_tag"),
)
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}  # by default
# The words for --columns, a field by LLaMA-Factory's key or by the column that it reads by default.
FIELDS = {**{usual: key for key, usual in COLUMNS.items()}, "text": "text", **{key: key for key in COLUMN_KEYS}}
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
LIMIT = 200_000  # rows that are read when not all are asked for
SAMPLE = 1000  # rows that a smoke run reads
REWRITTEN = ".utf8.jsonl"


class Layout(Struct, frozen=True):
    """One entry's formatting, the columns and tags that it names, and which role each of its role words stands for."""

    formatting: str
    ranking: bool
    columns: Mapping[str, str]
    tags: Mapping[str, str]
    roles: Mapping[Any, str]

    def named(self, *keys: str) -> list[str]:
        """The columns that these keys name, as far as they do."""
        return [self.columns[key] for key in keys if key in self.columns]


class Source(Struct, frozen=True):
    """The files of a data set here, their type, their layout."""

    name: str
    files: tuple[Path, ...]
    file_type: str
    layout: Layout


class Options(Struct, frozen=True):
    """LLaMA-Factory's arguments by their names; `limit` is how many rows are read at most (None: all).

    `generate` is its predict_with_generate. `cutoff_len` None cuts nothing, `default_system` None is the template's.
    """

    stage: str
    limit: int | None = LIMIT
    max_samples: int | None = None
    generate: bool = False
    template: Template | None = None
    cutoff_len: int | None = None
    default_system: str | None = None
    enable_thinking: bool = True
    mask_history: bool = False
    packing: bool = False
    keyed: bool = False  # whether the reading keeps a key of each row, by which equal rows are found

    @property
    def processing(self) -> str:
        """Which of LLaMA-Factory's data processors the rows go through."""
        return "generate" if self.generate or self.stage == "ppo" else "rm" if self.stage == "dpo" else self.stage


def data_file(word: str) -> Path | None:
    """The file that a word names by its path, if it does."""
    path = Path(word)
    try:
        path = path.expanduser()
        return path if path.suffix[1:].lower() in FILE_TYPES and path.is_file() else None
    except (OSError, RuntimeError):  # too long for a name, or the home of a user that there is not
        return None


def origin_of(rows: Path) -> Path | None:
    """What rows were written anew from, if it lies beside them: their name begins with all of its name."""
    origin = rows.parent / rows.name.removesuffix(REWRITTEN)
    return origin if rows.name.endswith(REWRITTEN) and origin.exists() else None


def correction(path: Path) -> str:
    """The fix for a data file that is not there: a file beside it of nearly this name, or what there is."""
    there = sorted(each.name for each in path.parent.glob("*") if each.suffix[1:].lower() in FILE_TYPES)
    return did_you_mean(path.name, there, f"data files in {path.parent}: {', '.join(there[:12]) or 'none'}")


def layout_of(entry: Mapping[str, Any]) -> Layout:
    """The layout LLaMA-Factory sees: a `columns` or `tags` block that is there has no defaults."""
    columns, tags = (_named(entry.get(block), usual) for block, usual in (("columns", COLUMNS), ("tags", TAGS)))
    roles = {tags.get(f"{role}_tag"): role for role in ROLES}
    return Layout(entry.get("formatting") or "alpaca", bool(entry.get("ranking")), columns, tags, roles)


def _named(block: Any, usual: Mapping[str, str]) -> Mapping[str, str]:
    named = block.items() if isinstance(block, dict) else usual.items()
    return {key: str(word) for key, word in named if word not in (None, "")}


def stage_of(entry: Any) -> str:
    """The stage that the columns of a registered data set are for."""
    layout = layout_of(entry if isinstance(entry, dict) else {})
    if layout.ranking:
        return "rm"
    if "kto_tag" in layout.columns:
        return "kto"
    return "sft" if "response" in layout.columns or layout.formatting != "alpaca" else "pt"


def options_of(settings: Settings, stage: str, limit: int | None = LIMIT) -> Options:
    """What a training with these settings does with rows; without a word on packing, texts of stage pt are packed."""
    packing = stage == "pt" if settings["packing"] is None else settings["packing"]
    return Options(
        stage,
        limit,
        max_samples=settings["max_samples"],
        template=find_template(str(settings["template"])),
        cutoff_len=settings["cutoff_len"],
        default_system=settings["default_system"],
        enable_thinking=settings["enable_thinking"] is not False,
        mask_history=settings["mask_history"],
        packing=packing or settings["neat_packing"],
    )

"""Register one's own data file: recognise its format and write its entry into dataset_info.json."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..arguments import TABLES
from ..errors import Place, Problem, ProblemsFound, errors_of
from ..runs import write
from .findings import Fault
from .registry import Registry, read_registry
from .rows import RowReport, check_rows
from .sources import FILE_TYPES, TAGS, Options, Source, layout_of
from .streams import read_rows

LOOKED_AT = 2000  # rows that decide the format
FORMATS = (
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


@dataclass(frozen=True)
class Added:
    """What was registered: its name, the format recognised, its entry; the report's problems are warnings."""

    name: str
    format: Format
    entry: Mapping[str, Any]
    registry: Path
    report: RowReport


def add(file: Path, data_dir: Path, name: str | None = None, copy: bool = False) -> Added:
    """Register a JSON, JSONL, CSV, text, Parquet or Arrow file; with `copy` it is put into the data folder as well.

    Raises ProblemsFound, with nothing written, when the file cannot be used, is not recognised or its name is taken.
    """
    registry = read_registry(data_dir)
    if registry.file.exists() and not registry.entries and errors_of(registry.problems):
        raise ProblemsFound(registry.problems)
    name = name or re.sub(r"[^\w-]+", "_", file.stem)
    _check_name(name, file, registry)
    rows, seen = _look(file)
    found = recognise(rows, seen)
    if found is None:
        columns = ", ".join(seen) or "none"
        raise _refused(f"the format is not recognised; the columns are: {columns}", f"needed are {FORMATS}", file)
    entry = {"file_name": _file_name(file, data_dir, copy), **found.entry}
    report = check_rows(Source(name, (file,), FILE_TYPES[file.suffix[1:]], layout_of(entry)), Options(found.stage))
    if errors_of(report.problems):
        raise ProblemsFound(report.problems)
    if copy:
        _copy(file, data_dir / file.name)
    _write(registry, name, entry)
    return Added(name, found, entry, registry.file, report)


def _refused(what: str, fix: str, file: Path) -> ProblemsFound:
    return ProblemsFound([Problem(what, fix, Place(str(file)))])


def _check_name(name: str, file: Path, registry: Registry) -> None:
    allowed = ", ".join(f".{suffix}" for suffix in FILE_TYPES)
    if file.is_dir():
        fix = f"give one file ({allowed}), or write the entry with the folder as file_name into {registry.file}"
        raise _refused(f"{file} is a folder", fix, file)
    if not file.is_file():
        raise ProblemsFound([Problem(f"{file} is not there", "name a file", Place(str(file)), kind="missing", code=2)])
    if file.suffix[1:] not in FILE_TYPES:
        raise _refused(f"LLaMA-Factory cannot load '{file.suffix}' files", f"convert it to one of {allowed}", file)
    if not re.fullmatch(r"[\w.-]+", name):
        raise _refused(f"'{name}' cannot name a data set", "use letters, digits, _ and -", file)
    if name in registry.entries:
        what, fix = f"a data set '{name}' is registered already", "give another name: --name NAME"
        raise ProblemsFound([registry.entries[name].problem(what, fix)])


def _look(file: Path) -> tuple[list[dict[Any, Any]], list[str]]:
    """The first rows, and the columns that any of them has."""
    rows, seen = [], dict[str, None]()
    for row in islice(read_rows(file, FILE_TYPES[file.suffix[1:]]), LOOKED_AT):
        if isinstance(row.value, Fault):
            what, fix = row.value.sentence(str(file))
            raise ProblemsFound([Problem(what, fix, Place(str(file), row.line, f"row {row.number}"))])
        if isinstance(row.value, dict):
            rows.append(row.value)
            seen |= dict.fromkeys(row.value)
    if not rows:
        raise _refused("the file holds no rows", "put the data into it: one JSON object a row", file)
    return rows, list(seen)


def _file_name(file: Path, data_dir: Path, copy: bool) -> str:
    """Relative to the data folder for what lies in it, else the full path: LLaMA-Factory takes both."""
    if copy:
        return file.name
    try:
        return file.resolve().relative_to(data_dir.resolve()).as_posix()
    except ValueError:
        return str(file.resolve())


def _copy(file: Path, target: Path) -> None:
    if target.exists() and file.resolve() != target.resolve():
        raise _refused(f"{target} is there already", "rename the file, or leave out --copy", file)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copyfile(file, target)


def _write(registry: Registry, name: str, entry: Mapping[str, Any]) -> None:
    """Put the entry behind the last one; all other text stays as it is. ASCII only: any locale can read it."""
    written = json.dumps({name: entry}, indent=2)[1:-2]
    text = registry.text.rstrip() or "{}"
    before = text[: text.rindex("}")].rstrip()
    comma = "," if registry.entries else ""
    registry.file.parent.mkdir(parents=True, exist_ok=True)
    write(registry.file, f"{before}{comma}{written}\n}}\n")


def recognise(rows: Rows, seen: Collection[str]) -> Format | None:
    """The format of these rows, whose columns are `seen`; None when nothing fits."""
    known = tomllib.loads((TABLES / "row_formats.toml").read_text("utf-8"))
    columns = _found(known["columns"], seen)
    labelled = any(isinstance(row.get(columns.get("kto_tag")), bool) for row in rows)
    stage = "rm" if {"chosen", "rejected"} <= columns.keys() else "kto" if labelled else "sft"
    if any(_is_messages(row.get(columns.get("messages"))) for row in rows):
        return _talk(list(_all_messages(rows, columns)), columns, stage, known)
    if stage == "rm" and not any(isinstance(row.get(columns["chosen"]), str) for row in rows):
        return None
    if stage != "rm" and "response" not in columns and "text" in columns:
        return Format("plain text", "pt", {"columns": {"prompt": columns["text"]}})
    return _single(columns, stage)


def _found(known: Mapping[str, Iterable[str]], there: Collection[Any]) -> dict[str, str]:
    """Which name of each thing is there, if any."""
    found = {key: next((name for name in names if name in there), None) for key, names in known.items()}
    return {key: name for key, name in found.items() if name is not None}


def _single(columns: dict[str, str], stage: str) -> Format | None:
    """One question and its answer a row."""
    if not {"prompt", *ANSWERS[stage]} <= columns.keys():
        return None
    if columns.get("query") == columns["prompt"]:
        del columns["query"]
    keys = ("prompt", "query", "history", "system", "tools", *ANSWERS[stage])
    return Format(NAMES[stage], stage, {**_ranking(stage), **_named(columns, keys)})


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
    entry = {"formatting": formatting, **_ranking(stage)}
    entry |= {**_named(columns, ("messages", "system", "tools", *answers)), "tags": tags}
    return Format("ShareGPT" if tags["role_tag"] == "from" else "ChatML messages", stage, entry)


def _ranking(stage: str) -> dict[str, Any]:
    return {"ranking": True} if stage == "rm" else {}


def _named(columns: Mapping[str, str], keys: Iterable[str]) -> dict[str, Any]:
    return {"columns": {key: columns[key] for key in keys if key in columns}}


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _all_messages(rows: Rows, columns: Mapping[str, str]) -> Iterator[dict[Any, Any]]:
    for row in rows:
        talk = row.get(columns.get("messages"))
        pair = [row.get(columns.get(key)) for key in ("chosen", "rejected")]
        yield from (item for item in [*(talk if isinstance(talk, list) else ()), *pair] if isinstance(item, dict))

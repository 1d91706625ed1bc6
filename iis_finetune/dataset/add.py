"""Register one's own data file: recognise its format and write its entry into dataset_info.json."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import Place, Problem, ProblemsFound, errors_of
from ..runs import write
from .faults import Fault
from .formats import NEEDED, Format, recognise
from .readers import read_rows
from .registry import Registry, read_registry
from .rows import Reading, check_rows
from .sources import FILE_TYPES, Options, Source, layout_of

LOOKED_AT = 2000  # rows that decide the format


@dataclass(frozen=True)
class Added:
    """What was registered: its name, the format recognised, its entry; the reading's problems are warnings."""

    name: str
    format: Format
    entry: Mapping[str, Any]
    registry: Path
    reading: Reading


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
        raise _refused(f"the format is not recognised; the columns are: {columns}", f"needed are {NEEDED}", file)
    entry = {"file_name": _file_name(file, data_dir, copy), **found.entry}
    reading = check_rows(Source(name, (file,), FILE_TYPES[file.suffix[1:]], layout_of(entry)), Options(found.stage))
    if errors_of(reading.problems):
        raise ProblemsFound(reading.problems)
    if copy:
        _copy(file, data_dir / file.name)
    _write(registry, name, entry)
    return Added(name, found, entry, registry.file, reading)


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

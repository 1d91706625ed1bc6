"""Register one's own data file: recognise its format and write its entry into dataset_info.json."""

from __future__ import annotations

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
from .cases import CASES
from .convert import Fault
from .files import read_rows
from .formats import NEEDED, recognise
from .layout import FILE_TYPES, REGISTRY_FILE, Source, layout_of
from .registry import Registry, read_registry
from .rows import RowOptions, RowReport, check_rows

LOOKED_AT = 2000  # rows that decide the format


@dataclass(frozen=True)
class Added:
    """What was registered; `problems` are warnings about its rows, `stage` the one that its format is for."""

    name: str
    format: str
    stage: str
    entry: Mapping[str, Any]
    registry: Path
    report: RowReport

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self.report.problems


def add(file: Path, data_dir: Path, name: str | None = None, copy: bool = False) -> Added:
    """Register a JSON, JSONL, CSV, text, Parquet or Arrow file; with `copy` it is put into the data folder as well.

    Raises ProblemsFound, with nothing written, when the file cannot be used, is not recognised or its name is taken.
    """
    registry = _registry(data_dir)
    name = name or re.sub(r"[^\w-]+", "_", file.stem)
    _check_name(name, file, registry)
    rows, seen = _look(file)
    found = recognise(rows, seen)
    if found is None:
        columns = ", ".join(seen) or "none"
        raise _refused(f"the format is not recognised; the columns are: {columns}", f"needed are {NEEDED}", file)
    entry = {"file_name": _file_name(file, data_dir, copy), **found.entry}
    report = check_rows(Source(name, (file,), FILE_TYPES[file.suffix[1:]], layout_of(entry)), RowOptions(found.stage))
    if errors_of(report.problems):
        raise ProblemsFound(report.problems)
    if copy:
        _copy(file, data_dir / file.name)
    _write(registry, name, entry)
    return Added(name, found.name, found.stage, entry, registry.file, report)


def _refused(what: str, fix: str, file: Path) -> ProblemsFound:
    return ProblemsFound([Problem(what, fix, Place(str(file)))])


def _registry(data_dir: Path) -> Registry:
    if not (data_dir / REGISTRY_FILE).exists():
        return Registry(data_dir / REGISTRY_FILE, "", {})
    registry = read_registry(data_dir)
    if not registry.text:
        raise ProblemsFound(registry.problems)
    if broken := [problem for problem in errors_of(registry.problems) if not registry.entries]:
        raise ProblemsFound(broken)
    return registry


def _check_name(name: str, file: Path, registry: Registry) -> None:
    if not file.is_file():
        raise ProblemsFound([Problem(f"{file} is not there", "name a file", Place(str(file)), kind="missing", code=2)])
    if file.suffix[1:] not in FILE_TYPES:
        allowed = ", ".join(f".{suffix}" for suffix in FILE_TYPES)
        raise _refused(f"LLaMA-Factory cannot load '{file.suffix}' files", f"convert it to one of {allowed}", file)
    if not re.fullmatch(r"[\w.-]+", name):
        raise _refused(f"'{name}' cannot name a data set", "use letters, digits, _ and -", file)
    if name in registry.entries:
        what, fix = f"a data set '{name}' is registered already", "give another name: --name NAME"
        raise ProblemsFound([Problem(what, fix, registry.place(name))])


def _look(file: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The first rows, and the columns that any of them has."""
    rows, seen = [], dict[str, None]()
    for row in islice(read_rows(file, FILE_TYPES[file.suffix[1:]]), LOOKED_AT):
        if isinstance(row.value, Fault):
            _, what, fix = CASES[row.value.case]
            words = {"detail": row.value.detail, "file": str(file)}
            place = Place(str(file), row.line, f"row {row.number}")
            raise ProblemsFound([Problem(what.format(**words), fix.format(**words), place)])
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

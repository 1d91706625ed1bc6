"""Register one's own data: recognise a file's format and write its entry into dataset_info.json."""

import json
import re
import shutil
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..errors import Place, Problem, ProblemsFound, errors_of
from ..runs import write
from .faults import Fault
from .formats import NEEDED, Format, recognise
from .readers import read_rows
from .registry import Registry, read_registry
from .rows import Progress, Reading, check_rows
from .sources import FILE_TYPES, Options, Source, correction, data_file, layout_of

LOOKED_AT = 2000  # rows that decide the format
ROWS = {"csv": "a line of column names, then a row a line", "text": "a text a line", "json": "one JSON object a row"}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class OwnFile(Struct, frozen=True):
    """A data file, the name it is wanted under (None: its own), and whether as a `copy` in the data folder."""

    path: Path
    name: str | None = None
    copy: bool = False


class Added(Struct, frozen=True):
    """What was registered: its source, the format recognised, its entry; the reading's problems are warnings."""

    source: Source
    format: Format
    entry: Mapping[str, Any]
    registry: Path
    reading: Reading


def add(own: OwnFile, data_dir: Path, progress: Progress | None = None) -> Added:
    """Register a JSON, JSONL, CSV, text, Parquet or Arrow file; with `copy` it is put into the data folder as well.

    Raises ProblemsFound, with nothing written, when the file cannot be used, is not recognised or its name is taken.
    """
    registry, file = _open(data_dir), own.path
    name = own.name or _name_of(file.stem)
    _check_file(file)
    _check_name(name, registry, Place(str(file)))
    rows, seen = _look(file)
    found = recognise(rows, seen)
    if found is None:
        columns = ", ".join(seen) or "none"
        raise _refused(f"the format is not recognised; the columns are: {columns}", f"needed are {NEEDED}", file)
    entry = {"file_name": _file_name(own, data_dir), **found.entry}
    source = Source(name, (file,), FILE_TYPES[file.suffix[1:]], layout_of(entry))
    reading = check_rows(source, Options(found.stage), progress=progress)
    if errors_of(reading.problems):
        raise ProblemsFound(reading.problems)
    if own.copy:
        _copy(file, data_dir / file.name)
    _write(registry, name, entry)
    return Added(source, found, entry, registry.file, reading)


def register_named(word: str, data_dir: Path) -> tuple[str, str]:
    """The name of a data set that may be given as a path or a hub's id, and a sentence if it was registered just now.

    Raises ProblemsFound as `add` does.
    """
    registry, file = read_registry(data_dir), data_file(word)
    if word in registry.entries or not (file or HUB_ID.fullmatch(word)) or (not file and Path(word).parent.is_dir()):
        return word, ""
    entry = {"file_name": _file_name(OwnFile(file), data_dir)} if file else {"hf_hub_url": word}
    known = [each for each in registry.entries.values() if isinstance(each.value, dict)]
    if same := [each.name for each in known if entry.items() <= each.value.items()]:
        return same[0], ""
    if file:
        added = add(OwnFile(file), data_dir)
        return added.source.name, f"registered {word} as '{added.source.name}': {added.format.name} format"
    name = _name_of(Path(word).name)
    _check_name(name, registry, Place(word))
    _write(_open(data_dir), name, entry)
    return name, f"registered {word} as '{name}': on Hugging Face, columns instruction, input and output"


def _open(data_dir: Path) -> Registry:
    """The registry, unless it cannot be added to: raises ProblemsFound."""
    registry = read_registry(data_dir)
    if registry.file.exists() and not registry.entries and errors_of(registry.problems):
        raise ProblemsFound(registry.problems)
    return registry


def _refused(what: str, fix: str, file: Path) -> ProblemsFound:
    return ProblemsFound([Problem(what, fix, Place(str(file)))])


def _name_of(stem: str) -> str:
    return re.sub(r"[^\w-]+", "_", stem)


def _check_file(file: Path) -> None:
    allowed, suffix = ", ".join(f".{suffix}" for suffix in FILE_TYPES), file.suffix
    if file.is_dir():
        fix = f"give one file ({allowed}), or write the entry with the folder as file_name into dataset_info.json"
        raise _refused(f"{file} is a folder", fix, file)
    if not file.is_file():
        what, where = f"{file} is not there", Place(str(file))
        raise ProblemsFound([Problem(what, correction(file), where, kind="missing", code=2)])
    if suffix[1:] not in FILE_TYPES:
        renamed = f"run: mv '{file}' '{file.with_suffix(suffix.lower())}'"
        fix = renamed if suffix[1:].lower() in FILE_TYPES else f"convert it to one of {allowed}"
        raise _refused(f"LLaMA-Factory cannot load '{suffix}' files", fix, file)


def _check_name(name: str, registry: Registry, place: Place) -> None:
    if not re.fullmatch(r"[\w.-]+", name):
        raise ProblemsFound([Problem(f"'{name}' cannot name a data set", "use letters, digits, _ and -", place)])
    if name in registry.entries:
        what = f"a data set '{name}' is registered already"
        fix = "give another name: iis-finetune data add FILE --name NAME"
        raise ProblemsFound([registry.entries[name].problem(what, fix)])


def _look(file: Path) -> tuple[list[dict[Any, Any]], list[str]]:
    """The first rows, and the columns that any of them has."""
    rows, seen, file_type = [], dict[str, None](), FILE_TYPES[file.suffix[1:]]
    with file.open("rb") as opened:
        for row in islice(read_rows(opened, file_type), LOOKED_AT):
            if isinstance(row.value, Fault):
                what, fix = row.value.sentence(str(file))
                raise ProblemsFound([Problem(what, fix, Place(str(file), row.line, row.key))])
            if isinstance(row.value, dict):
                rows.append(row.value)
                seen |= dict.fromkeys(row.value)
    if not rows:
        fix = f"put the data into it: {ROWS.get(file_type, 'write the file again')}"
        raise _refused("the file holds no rows", fix, file)
    return rows, list(seen)


def _file_name(own: OwnFile, data_dir: Path) -> str:
    """Relative to the data folder for what lies in it, else the full path: LLaMA-Factory takes both."""
    if own.copy:
        return own.path.name
    whole, folder = own.path.resolve(), data_dir.resolve()
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(whole)


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

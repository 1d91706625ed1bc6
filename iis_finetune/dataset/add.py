"""Register one's own data: recognise a file's format and write its entry into dataset_info.json."""

import filecmp
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from ..errors import Place, Problem, ProblemsFound, did_you_mean, errors_of
from ..process import scratch_folder
from .encodings import refused
from .faults import Fault
from .formats import NEEDED, Format, doubt, guess, recognise
from .material import Written, changed, forms_of, rows_of
from .registry import Registered, Registry, enter, read_registry
from .rows import Progress, Reading, check_rows
from .sources import FILE_TYPES, HUB_KEYS, LAYOUT_KEYS, REWRITTEN, Options, Source, data_file, layout_of, origin_of

LOOKED_AT = 2000  # rows that decide the format
ROWS = {"csv": "a line of column names, then a row a line", "text": "a text a line", "json": "one JSON object a row"}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class OwnFile(Struct, frozen=True, kw_only=True):
    """A data file or a folder of them, and the name it is wanted under (None: its own).

    `copy`: into the data folder. `columns`: which column each field is read from. `encoding`: what it is written in.
    What is left out is recognised.
    """

    path: Path
    name: str | None = None
    copy: bool = False
    columns: Mapping[str, str] = {}
    encoding: str | None = None

    @property
    def stem(self) -> str:
        """The name without what says how a file is written, or whose a hub's data set is."""
        name = self.path.name
        return name.rpartition("--")[2] if self.path.is_dir() else re.sub(r"\.\w+(\.gz)?$", "", name)


class Found(Struct, frozen=True):
    """What own data are: how each file is written, and the format of their rows.

    `usable`: LLaMA-Factory can read them where they lie, in `place`; `lifts`: members of objects are made columns.
    """

    forms: list[Written]
    format: Format
    place: Path
    usable: bool
    lifts: bool = False


class Added(Struct, frozen=True):
    """What was registered: what was found, its source, its entry; the reading's problems are warnings."""

    found: Found
    source: Source
    entry: Mapping[str, Any]
    registry: Path
    reading: Reading


class Unregistered(Struct, frozen=True):
    """A data set that is named by its file or by its `hub_id`: the name and entry that it would be registered by."""

    word: str
    name: str
    entry: Mapping[str, Any]
    hub_id: bool = False


def add(own: OwnFile, data_dir: Path, progress: Progress | None = None) -> Added:
    """Register one's own data; what LLaMA-Factory cannot read is written once as UTF-8 JSONL, beside it or as `copy`.

    Rows that were written before from this file are written anew, and kept as .old, .old2, ...; `columns` change their
    entry, in which stays what does not say how rows are read.
    Raises ProblemsFound, with nothing written, when they cannot be used, are not recognised or their name is taken.
    """
    registry, name = _open(data_dir), own.name or _name_of(own.stem)
    if old := _check_name(name, registry, Place(str(own.path))):
        stays = {key: each for key, each in old.value.items() if not own.columns or key not in LAYOUT_KEYS}
        own = structs.replace(own, copy=False, columns=own.columns or old.value.get("columns", {}))
    found = structs.replace(look(own), usable=False) if old else look(own)
    target = _target(own, found, data_dir)
    entry = {"file_name": _file_name(target, data_dir), **found.format.entry, **(stays if old else {})}
    with _made(found, target, old is not None) as files:
        source = Source(name, files, FILE_TYPES[files[0].suffix[1:]], layout_of(entry))
        reading = check_rows(source, Options(found.format.stage), progress=progress)
        if target != found.place:  # rows are told apart by their numbers, which both files share
            told = tuple(replace(each, where=Place(str(own.path), key=each.where.key)) for each in reading.problems)
            reading, source = structs.replace(reading, problems=told), structs.replace(source, files=(target,))
        if errors_of(reading.problems):
            raise ProblemsFound(reading.problems)
    enter(data_dir, {name: entry}, old)
    return Added(found, source, entry, registry.file, reading)


def look(own: OwnFile) -> Found:
    """Recognise own data by their first rows. Raises ProblemsFound."""
    forms = forms_of(own.path, own.encoding)
    rows, seen = _first_rows(forms, own.path)
    deep = [column for row in rows[:1] for column in _lifted(row) if column not in seen]
    for column in own.columns.values():
        if column not in (*seen, *deep):
            raise refused(f"there is no column '{column}'", did_you_mean(column, seen, _listed(seen, deep)), own.path)
    lifts = not set(own.columns.values()) <= set(seen)
    if not own.columns and (question := doubt(seen, own.path)):
        raise refused(*question, own.path)
    found = recognise([_lifted(row) for row in rows] if lifts else rows, seen, own.columns)
    if found is None:
        flat = [name for name, item in _lifted(rows[0]).items() if isinstance(item, str)]
        asked = f"; or say which is which: {guess(flat, own.path)}" if flat else ""
        raise refused(f"the format is not recognised; {_listed(seen, deep)}", f"needed are {NEEDED}{asked}", own.path)
    files = [form.file for form in forms]
    place = files[0] if len(files) == 1 else files[0].parent
    read = [column for key, column in found.entry["columns"].items() if key != "kto_tag"]
    if any(isinstance(row.get(column), int | float) for row in rows for column in read):
        forms = [structs.replace(form, numbers=form.file_type == "csv") for form in forms]
    alone = place in files or (not own.copy and sorted(place.iterdir()) == files)
    usable = alone and all(form.usable and form.file_type == forms[0].file_type for form in forms) and not lifts
    return Found(forms, found, place, usable, lifts)


def unregistered(word: str, data_dir: Path, others: Iterable[Unregistered]) -> tuple[str, Unregistered | None]:
    """The name of a data set that may be given as a path or a hub's id, and what it would be if it is not registered.

    Nothing is written; `others` would be registered too. Raises ProblemsFound for a file that has to be rewritten.
    """
    registry, file = read_registry(data_dir, None, entries_of(others)), data_file(word)
    if word in registry.entries or not (file or HUB_ID.fullmatch(word)) or (not file and Path(word).parent.is_dir()):
        return word, None
    own = OwnFile(path=file or data_dir / word.replace("/", "--"))
    places = [own.path.resolve(), _beside(own).resolve()]
    for each in registry.entries.values():
        given = each.value if isinstance(each.value, dict) else {}
        lies = (data_dir / str(given.get("file_name", "."))).resolve()
        if lies in places or (not file and (places[0] in lies.parents or word in map(given.get, HUB_KEYS))):
            return each.name, None
    name = _name_of(own.stem if file else Path(word).name)
    _check_name(name, registry, Place(word))
    if not file:
        return name, Unregistered(word, name, {"hf_hub_url": word}, hub_id=True)
    found = look(own)
    if not found.usable:
        what = f"LLaMA-Factory cannot read {word} itself: {found.forms[0]}"
        raise refused(what, f"run: iis-finetune data add {shlex.quote(word)}", file)
    return name, Unregistered(word, name, {"file_name": _file_name(file, data_dir), **found.format.entry})


def register(new: Iterable[Unregistered], data_dir: Path) -> None:
    """Write the entries of data sets that were named by their files."""
    if entries := entries_of(each for each in new if not each.hub_id):
        enter(data_dir, entries)


def entries_of(new: Iterable[Unregistered]) -> dict[str, Mapping[str, Any]]:
    return {each.name: each.entry for each in new}


def _open(data_dir: Path) -> Registry:
    """The registry, unless it cannot be added to: raises ProblemsFound."""
    registry = read_registry(data_dir)
    if registry.file.exists() and not registry.entries and errors_of(registry.problems):
        raise ProblemsFound(registry.problems)
    return registry


def _name_of(stem: str) -> str:
    return re.sub(r"[^\w-]+", "_", stem)


def _check_name(name: str, registry: Registry, place: Place) -> Registered | None:
    """The entry of this name, if its rows were written from this very file; raises ProblemsFound for another's name."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise ProblemsFound([Problem(f"'{name}' cannot name a data set", "use letters, digits, _ and -", place)])
    entry, own = registry.entries.get(name), Path(str(place.file)).resolve()
    if entry:
        its_own = entry.value.get("file_name", "") if isinstance(entry.value, dict) else ""
        lies = (registry.file.parent / str(its_own)).resolve()
        fix = "give another name: iis-finetune data add FILE --name NAME"
        if lies == own:
            fix = f"nothing need be done: this very file is read anew at every start; else {fix}"
        if origin_of(lies) != own:
            raise ProblemsFound([entry.problem(f"a data set '{name}' is registered already", fix)])
    return entry


def _first_rows(forms: list[Written], path: Path) -> tuple[list[dict[Any, Any]], list[str]]:
    """The first rows, and the columns that any of them has."""
    rows = list(islice((row for form in forms for row in _objects(form)), LOOKED_AT))
    if not rows:
        fix = f"put the data into it: {ROWS.get(forms[0].file_type, 'write the file again')}"
        raise refused("the file holds no rows", fix, path)
    return rows, list(dict.fromkeys(column for row in rows for column in row))


def _objects(form: Written) -> Iterator[dict[Any, Any]]:
    """The rows; raises ProblemsFound at the first that is none."""
    for row in rows_of(form):
        if not isinstance(row.value, dict):
            fault = row.value if isinstance(row.value, Fault) else Fault("not_object")
            what, fix = fault.sentence(str(form.file))
            raise ProblemsFound([Problem(what, fix, Place(str(form.file), row.line, row.key))])
        yield row.value


def _lifted(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the members of its objects as columns beside them: `data.question`."""
    objects = {key: value for key, value in row.items() if isinstance(value, dict)}
    return {**row, **{f"{key}.{name}": item for key, value in objects.items() for name, item in value.items()}}


def _listed(seen: Iterable[str], deep: Iterable[str]) -> str:
    inside = f"; inside them: {', '.join(deep)}" if deep else ""
    return f"the columns are: {', '.join(seen) or 'none'}{inside}"


def _target(own: OwnFile, found: Found, data_dir: Path) -> Path:
    """The file or folder that is registered: it lies here already, or is made."""
    if not found.usable:
        return (data_dir / _beside(own).name) if own.copy else _beside(own)
    copied = data_dir / found.place.name
    return copied if own.copy and copied.resolve() != found.place.resolve() else found.place


def _beside(own: OwnFile) -> Path:
    return own.path.with_name(f"{own.path.name}{REWRITTEN}")


@contextmanager
def _made(found: Found, target: Path, anew: bool) -> Iterator[tuple[Path, ...]]:
    """The files to register; what has to be made gets its name, which no other file has, when all went well."""
    if target == found.place:
        yield tuple(form.file for form in found.forms)
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target.parent) as parts:
            part = parts / target.name
            shutil.copyfile(found.place, part) if found.usable else _rewrite(found, part)
            yield (part,)
            if target.exists() and not filecmp.cmp(part, target, shallow=False):
                if not anew:
                    raise refused(f"{target} is there already", "rename one of the two files", found.place)
                kept = (target.with_name(f"{target.name}.old{number}") for number in chain([""], count(2)))
                target.replace(next(each for each in kept if not each.exists()))
            latest = max(changed(part), changed(origin_of(target) or part))  # which another computer's clock may tell
            os.utime(part, (latest, latest))
            part.replace(target)
    except PermissionError as error:
        if target.parent != found.place.parent:
            raise PermissionError(error.errno, error.strerror, str(target.parent)) from None
        raise refused(f"{target.parent}: {error.strerror}", "--copy writes into data/ instead", found.place) from None


def _rewrite(found: Found, part: Path) -> None:
    from orjson import dumps

    with part.open("wb") as file:
        for row in (row for form in found.forms for row in _objects(form)):
            file.write(dumps(_lifted(row) if found.lifts else row, default=str) + b"\n")


def _file_name(file: Path, data_dir: Path) -> str:
    """Relative to the data folder for what lies in it, else the full path: LLaMA-Factory takes both."""
    whole, folder = file.resolve(), data_dir.resolve()
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(whole)

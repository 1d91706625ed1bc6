"""Read data/dataset_info.json with its line numbers, and hold its entries to what LLaMA-Factory does with them."""

from __future__ import annotations

import codecs
import difflib
import json
import locale
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import Place, Problem, errors_of
from .layout import (
    COLUMN_KEYS,
    FILE_TYPES,
    FORMATTINGS,
    HUB_KEYS,
    OPTION_KEYS,
    REGISTRY_FILE,
    SOURCE_KEYS,
    TAG_KEYS,
    Source,
    layout_of,
)

SPACE = re.compile(r"\s*")
KEY = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:')
CLOUD_PREFIXES = ("s3://", "gs://", "gcs://")
PAIR_STAGES = {"rm", "dpo"}
# What an entry must map for a stage when it maps columns at all, with what LLaMA-Factory 0.9.5 does without it.
NEEDED = {
    ("alpaca", "sft"): ("response",),
    ("alpaca", "rm"): ("chosen", "rejected"),
    ("alpaca", "kto"): ("response", "kto_tag"),
    ("sharegpt", "sft"): ("messages",),
    ("sharegpt", "rm"): ("messages", "chosen", "rejected"),
    ("sharegpt", "kto"): ("messages", "kto_tag"),
}


@dataclass(frozen=True)
class Entry:
    """One data set of the registry; `lines` is where each of its keys first stands."""

    name: str
    value: Any
    line: int
    lines: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Registry:
    """data/dataset_info.json as it is; `problems` says why `entries` may be empty."""

    file: Path
    text: str
    entries: Mapping[str, Entry]
    problems: tuple[Problem, ...] = ()

    def place(self, name: str, key: str = "") -> Place:
        """The line of an entry's key, or of the entry when it has no such key."""
        entry = self.entries[name]
        if key in entry.lines:
            return Place(str(self.file), entry.lines[key], f"{name}.{key}")
        return Place(str(self.file), entry.line, name)


def read_registry(data_dir: Path, encoding: str | None = None) -> Registry:
    """Every entry with its lines; `encoding` is what LLaMA-Factory will open the file with (the locale's)."""
    file = data_dir / REGISTRY_FILE
    try:
        raw = file.read_bytes()
        text = raw.decode("utf-8")
    except OSError:
        what, fix = f"{file} is not there", "run: iis-finetune data add FILE"
        return Registry(file, "", {}, (Problem(what, fix, Place(str(file)), kind="missing", code=2),))
    except UnicodeDecodeError as error:
        place = Place(str(file), raw.count(b"\n", 0, error.start) + 1)
        return Registry(file, "", {}, (Problem(f"{file.name} is not UTF-8", "save it as UTF-8", place),))
    problems = _encoding_problems(file, raw, encoding or locale.getpreferredencoding(False))
    try:
        entries = list(_entries(text))
    except json.JSONDecodeError as error:
        place = Place(str(file), error.lineno)
        broken = Problem(f"{file.name} is not JSON: {error.msg}", f"mend column {error.colno} of this line", place)
        return Registry(file, text, {}, (*problems, broken))
    by_name = {entry.name: entry for entry in entries}
    return Registry(file, text, by_name, (*problems, *_repeated(file, entries)))


def _encoding_problems(file: Path, raw: bytes, encoding: str) -> list[Problem]:
    """LLaMA-Factory opens the registry with the locale's encoding, so other letters than ASCII can be unreadable."""
    if raw.isascii() or codecs.lookup(encoding).name == "utf-8":
        return []
    line = next(number for number, text in enumerate(raw.splitlines(), 1) if not text.isascii())
    what = f"{file.name} has letters that LLaMA-Factory cannot read in this shell's encoding, {encoding}"
    return [Problem(what, "run: export PYTHONUTF8=1", Place(str(file), line))]


def _repeated(file: Path, entries: list[Entry]) -> list[Problem]:
    last = {entry.name: entry.line for entry in entries}
    return [
        Problem(
            f"data set '{entry.name}' is registered twice", "remove this entry: the last one counts", place, "warning"
        )
        for entry in entries
        if entry.line != last[entry.name]
        for place in [Place(str(file), entry.line, entry.name)]
    ]


def _entries(text: str) -> Iterator[Entry]:
    """The members of the outer object, with their lines; raises JSONDecodeError."""
    if not isinstance(json.loads(text), dict):
        raise json.JSONDecodeError("not an object of data sets", text, 0)
    decoder, at = json.JSONDecoder(), text.index("{") + 1
    while text[at := SPACE.match(text, at).end()] != "}":  # type: ignore[union-attr]
        at = SPACE.match(text, at + (text[at] == ",")).end()  # type: ignore[union-attr]
        start = at
        name, at = decoder.raw_decode(text, at)
        at = SPACE.match(text, text.index(":", at) + 1).end()  # type: ignore[union-attr]
        value, end = decoder.raw_decode(text, at)
        lines: dict[str, int] = {}
        for key in KEY.finditer(text, at, end):
            lines.setdefault(key[1], text.count("\n", 0, key.start()) + 1)
        yield Entry(name, value, text.count("\n", 0, start) + 1, lines)
        at = end


def check_registered(
    names: str | list[str], data_dir: Path | str, stage: str, place: Place
) -> tuple[list[Source], list[Problem]]:
    """The named data sets as sources to read, and what is wrong with their registration.

    `place` is the recipe's line. Names of a hub (`ONLINE`, `REMOTE:...`) cannot be looked up here and give neither.
    """
    wanted = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    if str(data_dir) == "ONLINE" or str(data_dir).startswith("REMOTE:"):
        return [], []
    registry = read_registry(Path(data_dir))
    problems = list(registry.problems)
    if not registry.text:
        return [], problems
    sources = []
    for name in dict.fromkeys(wanted):
        if name in registry.entries:
            source, found = _registered(registry, registry.entries[name], stage)
            sources += [source] if source else []
            problems += found
        elif not errors_of(registry.problems):  # an entry may stand in the part that cannot be read
            problems.append(_unknown(name, registry, place))
    if len(set(wanted)) < len(wanted):
        problems.append(
            Problem("a data set is named twice; LLaMA-Factory reads it once", "name it once", place, "warning")
        )
    return sources, problems


def _registered(registry: Registry, entry: Entry, stage: str) -> tuple[Source | None, list[Problem]]:
    found = list(_entry_problems(registry, entry, "rm" if stage in PAIR_STAGES else stage))
    if not isinstance(entry.value, dict) or errors_of(found):
        return None, found
    source, missing = _source(registry, entry)
    return source, [*found, *missing]


def _unknown(name: str, registry: Registry, place: Place) -> Problem:
    known = list(registry.entries)
    near = difflib.get_close_matches(name, known, 1, 0.7)
    guess = f"did you mean '{near[0]}'? " if near else ""
    listed = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    fix = f"{guess}registered are: {listed or 'none'}; register your own with: iis-finetune data add FILE"
    return Problem(f"data set '{name}' is not in {registry.file}", fix, place, kind="missing", code=2)


def _entry_problems(registry: Registry, entry: Entry, stage: str) -> Iterator[Problem]:
    value = entry.value
    if not isinstance(value, dict):
        yield Problem("the entry is not an object", 'write {"file_name": "..."}', registry.place(entry.name))
        return
    blocks = {"columns": COLUMN_KEYS, "tags": TAG_KEYS}
    yield from _unknown_keys(registry, entry, value, (*SOURCE_KEYS, *OPTION_KEYS))
    for block, known in blocks.items():
        if block in value and not isinstance(value[block], dict):
            place = registry.place(entry.name, block)
            yield Problem(f"'{block}' is not an object", f'write "{block}": {{"{known[0]}": "..."}}', place)
            return
        yield from _unknown_keys(registry, entry, value.get(block, {}), known)
    yield from _option_problems(registry, entry)
    yield from _stage_problems(registry, entry, stage)


def _unknown_keys(
    registry: Registry, entry: Entry, given: Mapping[str, Any], known: tuple[str, ...]
) -> Iterator[Problem]:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.7)
            fix = f"did you mean '{near[0]}'?" if near else f"known are: {', '.join(known)}"
            what = f"unknown key '{key}', which LLaMA-Factory ignores silently"
            yield Problem(what, fix, registry.place(entry.name, key), "error" if near else "warning")


def _option_problems(registry: Registry, entry: Entry) -> Iterator[Problem]:
    value = entry.value
    rules = (
        ("formatting", value.get("formatting", "alpaca") in FORMATTINGS, f"one of {', '.join(FORMATTINGS)}"),
        ("ranking", isinstance(value.get("ranking", False), bool), "true or false, without quotes"),
        ("num_samples", _is_count(value.get("num_samples")), "a whole number above 0, without quotes"),
        ("split", "file_name" not in value or str(value.get("split", "train")).startswith("train"), "train for a file"),
    )
    for key, good, allowed in rules:
        if not good:
            yield Problem(f"'{key}' is {value[key]!r}", f"write {allowed}", registry.place(entry.name, key))
    if "tags" in value and value.get("formatting", "alpaca") != "alpaca":
        for tag in ("role_tag", "content_tag", "user_tag", "assistant_tag"):
            if tag not in value["tags"]:
                what = f"'tags' has no '{tag}': what a tags block leaves out has no default"
                yield Problem(what, f'add "{tag}"', registry.place(entry.name, "tags"))


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _stage_problems(registry: Registry, entry: Entry, stage: str) -> Iterator[Problem]:
    ranking = entry.value.get("ranking", False) is True
    if stage == "rm" and not ranking:
        fix = 'add "ranking": true, with the columns chosen and rejected'
        yield Problem("preference training needs ranked pairs", fix, registry.place(entry.name, "formatting"))
    elif stage != "rm" and ranking:
        fix = "use it with stage rm or dpo, or another data set"
        yield Problem(f"a ranked data set cannot train stage {stage}", fix, registry.place(entry.name, "ranking"))
    formatting = "sharegpt" if entry.value.get("formatting") == "openai" else entry.value.get("formatting", "alpaca")
    columns = entry.value.get("columns")
    for key in NEEDED.get((formatting, stage), ()):
        needs_block = key in {"chosen", "rejected", "kto_tag"}
        if (columns is None and needs_block) or (columns is not None and columns.get(key) is None):
            what = f"'columns' does not name '{key}', and what it leaves out has no default"
            place = registry.place(entry.name, "columns")
            yield Problem(what, f'add "{key}" to "columns"', place)


def _source(registry: Registry, entry: Entry) -> tuple[Source | None, list[Problem]]:
    value, place = entry.value, registry.place(entry.name)
    if any(key in value for key in HUB_KEYS):
        return None, []
    if "script_url" in value:
        what, fix = "datasets 4 no longer runs loading scripts", "give the data as files: file_name"
        return None, [Problem(what, fix, registry.place(entry.name, "script_url"))]
    if "cloud_file_name" in value:
        name = str(value["cloud_file_name"])
        good = name.startswith(CLOUD_PREFIXES) and name.endswith((".json", ".jsonl"))
        fix = f"write {' or '.join(CLOUD_PREFIXES)}... and .json or .jsonl"
        return None, [] if good else [
            Problem(f"'{name}' cannot be loaded", fix, registry.place(entry.name, "cloud_file_name"))
        ]
    if not isinstance(value.get("file_name"), str):
        return None, [Problem("the entry names no data", 'add "file_name": "..."', place)]
    place = registry.place(entry.name, "file_name")
    return _file_source(Source(entry.name, (registry.file.parent / value["file_name"],), "", layout_of(value), place))


def _file_source(source: Source) -> tuple[Source | None, list[Problem]]:
    (path,), place = source.files, source.place
    if not path.exists():
        fix = "put the file there, or correct file_name"
        return None, [Problem(f"{path} is not there", fix, place, kind="missing", code=2)]
    files = tuple(sorted(path.iterdir())) if path.is_dir() else (path,)
    if not files:
        return None, [
            Problem(f"the folder {path} is empty", "put the data files into it", place, kind="missing", code=2)
        ]
    types = {FILE_TYPES.get(file.suffix[1:], "") for file in files}
    if "" in types:
        odd = next(file for file in files if file.suffix[1:] not in FILE_TYPES)
        return None, [Problem(f"LLaMA-Factory cannot load {odd.name}", f"allowed are: {', '.join(FILE_TYPES)}", place)]
    if len(types) > 1:
        fix = "keep files of one type in the folder, and nothing else"
        return None, [Problem(f"the folder {path} holds several file types: {', '.join(sorted(types))}", fix, place)]
    return Source(source.name, files, types.pop(), source.layout, place), []

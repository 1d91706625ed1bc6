"""Read data/dataset_info.json with its line numbers, and hold its entries to what LLaMA-Factory does with them."""

import codecs
import filecmp
import json
import locale
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec import Struct

from .. import tables
from ..errors import Place, Problem, ProblemsFound, Severity, did_you_mean, errors_of
from ..process import locked
from ..runs import write
from . import sources
from .material import changed
from .sources import FILE_TYPES, FORMATTINGS, HUB_KEYS, REGISTRY_FILE, Source, layout_of

SHIPPED = tables.SHIPPED / "data"
SHIPPED_FILE = re.compile(r'"file_name"\s*:\s*"[\w-]+\.json"')
SPACE = re.compile(r"\s*")
EXAMPLE = re.compile(r"identity|\w+_demo")  # what LLaMA-Factory's own recipes train on
EXAMPLES = "https://raw.githubusercontent.com/hiyouga/LLaMA-Factory/main/data/"
CLOUD_PREFIXES = ("s3://", "gs://", "gcs://")
ELSEWHERE = (*HUB_KEYS, "cloud_file_name")  # what these keys name is not looked at here
# What an entry must map for a stage when it maps columns at all, with what LLaMA-Factory does without it.
NEEDED = {
    ("alpaca", "sft"): ("response",),
    ("alpaca", "rm"): ("chosen", "rejected"),
    ("alpaca", "kto"): ("response", "kto_tag"),
    ("sharegpt", "sft"): ("messages",),
    ("sharegpt", "rm"): ("messages", "chosen", "rejected"),
    ("sharegpt", "kto"): ("messages", "kto_tag"),
}


class Registered(Struct, frozen=True):
    """One data set of the registry; `start` and `end` say where its name and its value stand in the file's text."""

    file: Path
    text: str
    name: str
    value: Any
    start: int
    end: int

    @property
    def whole(self) -> dict[str, Any]:
        """The same with the full path of its file, if it names one: it can stand in the registry of any folder."""
        file = self.value.get("file_name")
        return {**self.value, **({"file_name": str((self.file.parent / file).resolve())} if file else {})}

    def place(self, key: str = "") -> Place:
        """The line of one of its keys, or of the entry when it has no such key."""
        found = re.compile(rf'"{re.escape(key)}"\s*:').search(self.text, self.start + 1, self.end) if key else None
        line = self.text.count("\n", 0, found.start() if found else self.start) + 1
        return Place(str(self.file), line, f"{self.name}.{key}" if found else self.name)

    def problem(self, what: str, fix: str, key: str = "", severity: Severity = "error") -> Problem:
        return Problem(what, fix, self.place(key), severity)


class Registry(Struct, frozen=True):
    """data/dataset_info.json as it is; `problems` says why `entries` may be empty."""

    file: Path
    text: str
    entries: Mapping[str, Registered]
    problems: tuple[Problem, ...] = ()

    def shipped(self, names: Iterable[str]) -> dict[str, Registered]:
        """Those of the names that only the kit has."""
        return {name: each for name in names if (each := self.entries.get(name)) and each.file != self.file}


def with_entries(text: str, entries: Mapping[str, Any]) -> str:
    """The registry's text with more entries behind the last; the rest stays as it is. ASCII: any locale can read it."""
    before = (text.rstrip() or "{}")[:-1].rstrip()
    return f"{before}{'' if before.endswith('{') else ','}{json.dumps(entries, indent=2)[1:-2]}\n}}\n"


def enter(data_dir: Path, entries: Mapping[str, Any], old: Registered | None = None) -> None:
    """Add entries to the file as it is now, with nobody else at it, or put one in the place of `old`.

    Raises ProblemsFound where a name is taken.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    with locked(data_dir):
        registry = read_registry(data_dir)
        wrong = errors_of(registry.problems) if registry.file.exists() and not registry.entries else []
        new = {name: each for name, each in entries.items() if name not in registry.entries}
        text = with_entries(registry.text, new) if new else registry.text
        for there in (registry.entries[name] for name in entries if name not in new):
            if there.value == entries[there.name]:  # what another process was to add as well, or nothing changed
                continue
            if old and there.value == old.value:
                entry = json.dumps({there.name: entries[there.name]}, indent=2)[4:-2]
                text = f"{text[: there.start]}{entry}{text[there.end :]}"
            else:
                wrong.append(there.problem(f"a data set '{there.name}' is registered already", "--name NAME: another"))
        if wrong:
            raise ProblemsFound(wrong)
        if text != registry.text:
            write(registry.file, text)


def read_registry(data_dir: Path, encoding: str | None = None, also: Mapping[str, Any] | None = None) -> Registry:
    """Every entry with its lines, those of `also` as if they stood there.

    `encoding` is what LLaMA-Factory will open the file with (the locale's).
    """
    file = data_dir / REGISTRY_FILE
    try:
        raw = file.read_bytes() if file.exists() or not also else b"{}"
        text = raw.decode("utf-8")
    except OSError:
        what, fix = f"{file} is not there", "run: iis-finetune data add FILE"
        return Registry(file, "", {}, (Problem(what, fix, Place(str(file)), kind="missing", code=2),))
    except UnicodeDecodeError as error:
        place = Place(str(file), raw.count(b"\n", 0, error.start) + 1)
        return Registry(file, "", {}, (Problem(f"{file.name} is not UTF-8", "save it as UTF-8", place),))
    problems = _encoding_problems(file, raw, encoding or locale.getpreferredencoding(False))
    try:
        text = with_entries(text, also) if also else text
        entries = list(_entries(file, text))
    except json.JSONDecodeError as error:
        place = Place(str(file), error.lineno)
        broken = Problem(f"{file.name} is not JSON: {error.msg}", f"mend column {error.colno} of this line", place)
        return Registry(file, text, {}, (*problems, broken))
    by_name = {entry.name: entry for entry in entries}
    fix = "remove this entry: the last one counts"
    for entry in entries:
        if entry is not by_name[entry.name]:
            problems.append(entry.problem(f"data set '{entry.name}' is registered twice", fix, severity="warning"))
    return Registry(file, text, by_name, tuple(problems))


def known(data_dir: Path, also: Mapping[str, Any] | None = None) -> Registry:
    """The folder's registry and, behind its own names, what the kit ships; one that cannot be read stays alone."""
    own = read_registry(data_dir, None, also)
    if own.file.exists() and errors_of(own.problems):
        return own
    entries = read_registry(SHIPPED).entries  # in a clone also its owner's, of which only files in it are taken along
    shipped = {name: each for name, each in entries.items() if SHIPPED_FILE.search(each.text[each.start : each.end])}
    return Registry(own.file, own.text, {**own.entries, **shipped, **own.entries}, own.problems)


def bring(names: Iterable[str], data_dir: Path) -> list[str]:
    """Copy those of the data sets that only the kit has into a data folder; raises ProblemsFound if a file is there."""
    shipped = known(data_dir).shipped(names)
    for file in {each.value["file_name"] for each in shipped.values()}:
        target = data_dir / file
        if target.exists() and not filecmp.cmp(SHIPPED / file, target, shallow=False):
            what = f"{target} is there already, and is not the kit's file of that name"
            raise ProblemsFound([Problem(what, "rename it", Place(str(target)))])
        data_dir.mkdir(parents=True, exist_ok=True)
        write(target, (SHIPPED / file).read_text(encoding="utf-8"))
    if shipped:
        enter(data_dir, {name: each.value for name, each in shipped.items()})
    return list(shipped)


def _encoding_problems(file: Path, raw: bytes, encoding: str) -> list[Problem]:
    """LLaMA-Factory opens the registry with the locale's encoding, so other letters than ASCII can be unreadable."""
    if raw.isascii() or codecs.lookup(encoding).name == "utf-8":
        return []
    line = next(number for number, text in enumerate(raw.splitlines(), 1) if not text.isascii())
    what = f"{file.name} has letters that LLaMA-Factory cannot read in this shell's encoding, {encoding}"
    return [Problem(what, "run: export PYTHONUTF8=1", Place(str(file), line))]


def _entries(file: Path, text: str) -> Iterator[Registered]:
    """The members of the outer object; raises JSONDecodeError."""
    if not isinstance(json.loads(text), dict):
        raise json.JSONDecodeError("not an object of data sets", text, 0)
    decoder, at = json.JSONDecoder(), _skipped(text, text.index("{") + 1)
    while text[at] != "}":
        start = at
        name, at = decoder.raw_decode(text, at)
        value, end = decoder.raw_decode(text, _skipped(text, text.index(":", at) + 1))
        yield Registered(file, text, name, value, start, end)
        at = _skipped(text, end)
        at = _skipped(text, at + (text[at] == ","))


def _skipped(text: str, at: int) -> int:
    return SPACE.match(text, at).end()  # type: ignore[union-attr]


def check_registered(
    names: str | list[str], data_dir: Path | str | Registry, stage: str, place: Place
) -> tuple[list[Source], list[Problem]]:
    """The named data sets as sources to read, and what is wrong with their registration.

    `place` is the recipe's line. What lies on a hub (also a whole `data_dir`: `ONLINE`, `REMOTE:...`) gives no source.
    """
    wanted = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    if str(data_dir) == "ONLINE" or str(data_dir).startswith("REMOTE:"):
        return [], [_not_checked(", ".join(wanted), f"dataset_dir: {data_dir}", place)]
    registry = data_dir if isinstance(data_dir, Registry) else known(Path(data_dir))
    problems = list(registry.problems) if registry.text else []
    if not registry.text and not registry.entries.keys() >= set(wanted):
        return [], list(registry.problems)
    found = []
    for name in dict.fromkeys(wanted):
        if name in registry.entries:
            source, of_entry = _registered(registry.entries[name], stage, place)
            found += [source] if source else []
            problems += of_entry
        elif not errors_of(registry.problems):  # an entry may stand in the part that cannot be read
            problems.append(_unknown(name, registry, place))
    if len(set(wanted)) < len(wanted):
        twice = "a data set is named twice; LLaMA-Factory reads it once"
        problems.append(Problem(twice, "name it once", place, "warning"))
    return found, problems


def _registered(entry: Registered, stage: str, place: Place) -> tuple[Source | None, list[Problem]]:
    """The files of an entry, unless it lies on a hub or in a cloud or there is something wrong with it."""
    value = entry.value
    problems = list(_entry_problems(entry, "rm" if stage == "dpo" else stage))
    if errors_of(problems):
        return None, problems
    if key := next((key for key in ELSEWHERE if key in value), None):
        where, hub_id = (f"{key}: {value[key]}", "ID") if key not in HUB_KEYS else (value[key], value[key])
        return None, [*problems, _not_checked(entry.name, where, place, hub_id)]
    path = entry.file.parent / value["file_name"]
    files = tuple(sorted(path.iterdir())) if path.is_dir() else (path,)
    if wrong := _file_problem(path, files):
        return None, [*problems, replace(wrong, where=entry.place("file_name"))]
    origin = sources.origin_of(path)
    if origin and changed(origin) > path.stat().st_mtime + 2:  # seconds: less when both were copied together
        what = f"{origin} has changed since these rows were written from it"
        fix = f"write them anew: iis-finetune data add {shlex.quote(str(origin))} --name {entry.name}"
        problems.append(Problem(what, fix, entry.place("file_name"), "warning"))
    return Source(entry.name, files, FILE_TYPES[files[0].suffix[1:]], layout_of(value)), problems


def _not_checked(names: str, where: str, place: Place, hub_id: str = "ID") -> Problem:
    what = f"not checked: the rows of '{names}' are not on this disk ({where})"
    fix = f"training fetches them; to have them here and checked before: iis-finetune data add {hub_id}"
    return Problem(what, fix, place, "warning")


def _unknown(name: str, registry: Registry, place: Place) -> Problem:
    known = list(registry.entries)
    head, _, number = name.partition("#")
    if head in known and number.isdecimal():
        fix = f"write 'dataset: {head}' and 'max_samples: {number}', which counts for each data set"
    elif EXAMPLE.fullmatch(name):
        fix = f"it is an example of LLaMA-Factory's, not in its package: get {EXAMPLES}{name}.json, and "
        fix += "iis-finetune data add FILE"
    elif Path(name).suffix[1:].lower() in FILE_TYPES:
        file = sources.data_file(name)
        fix = f"register it: iis-finetune data add '{name}'" if file else sources.correction(Path(name))
    else:
        listed = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
        usual = f"registered are: {listed or 'none'}; register your own with: iis-finetune data add "
        usual += name if "/" in name else "FILE"
        fix = did_you_mean(name, known, usual)
    return Problem(f"data set '{name}' is not in {registry.file}", fix, place, kind="missing", code=2)


def _entry_problems(entry: Registered, stage: str) -> Iterator[Problem]:
    value = entry.value
    if not isinstance(value, dict):
        yield entry.problem("the entry is not an object", 'write {"file_name": "..."}')
        return
    own = (*sources.SOURCE_KEYS, *sources.OPTION_KEYS)
    for block, known in (("", own), ("columns", sources.COLUMN_KEYS), ("tags", tuple(sources.TAGS))):
        given = value.get(block, {}) if block else value
        if not isinstance(given, dict):
            yield entry.problem(f"'{block}' is not an object", f'write "{block}": {{"{known[0]}": "..."}}', block)
            return
        for key in (each for each in given if each not in known):
            usual = f"known are: {', '.join(known)}"
            fix = did_you_mean(key, known, usual)
            what = f"unknown key '{key}', which LLaMA-Factory ignores silently"
            yield entry.problem(what, fix, key, "warning" if fix == usual else "error")
    yield from _source_problems(entry)
    yield from _option_problems(entry)
    yield from _stage_problems(entry, stage)


def _source_problems(entry: Registered) -> Iterator[Problem]:
    """The first key that names data counts, in LLaMA-Factory's order; what a hub has cannot be looked at here."""
    if any(key in entry.value for key in HUB_KEYS):
        return
    if "script_url" in entry.value:
        what, fix = "datasets 4 no longer runs loading scripts", "give the data as files: file_name"
        yield entry.problem(what, fix, "script_url")
    elif "cloud_file_name" in entry.value:
        name = str(entry.value["cloud_file_name"])
        if not (name.startswith(CLOUD_PREFIXES) and name.endswith((".json", ".jsonl"))):
            fix = f"write {' or '.join(CLOUD_PREFIXES)}... and .json or .jsonl"
            yield entry.problem(f"'{name}' cannot be loaded", fix, "cloud_file_name")
    elif not isinstance(entry.value.get("file_name"), str):
        yield entry.problem("the entry names no data", 'add "file_name": "..."')


def _option_problems(entry: Registered) -> Iterator[Problem]:
    value = entry.value
    count = value.get("num_samples", 1)
    rules = (
        ("formatting", value.get("formatting", "alpaca") in FORMATTINGS, f"one of {', '.join(FORMATTINGS)}"),
        ("ranking", isinstance(value.get("ranking", False), bool), "true or false, without quotes"),
        ("num_samples", count is None or (type(count) is int and count > 0), "a whole number above 0, without quotes"),
        ("split", "file_name" not in value or str(value.get("split", "train")).startswith("train"), "train for a file"),
    )
    for key, good, allowed in rules:
        if not good:
            yield entry.problem(f"'{key}' is {value[key]!r}", f"write {allowed}", key)
    if "tags" in value and value.get("formatting", "alpaca") != "alpaca":
        for tag in ("role_tag", "content_tag", "user_tag", "assistant_tag"):
            if tag not in value["tags"]:
                what = f"'tags' has no '{tag}': what a tags block leaves out has no default"
                yield entry.problem(what, f'add "{tag}"', "tags")


def _stage_problems(entry: Registered, stage: str) -> Iterator[Problem]:
    ranking = entry.value.get("ranking", False) is True
    if stage == "rm" and not ranking:
        fix = 'add "ranking": true, with the columns chosen and rejected'
        yield entry.problem("preference training needs ranked pairs", fix, "formatting")
    elif stage != "rm" and ranking:
        fix = "use it with stage rm or dpo, or another data set"
        yield entry.problem(f"a ranked data set cannot train stage {stage}", fix, "ranking")
    formatting, columns = str(entry.value.get("formatting", "alpaca")), entry.value.get("columns")
    if stage == "sft" and isinstance(columns, dict) and columns.get("kto_tag"):
        what = "'columns' names 'kto_tag': every row has an answer and its opposite then, and stage sft drops them all"
        yield entry.problem(what, "remove \"kto_tag\" from 'columns', or train with stage: kto", "kto_tag")
    named = sources.COLUMNS if columns is None else columns
    for key in NEEDED.get(("sharegpt" if formatting == "openai" else formatting, stage), ()):
        if named.get(key) is None:
            what, fix = f"'columns' does not name '{key}', and what it leaves out has no default", f'add "{key}" to it'
            if sources.stage_of(entry.value) == "pt":
                what = f"this is plain text, and stage {stage} trains answers: 'columns' does not name '{key}'"
                fix = f'stage: pt; or, if the rows have answers, name their column: "{key}"'
            yield entry.problem(what, fix, "columns")


def _file_problem(path: Path, files: tuple[Path, ...]) -> Problem | None:
    if not path.exists():
        fix = f"put the file there, or correct file_name: {sources.correction(path)}"
        return Problem(f"{path} is not there", fix, kind="missing", code=2)
    if not files:
        return Problem(f"the folder {path} is empty", "put the data files into it", kind="missing", code=2)
    if odd := [file for file in files if file.suffix[1:] not in FILE_TYPES]:
        return Problem(f"LLaMA-Factory cannot load {odd[0].name}", f"allowed are: {', '.join(FILE_TYPES)}")
    types = {FILE_TYPES[file.suffix[1:]] for file in files}
    if len(types) > 1:
        what = f"the folder {path} holds several file types: {', '.join(sorted(types))}"
        return Problem(what, "keep files of one type in the folder, and nothing else")
    return None

"""Find a recipe, read it with its line numbers, put the command line's overrides on top."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from .. import tables
from ..errors import COMMAND_LINE, Place, Problem, ProblemsFound, did_you_mean, full_width
from .entry import Entry, without_secrets
from .kit import Kit, as_meant, build

REGISTRY = Path("recipes")
SHIPPED = tables.SHIPPED / "recipes"
SUFFIXES = (".yaml", ".yml")
LONGEST_BYTES = 1_000_000  # a recipe is a page; anything larger is some other file
HELD_OUT = "kit.evaluate_after"
MOST_KEYS = 600  # LLaMA-Factory has some 350


class Recipe(Struct, frozen=True):
    """A LLaMA-Factory YAML with an optional `kit:` block, overrides applied."""

    name: str
    path: Path
    entries: Mapping[str, Entry]
    kit: Kit
    kit_entries: Mapping[str, Entry] = field(default_factory=dict)

    def place(self, key: str) -> Place:
        """Where a key stands; the file itself for a key that is not in it."""
        entry = self.entries.get(key) or self.kit_entries.get(key)
        return entry.place if entry else Place(str(self.path), key=key)

    def states(self, key: str) -> bool:
        return key in self.entries or key in self.kit_entries

    def value(self, key: str, default: Any = None) -> Any:
        entry = self.entries.get(key)
        return default if entry is None or entry.value is None else entry.value

    def with_line(self, line: str) -> "Recipe":
        """The same with a line `key: value` written into it."""
        entry = _override(line.replace(": ", "=", 1))[0]
        if entry is None:
            raise ValueError(line)
        if not entry.key.startswith("kit."):
            return replace(self, entries={**self.entries, entry.key: entry})
        kit_entries = {**self.kit_entries, entry.key: entry}
        return replace(self, kit=build(kit_entries)[0], kit_entries=kit_entries)


def registered(registry: Path = REGISTRY) -> dict[str, Path]:
    """Name -> file of every recipe, the folder's own before those that the kit ships."""
    own = own_recipes(registry)
    return own | {name: path for name, path in own_recipes(SHIPPED).items() if name not in own}


def own_recipes(registry: Path) -> dict[str, Path]:
    """Name -> file of every recipe in the registry folder; the folder is the registry."""
    files = sorted(path for path in registry.glob("*") if path.suffix in SUFFIXES) if registry.is_dir() else []
    return {path.stem: path for path in files}


def find(name: str, registry: Path = REGISTRY) -> Path:
    """The file of a recipe given by name or by path."""
    names = registered(registry)
    if name in names:
        return names[name]
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in SUFFIXES or path.suffix == ".json" or len(path.parts) > 1:
        raise ProblemsFound([_not_a_file(path, names)])
    raise ProblemsFound([unknown(name, names, registry)])


def unknown(name: str, names: Iterable[str], registry: Path) -> Problem:
    """A name that is no recipe's, with the one it may be meant for."""
    fix = did_you_mean(name, names, f"recipes here: {', '.join(names) or 'none'}", 0.5)
    return Problem(f"no recipe '{name}' in {_short(registry)}/", fix, Place(COMMAND_LINE), code=2)


def _not_a_file(path: Path, names: Mapping[str, Path]) -> Problem:
    what = f"'{path}' is a folder, not a recipe" if path.is_dir() else f"the recipe file '{path}' does not exist"
    otherwise = "give a name from `iis-finetune recipes` or the path of a YAML file"
    return Problem(what, did_you_mean(path.stem, names, otherwise), Place(COMMAND_LINE))


def read(name: str, overrides: Sequence[str] = (), registry: Path = REGISTRY) -> tuple[Recipe, list[Problem]]:
    """Read a recipe and its overrides; returns it with the problems that do not stop the reading.

    Raises ProblemsFound when there is nothing to go on with: no file, no YAML, no mapping.
    """
    path = _short(find(name, registry))
    others = {} if path.suffix in SUFFIXES else tables.read("aliases.toml")["files"]
    if said := others.get(path.suffix[1:].lower()):
        raise ProblemsFound([Problem(said[0], said[1], Place(str(path)))])
    stated, problems = _entries(_parse(_text(path), path), str(path))
    own = stated.get("dataset")
    for given in _joined(overrides):
        override, problem = _override(given)
        problems += [problem] if problem else []
        if override:
            if override.key in stated and stated[override.key].source == "override":
                what, fix = f"{override.key} is given twice", "remove one of the two: the last one counts"
                problems.append(Problem(what, fix, override.place, "warning"))
            stated[override.key] = override
    problems += _drop_held_out_of(own, stated)
    stated, secrets = without_secrets(stated)
    kit_entries = as_meant({key: entry for key, entry in stated.items() if key.startswith("kit.")})
    entries = {key: entry for key, entry in stated.items() if key not in kit_entries}
    kit, kit_problems = build(kit_entries)
    return Recipe(path.stem, path, entries, kit, kit_entries), [*problems, *secrets, *kit_problems]


def _drop_held_out_of(own: Entry | None, stated: dict[str, Entry]) -> list[Problem]:
    """Held-out rows belong to the recipe's own data: with other data than those they are left out, and that is said."""
    held_out, trained_on = stated.get(HELD_OUT), stated.get("dataset")
    if not (own and held_out and held_out.value and held_out.source == "recipe" and trained_on != own):
        return []
    del stated[HELD_OUT]
    if stated.keys() & {"val_size", "eval_dataset"}:
        return []
    what = f"the held-out rows '{held_out.value}' belong to '{own.value}': they are left out with another data set"
    fix = f"{HELD_OUT}=NAME for held-out rows of yours, or val_size=0.1 eval_strategy=epoch for the loss on a tenth"
    return [Problem(what, fix, held_out.place, "warning")]


def _joined(overrides: Sequence[str]) -> list[str]:
    """`lora_rank = 8` is three words to a shell, and one override."""
    return re.sub(r"\0=\0", "=", "\0".join(overrides)).split("\0") if overrides else []


def _short(path: Path) -> Path:
    """A path as a person would type it from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


@cache  # a listing reads the base of several recipes once; nobody writes into what is read
def _parse(text: str, path: Path) -> Any:
    """The node of the mapping that a recipe is."""
    from .document import compose, plain

    node = compose(text, str(path))
    document = plain(node)
    if not isinstance(document, dict):
        kinds: dict[type, str] = {list: "a list", str: "one piece of text"}
        found = "empty" if document is None else kinds.get(type(document), "a single value")
        what = f"a recipe is a list of `key: value` lines, this file is {found}"
        fix = full_width("：") if re.match(r"\w+\s*：", text) else None
        fix = fix or "start from one: iis-finetune recipes --copy NAME FILE"
        raise ProblemsFound([Problem(what, fix, Place(str(path), 1))])
    if len(document) > MOST_KEYS:
        what = f"a recipe has at most {MOST_KEYS} keys, this file has {len(document)}"
        raise ProblemsFound([Problem(what, "give the path of a recipe", Place(str(path)))])
    return node


def _text(path: Path) -> str:
    place = Place(str(path))
    if path.exists() and not path.is_file():
        raise ProblemsFound([Problem("not a file", "give the path of a YAML file", place)])  # a pipe would never end
    try:
        with path.open("rb") as stream:
            data = stream.read(LONGEST_BYTES + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ProblemsFound([Problem("not a text file in UTF-8", "save it as UTF-8 text", place)]) from None
    except OSError as error:
        raise ProblemsFound([Problem(f"cannot be read: {error.strerror}", "check the file's rights", place)]) from None
    if "\0" in text or len(data) > LONGEST_BYTES:
        raise ProblemsFound([Problem("not a recipe: binary, or over 1 MB", "give the path of a YAML file", place)])
    return text


def _entries(mapping: Any, file: str) -> tuple[dict[str, Entry], list[Problem]]:
    from .document import pairs, plain

    entries: dict[str, Entry] = {}
    problems = []
    for name, (key, value) in pairs(mapping).items():
        place = Place(file, key.start_mark.line + 1, name)
        if name != "kit":
            entries[name] = _entry(name, value, place)
        elif isinstance(plain(value), dict):
            for inner, (mark, node) in pairs(value).items():
                dotted = f"kit.{inner}"
                entries[dotted] = _entry(dotted, node, Place(file, mark.start_mark.line + 1, dotted))
        elif plain(value) is not None:
            problems.append(Problem("the kit block is not a mapping", "indent its keys below `kit:`", place))
    return entries, problems


def _entry(key: str, node: Any, place: Place) -> Entry:
    from .document import plain

    style = getattr(node, "style", None)
    text = node.value if isinstance(getattr(node, "value", None), str) and not style else None
    return Entry(key, plain(node), place, quoted=style in ("'", '"'), text=text or None)


def _override(text: str) -> tuple[Entry | None, Problem | None]:
    from .document import compose

    key, separator, written = text.partition("=")
    place = Place(COMMAND_LINE, key=key if separator else None)
    if not separator or not key or key.startswith("-"):
        key, *rest = re.split(r"\s*[:：＝]\s*", text.lstrip("-"), maxsplit=1)
        fix = f"write {key or 'key'}={''.join(rest) or 'value'}"
        fix += f": {said.partition(';')[0]} is no '='" if (said := full_width(text)) else ""
        return None, Problem(f"'{text}' is not an override of the form key=value", fix, place)
    if not written.strip():
        return None, Problem(f"'{text}' gives no value", f"write {key}=value; {key}=null unsets it", place)
    try:
        entry = _entry(key, compose(written, COMMAND_LINE), place)
    except ProblemsFound as found:
        return None, Problem(f"the value of {key}: {found.problems[0].what}", found.problems[0].fix, place)
    return replace(entry, quoted=False, source="override", text=written), None

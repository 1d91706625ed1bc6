"""Find a recipe, read it with its line numbers, put the command line's overrides on top."""

import difflib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .errors import COMMAND_LINE, Place, Problem, ProblemsFound

REGISTRY = Path("recipes")
SUFFIXES = (".yaml", ".yml")
LONGEST_BYTES = 1_000_000  # a recipe is a page; anything larger is some other file


class FromScratch(BaseModel):
    """A random-weight Qwen2 model and its tokenizer, made here: nothing is downloaded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocabulary_size: int = Field(gt=300, description="tokens of the byte-level BPE tokenizer, special ones included")
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    layers: int = Field(gt=0)
    attention_heads: int = Field(gt=0)
    key_value_heads: int = Field(gt=0)
    tie_word_embeddings: bool = True
    seed: int = 42
    text: str = Field(description="data set, as registered, that the tokenizer is trained on")


def _numbers(given: Any) -> Any:
    """`0,1`, as the variables of the vendors have it, is a list."""
    named = isinstance(given, str) and re.fullmatch(r"\d+(,\d+)+", given)
    return [int(each) for each in given.split(",")] if named else given


class Kit(BaseModel):
    """The `kit:` block: what LLaMA-Factory cannot decide."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str | None = Field(None, description="one line for `iis-finetune recipes`")
    source: Literal["auto", "huggingface", "modelscope"] = Field("auto", description="where the base model comes from")
    precision: Literal["auto", "fp32", "fp16", "bf16", "as-saved"] = Field(
        "auto", description="what the training really runs in; as-saved keeps what the checkpoint holds"
    )
    attention: Literal["auto", "disabled", "sdpa", "fa2"] = Field("auto", description="attention implementation")
    launcher: Literal["auto", "single", "ddp", "zero2", "zero3", "zero2_offload", "zero3_offload", "fsdp"] = Field(
        "auto", description="how the processes share the model"
    )
    global_batch_size: int | None = Field(
        None, ge=1, description="micro-batch x accumulation x processes; accumulation is computed from it"
    )
    base: str | None = Field(None, description="recipe whose result is this one's base; run first when it is missing")
    reward: str | None = Field(
        None, description="recipe of stage rm that stage ppo learns from; run first when missing"
    )
    evaluate_after: str | None = Field(None, description="data set that base and tuned answer after training")
    devices: Annotated[int | list[int] | None, BeforeValidator(_numbers)] = Field(
        None, description="how many devices, or which: 2, or [0, 1]"
    )
    env: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="environment variables of the training processes"
    )
    notify: str | None = Field(None, description="command, or env:NAME of a webhook URL, told of end and failure")
    on_failure: Literal["recover", "stop"] = Field("recover", description="whether the supervisor may restart a run")
    from_scratch: FromScratch | None = Field(None, description="make the model_name_or_path folder when it is missing")


@dataclass(frozen=True)
class Entry:
    """One `key: value`, of a recipe or of the command line; keys of the kit block are dotted (`kit.precision`)."""

    key: str
    value: Any
    place: Place
    quoted: bool = False
    source: Literal["recipe", "override"] = "recipe"
    text: str | None = None


@dataclass(frozen=True)
class Recipe:
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


def registered(registry: Path = REGISTRY) -> dict[str, Path]:
    """Name -> file of every recipe below the registry folder; the folder is the registry."""
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
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    fix = f"did you mean '{near[0]}'?" if near else f"recipes here: {', '.join(names) or 'none'}"
    return Problem(f"no recipe '{name}' in {_short(registry)}/", fix, Place(COMMAND_LINE), code=2)


def _not_a_file(path: Path, names: Mapping[str, Path]) -> Problem:
    what = f"'{path}' is a folder, not a recipe" if path.is_dir() else f"the recipe file '{path}' does not exist"
    near = difflib.get_close_matches(path.stem, names, n=1, cutoff=0.7)
    fix = f"did you mean '{near[0]}'?" if near else "give a name from `iis-finetune recipes` or the path of a YAML file"
    return Problem(what, fix, Place(COMMAND_LINE))


def read(name: str, overrides: Sequence[str] = (), registry: Path = REGISTRY) -> tuple[Recipe, list[Problem]]:
    """Read a recipe and its overrides; returns it with the problems that do not stop the reading.

    Raises ProblemsFound when there is nothing to go on with: no file, no YAML, no mapping.
    """
    path = _short(find(name, registry))
    text = _text(path)
    entries, kit_entries, problems = _entries(_parse(text, path), str(path), text.splitlines())
    for given in _joined(overrides):
        override, problem = _override(given)
        problems += [problem] if problem else []
        if override:
            into = kit_entries if override.key.startswith("kit.") else entries
            if override.key in into and into[override.key].source == "override":
                what, fix = f"{override.key} is given twice", "remove one of the two: the last one counts"
                problems.append(Problem(what, fix, override.place, "warning"))
            into[override.key] = override
    kit, kit_problems = _kit(kit_entries)
    return Recipe(path.stem, path, entries, kit, kit_entries), problems + kit_problems


def _joined(overrides: Sequence[str]) -> list[str]:
    """`lora_rank = 8` is three words to a shell, and one override."""
    return re.sub(r"\0=\0", "=", "\0".join(overrides)).split("\0") if overrides else []


def _short(path: Path) -> Path:
    """A path as a person would type it from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


@cache  # a listing reads the base of several recipes once; nobody writes into what is read
def _parse(text: str, path: Path) -> Any:
    if path.suffix == ".json":
        what = "LLaMA-Factory cannot read a JSON recipe (it fails with an AttributeError)"
        raise ProblemsFound([Problem(what, "write it as YAML", Place(str(path)))])
    document = _load(text, path)
    if not isinstance(document, dict):
        kinds = {list: "a list", str: "one piece of text"}
        found = next((name for kind, name in kinds.items() if isinstance(document, kind)), "a single value")
        found = "empty" if document is None else found
        what = f"a recipe is a list of `key: value` lines, this file is {found}"
        raise ProblemsFound(
            [Problem(what, "start from one: iis-finetune recipes --copy NAME FILE", Place(str(path), 1))]
        )
    return document


def _text(path: Path) -> str:
    place = Place(str(path))
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


def _load(text: str, path: Path) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    reader = YAML()
    reader.version = (1, 1)  # LLaMA-Factory reads YAML 1.1: `no` is false
    reader.preserve_quotes = True
    reader.allow_duplicate_keys = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ruamel warns of `2e-4`, which is read as the number it means
            return reader.load(text)
    except DuplicateKeyError as error:
        what = str(error.problem).split(" with value")[0].replace("found duplicate key", "duplicate key")
        fix = "remove one of the two lines"
        raise ProblemsFound([Problem(what, fix, _mark(path, error))]) from None
    except MarkedYAMLError as error:
        what = f"not YAML: {error.problem or error.context}"
        tab = "\\t" in what or "\t" in _line(text, error)
        fix = "replace the tab by spaces" if tab else "YAML wants `key: value`, one a line, indented by spaces"
        raise ProblemsFound([Problem(what, fix, _mark(path, error))]) from None
    except (YAMLError, ValueError, RecursionError, NotImplementedError, AttributeError, TypeError) as error:
        raise ProblemsFound([_odd(text, path, error)]) from None


def _odd(text: str, path: Path, error: Exception) -> Problem:
    """ruamel raises bare errors for odd scalars, such as dates that do not exist, and a `!!float` that is none."""
    tagged = [number for number, line in enumerate(text.splitlines(), 1) if " !!" in line]
    if tagged:
        what = "a value does not fit the type that !! gives it"
        return Problem(what, "remove the !! and its word", Place(str(path), tagged[0]))
    what = f"not YAML: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return Problem(what, "YAML wants `key: value`, one a line", Place(str(path), 1))


def _mark(path: Path, error: Any) -> Place:
    mark = error.problem_mark or error.context_mark
    return Place(str(path), mark.line + 1 if mark else 1)


def _line(text: str, error: Any) -> str:
    mark = error.problem_mark or error.context_mark
    lines = text.splitlines()
    return lines[mark.line] if mark and mark.line < len(lines) else ""


def _entries(
    document: Any, file: str, lines: Sequence[str]
) -> tuple[dict[str, Entry], dict[str, Entry], list[Problem]]:
    entries: dict[str, Entry] = {}
    kit: dict[str, Entry] = {}
    problems = []
    for key, value in document.items():
        place = Place(file, document.lc.key(key)[0] + 1, str(key))
        if key != "kit":
            entries[str(key)] = _entry(str(key), value, place, _written(lines[(place.line or 1) - 1]))
        elif isinstance(value, dict):
            marks: Any = value
            for name, inner in value.items():
                where = Place(file, marks.lc.key(name)[0] + 1, f"kit.{name}")
                kit[f"kit.{name}"] = _entry(f"kit.{name}", inner, where)
        elif value is not None:
            problems.append(Problem("the kit block is not a mapping", "indent its keys below `kit:`", place))
    return entries, kit, problems


def _written(line: str) -> str | None:
    """A one-line scalar as it was written, before YAML took `off` for a boolean or `1.10` for a number."""
    written = line.partition(":")[2].partition(" #")[0].strip()
    return written if written and written[0] not in "[{&*!|>\"'" else None


def _entry(key: str, value: Any, place: Place, text: str | None = None) -> Entry:
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString, SingleQuotedScalarString

    quoted = isinstance(value, DoubleQuotedScalarString | SingleQuotedScalarString)
    return Entry(key, plain(value), place, quoted, text=None if quoted else text)


def plain(value: Any) -> Any:
    """Plain Python from what ruamel read."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(inner) for inner in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    # ruamel keeps booleans with comments and dates in types of its own
    return None if value is None else _other(value)


def _other(value: Any) -> Any:
    from ruamel.yaml.scalarbool import ScalarBoolean

    return bool(value) if isinstance(value, ScalarBoolean) else str(value)


def _override(text: str) -> tuple[Entry | None, Problem | None]:
    key, separator, written = text.partition("=")
    place = Place(COMMAND_LINE, key=key if separator else None)
    if not separator or not key or key.startswith("-"):
        fix = f"write {key.lstrip('-') or 'key'}=value"
        return None, Problem(f"'{text}' is not an override of the form key=value", fix, place)
    if not written.strip():
        return None, Problem(f"'{text}' gives no value", f"write {key}=value; {key}=null unsets it", place)
    try:
        value = _load(written, Path(COMMAND_LINE))
    except ProblemsFound as found:
        return None, Problem(f"the value of {key}: {found.problems[0].what}", found.problems[0].fix, place)
    entry = _entry(key, value, place)
    return Entry(key, entry.value, place, source="override", text=written), None


def _kit(entries: Mapping[str, Entry]) -> tuple[Kit, list[Problem]]:
    """Build the kit block; a key that is wrong is reported and left at its default."""
    values = {key.removeprefix("kit."): entry.value for key, entry in entries.items() if entry.value is not None}
    try:
        return Kit.model_validate(values), []
    except ValidationError as error:
        first = {_dotted(details): details for details in reversed(error.errors())}  # a union has one for each kind
        problems = [_kit_problem(details, entries) for details in reversed(first.values())]
        bad = {str(details["loc"][0]) for details in error.errors()}
        return Kit.model_validate({key: value for key, value in values.items() if key not in bad}), problems


def _dotted(details: Any) -> str:
    """The key as a person writes it; behind a union pydantic adds the kind that it tried."""
    where = details["loc"] if details["loc"][0] in ("env", "from_scratch") else details["loc"][:1]
    return "kit." + ".".join(str(part) for part in where)


def _kit_problem(details: Any, entries: Mapping[str, Entry]) -> Problem:
    name = f"kit.{details['loc'][0]}"
    dotted = _dotted(details)
    place = entries[name].place
    if details["type"] == "extra_forbidden":
        known = FromScratch.model_fields if len(details["loc"]) > 1 else Kit.model_fields
        near = difflib.get_close_matches(str(details["loc"][-1]), known, n=1)
        prefix = "kit." if place.file == COMMAND_LINE else ""
        fix = f"did you mean '{prefix}{near[0]}'?" if near else f"kit keys: {', '.join(known)}"
        return Problem(f"unknown key '{dotted}'", fix, place)
    what = f"{dotted} is {details['input']!r}: {details['msg'][0].lower()}{details['msg'][1:]}"
    near = difflib.get_close_matches(str(details["input"]), _choices(name), n=1)
    fix = f"did you mean '{near[0]}'?" if near else "see `iis-finetune schema`, or leave the line out"
    return Problem(what, fix, place)


def _choices(name: str) -> Iterable[str]:
    from typing import get_args

    return [str(choice) for choice in get_args(Kit.model_fields[name.removeprefix("kit.")].annotation)]

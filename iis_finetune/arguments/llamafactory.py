"""LLaMA-Factory as the kit knows it: the version of each stage, and that version's arguments, models and templates."""

import contextlib
import hashlib
import importlib.util
import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, convert

from .. import process, runs
from ..errors import Problem
from ..tables import read

# The one place that says which version is current; what is of a version lies in tables/llamafactory/<version>/.
LLAMAFACTORY = "0.9.5"
STAGES = {"ppo": "0.9.3"}  # the PPO trainer of 0.9.5 needs a trl that its other parts refuse

WHOLE = ("full", "freeze")  # methods that train the model's own weights; the others train weights beside them

Kind = Literal["bool", "int", "float", "str", "list", "dict"]
Group = Literal["model", "data", "training", "finetuning", "generating"]
Part = Literal["arguments", "models", "templates"]
Verb = Literal["train", "predict", "export", "chat", "serve"]
Row = Mapping[str, Any]

PROBE = Path(__file__).parent.parent / "probe" / "arguments.py"
SECONDS = 120.0
SOURCES = ("hparams/*.py", "data/template.py", "data/tool_utils.py", "extras/constants.py", "training_args*.py")


class Limit(Struct, frozen=True):
    """A bound outside of which a value fails for certain or does something else; `why` says what happens."""

    why: str
    severity: Literal["error", "warning"] = "error"
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    other_than: float | None = None
    whole_from: float | None = None  # from here on only whole numbers
    also: tuple[float, ...] = ()  # values that are fine outside of the bounds
    # (argument, values): no bound while the argument has one of the values, or is above 0 when none are named.
    unless: tuple[Any, ...] = ()


class Argument(Struct, frozen=True):
    """One argument of LLaMA-Factory: what it takes, what it means, and which of its classes it belongs to."""

    name: str
    kinds: tuple[Kind, ...]
    choices: tuple[str | int, ...] | None
    nullable: bool
    default: Any
    help: str
    group: Group
    owner: str
    separator: str | None = None  # a text is several values with this between them; a list is accepted too
    limits: tuple[Limit, ...] = ()
    former: Mapping[str, str | Mapping[str, Any]] | None = None  # a wrong value -> what to write
    elsewhere: tuple[str, ...] = ()  # values that only other tools have; what to do instead depends on the model
    infinite: bool = False
    # (argument, values) as in Limit.unless: nothing reads this one without them.
    read_with: tuple[Any, ...] = ()


Table = Mapping[str, Argument]


def version_of(stage: Any = None) -> str:
    """The version of LLaMA-Factory that a stage runs in."""
    return STAGES.get(str(stage), LLAMAFACTORY)


def frozen(part: Part, stage: Any = None) -> Mapping[str, Any]:
    """A table of the stage's version as scripts/freeze_arguments.py wrote it: `versions`, and the rows below `part`."""
    content: dict[str, Any] = read(f"llamafactory/{version_of(stage)}/{part}.json")
    return content


# An installed LLaMA-Factory is asked in a child process, and its answer kept ------------------------------------------


class Installation(Struct, frozen=True):
    """The folders of the two packages, and the Python that imports them."""

    llamafactory: Path
    transformers: Path
    python: str = sys.executable

    @property
    def folders(self) -> tuple[Path, Path]:
        return self.llamafactory, self.transformers


@cache
def ask(installed: Installation) -> Mapping[str, Row] | None:
    """Name -> row of each argument; None where the packages cannot be imported.

    The child takes about 7 s; its answer is kept below ~/.cache/iis-finetune until one of the sources changes.
    """
    kept = Path.home() / ".cache" / "iis-finetune" / f"arguments-{_fingerprint(installed)}.json"
    with contextlib.suppress(OSError, ValueError):
        return _rows(kept.read_text("utf-8"))
    sites = dict.fromkeys(str(folder.parent) for folder in installed.folders)
    done = process.capture([installed.python, str(PROBE), "arguments", *sites], SECONDS)
    if done is None or done.returncode != 0:
        return None
    text = done.stdout.strip().splitlines()[-1]
    with contextlib.suppress(OSError):  # a home that cannot be written to costs the 7 s each time
        kept.parent.mkdir(parents=True, exist_ok=True)
        runs.write(kept, text)
    return _rows(text)


def _rows(text: str) -> Mapping[str, Row]:
    rows: Mapping[str, Row] = json.loads(text)["arguments"]
    return rows


def _fingerprint(installed: Installation) -> str:
    """The files that define the arguments, with size and time: an editable installation changes under its version."""
    files = [PROBE, *(file for folder in installed.folders for each in SOURCES for file in sorted(folder.glob(each)))]
    looks = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((installed.python, looks)).encode()).hexdigest()[:16]


# The table of arguments -----------------------------------------------------------------------------------------------


def accepted_versions() -> Mapping[str, tuple[str, str]]:
    """Package -> the lowest and the highest version that LLaMA-Factory starts with, by its own check."""
    return {name: (lowest, highest) for name, (lowest, highest) in frozen("arguments")["ranges"].items()}


def table(stage: Any = None, ppo: Path | None = None) -> Table:
    """The arguments of the LLaMA-Factory that is installed; about 5 ms where it is the version frozen here.

    Stage ppo runs in the environment `ppo`. Another version is asked in a child, once; where it is not installed, or
    cannot be asked, the frozen table stands in.
    """
    other = _other_version(stage, ppo)
    rows = ask(other) if other else None
    return _build(rows) if rows else frozen_table(stage)


def table_problems(stage: Any = None, ppo: Path | None = None) -> list[Problem]:
    """A warning where another LLaMA-Factory is installed and could not be asked."""
    other = _other_version(stage, ppo)
    if other is None or ask(other):
        return []
    version = version_of(stage)
    what = f"LLaMA-Factory in {other.llamafactory} is not {version} and cannot be imported: checked against {version}"
    return [Problem(what, f"make setup, or pip install llamafactory=={version}", severity="warning", kind="machine")]


def frozen_table(stage: Any = None) -> Table:
    """The arguments of the stage's version as shipped with the kit."""
    return _frozen_table(version_of(stage))


@cache
def _frozen_table(version: str) -> Table:
    return _build(read(f"llamafactory/{version}/arguments.json")["arguments"])


def _other_version(stage: Any, ppo: Path | None) -> Installation | None:
    """What the stage would run in, where that is another version than the frozen one."""
    found = _installed() if version_of(stage) == LLAMAFACTORY else _installed_in(ppo)
    if found is None:
        return None
    versions = frozen("arguments", stage)["versions"]
    # The name of the metadata folder says the version; importlib.metadata would cost 20 ms.
    same = [(folder.parent / f"{folder.name}-{versions[folder.name]}.dist-info").is_dir() for folder in found.folders]
    return None if all(same) else found


def _installed() -> Installation | None:
    specs = [importlib.util.find_spec(name) for name in ("llamafactory", "transformers")]
    places = [spec.submodule_search_locations for spec in specs if spec and spec.submodule_search_locations]
    folders = [Path(next(iter(place))) for place in places]
    return Installation(folders[0], folders[1]) if len(folders) == len(specs) else None


def _installed_in(environment: Path | None) -> Installation | None:
    """LLaMA-Factory in another virtual environment."""
    site = next(environment.glob("lib/python*/site-packages"), None) if environment else None
    if environment is None or site is None:
        return None
    found = Installation(site / "llamafactory", site / "transformers", str(environment / "bin" / "python"))
    return found if all(folder.is_dir() for folder in found.folders) else None


def _build(rows: Mapping[str, Row]) -> dict[str, Argument]:
    values = read("values.json")
    known, owners = values["arguments"], values["read_with"]
    return {
        name: convert({"name": name, "read_with": owners.get(row["owner"], ()), **row, **known.get(name, {})}, Argument)
        for name, row in rows.items()
    }


# Models and templates -------------------------------------------------------------------------------------------------


class Model(Struct, frozen=True):
    """A model that LLaMA-Factory knows; `template` is None for base models that were never tuned for talking."""

    name: str
    huggingface: str | None
    modelscope: str | None
    openmind: str | None
    template: str | None
    multimodal: bool


class Template(Struct, frozen=True):
    """A prompt template; `slots` holds per role texts, `{"special": "bos_token"}` and `{"token": "<|x|>"}`."""

    name: str
    stop_words: tuple[str, ...]
    thought_words: tuple[str, str]
    tool_call_words: tuple[str, str]
    default_system: str
    efficient_eos: bool
    replace_eos: bool
    replace_jinja_template: bool
    reasoning: bool
    multimodal: bool
    tool_format: str | None
    slots: dict[str, list[str | dict[str, str]]]

    @property
    def tokens(self) -> tuple[str, ...]:
        """The stop words and the tokens that the slots name: each must be one token of the model's tokenizer."""
        slots = [slot for role in self.slots.values() for slot in role if isinstance(slot, dict)]
        named = [slot["token"] for slot in slots if "token" in slot]
        return tuple(dict.fromkeys([*self.stop_words, *named]))


@cache
def find_model(hub_id: str) -> Model | None:
    """The model with this Hugging Face, ModelScope or Openmind id, or this display name, whatever the case."""
    wanted = hub_id.strip().rstrip("/").lower()
    for name, row in frozen("models")["models"].items():
        model = Model(name, **row)
        if wanted in {each.lower() for each in (name, model.huggingface, model.modelscope, model.openmind) if each}:
            return model
    return None


@cache
def find_template(name: str) -> Template | None:
    """The template of exactly this name."""
    row: dict[str, Any] | None = frozen("templates")["templates"].get(name)
    if row is None:
        return None
    pairs = {key: tuple(row[key]) for key in ("stop_words", "thought_words", "tool_call_words")}
    return Template(name, **{**row, **pairs})


def for_verb(arguments: Mapping[str, Any], verb: Verb, table: Table) -> dict[str, Any]:
    """The arguments that the verb reads; what would make it fail or mean something else there is left out."""
    row = _row(verb)
    kept = {name: value for name, value in arguments.items() if name in table and _reads(row, table[name])}
    if kept.get("stage") not in row.get("stages", [kept.get("stage")]):
        kept.pop("stage", None)  # an inference file need not have one
    return kept


def _row(verb: Verb) -> Mapping[str, Any]:
    rows = read("verbs.json")["verbs"]
    row: Mapping[str, Any] = rows[verb]
    return rows[row["same_as"]] if "same_as" in row else row


def _reads(row: Mapping[str, Any], argument: Argument) -> bool:
    names = {argument.name, argument.owner}
    return (
        argument.group in row["groups"]
        and ("only" not in row or not names.isdisjoint(row["only"]))
        and names.isdisjoint(row.get("without", ()))
    )

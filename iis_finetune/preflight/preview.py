"""Rows of a recipe's data sets as the model will see them: LLaMA-Factory is asked in a child process."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from .. import dataset, models, process
from ..dataset import Fault, Options, Row, Sample, Source
from ..errors import Place, Problem, ProblemsFound, errors_of
from ..runs import Run, fill, write_json
from . import Examined, Question, data_folder, deep, look

SECONDS = 600.0
UNCUT = 1 << 30  # tokens; without the model's tokenizer nothing is known of lengths
# LLaMA-Factory's arguments that the tokens and labels of a row depend on.
OF_TOKENIZER = ("use_fast_tokenizer", "split_special_tokens", "add_tokens", "add_special_tokens", "trust_remote_code")
OF_ROWS = (
    *("template", "train_on_prompt", "mask_history", "neat_packing", "tool_format"),
    *("default_system", "enable_thinking", "preserve_thinking"),
)


Chosen = list[tuple[Row, Sample | Fault]]


class Piece(NamedTuple):
    """A run of tokens as one text: do they carry loss, are they kept by cutoff_len?"""

    text: str
    loss: bool
    kept: bool


class Part(Struct, frozen=True, kw_only=True):
    """A row, one of its two answers, or a block of packed rows; `whole` counts its tokens before any is cut.

    `stops`: a token that ends an answer carries loss.
    """

    name: str
    ids: list[int]
    labels: list[int]
    whole: int
    pieces: list[Piece]
    stops: bool


class Example(Struct, frozen=True):
    """A row of a data set, or a block; `notes` say where things come from, `fault` why there is nothing to show."""

    data: str
    number: int
    notes: Mapping[str, str]
    fault: str | None = None
    parts: list[Part] = msgspec.field(default_factory=list)


class Preview(Struct, frozen=True, kw_only=True):
    """What the model will see; `tokenised` is False where its tokenizer is not on this disk."""

    recipe: str
    template: str | None
    cutoff_len: int
    tokenised: bool
    packed: bool
    examples: list[Example]
    problems: list[Problem]


def trained_rows(question: Question) -> tuple[Examined, list[Source], Options, list[Problem]]:
    """The data sets that a recipe trains on and what a training does with their rows; raises ProblemsFound."""
    seen = look(question)
    settings, place = seen.plan.settings, seen.recipe.place("dataset")
    stage, names = str(settings["stage"]), settings.names("dataset")
    sources, wrong = dataset.check_registered(names, data_folder(seen, question), stage, place)
    wrong = [*(each for each in seen.problems if each.kind == "invalid"), *wrong]
    if not names:
        wrong.append(Problem("the recipe names no data set", "dataset: NAME", place))
    if errors_of(wrong) or not sources:
        raise ProblemsFound(wrong)
    return seen, sources, dataset.options_of(settings, stage, question.limit), wrong


class _Looked(NamedTuple):
    """A recipe's data sets as they will be shown: what is known of them, and the rows that were chosen of each."""

    seen: Examined
    options: Options
    tokenised: bool
    chosen: list[tuple[Source, Chosen]]


def preview(question: Question, numbers: range) -> Preview:
    """The rows of these numbers, counted from 1, of each data set that is trained on; blocks where rows are packed.

    Raises ProblemsFound where LLaMA-Factory would load nothing.
    """
    seen, sources, options, problems = trained_rows(question)
    folder, settings = seen.model.folder, seen.plan.settings
    tokenised = folder is not None and any(any(folder.glob(name)) for name in ("tokenizer*", "vocab*", "*.model"))
    packed = tokenised and options.packing and options.processing in ("pt", "sft")
    options = replace(options, packing=packed, limit=dataset.SAMPLE)
    for source in sources:
        found = question.readings.check_rows(source, options, folder / "tokenizer.json" if folder else None)
        problems += [*found.problems, *found.truncation.problems]
    if settings["template"]:
        problems += models.check_template(settings["template"], seen.model, seen.recipe.place("template"))
    problems += [] if tokenised else [_no_tokenizer(seen)]
    if errors_of(problems):
        raise ProblemsFound(problems)
    wanted = range(1, dataset.SAMPLE + 1) if packed else numbers
    looked = _Looked(seen, options, tokenised, [(source, _chosen(source, options, wanted)) for source in sources])
    examples = list(_blocks(looked, question, numbers) if packed else _rows(looked, question))
    problems = [*(() if packed or options.processing in ("pt", "generate") else _endless(looked, examples)), *problems]
    named = {"recipe": seen.recipe.name, "template": settings["template"], "cutoff_len": settings["cutoff_len"]}
    return Preview(**named, tokenised=tokenised, packed=packed, examples=examples, problems=problems)


def _no_tokenizer(seen: Examined) -> Problem:
    what = f"the tokenizer of {seen.model.name} is not on this disk: only the template's text is shown, nothing is cut"
    fix = f"iis-finetune {'train' if seen.base else 'download'} {seen.recipe.name}"
    return Problem(what, fix, seen.recipe.place("model_name_or_path"), "warning", "missing")


def _endless(looked: _Looked, examples: Sequence[Example]) -> Iterator[Problem]:
    """What makes a chat after the training go on and on."""
    rows = [f"{each.data} {each.number}" for each in examples if not all(part.stops for part in each.parts)]
    if rows:
        what = f"no token that ends an answer carries loss, so the model learns not to stop: row {', '.join(rows)}"
        fix = "a longer cutoff_len where the end is cut off, else a template that ends its answers"
        yield Problem(what, fix, looked.seen.recipe.place("template"), "warning")


def _chosen(source: Source, options: Options, numbers: range) -> Chosen:
    found = list(islice(dataset.samples(source, replace(options, limit=None)), numbers.start - 1, numbers.stop - 1))
    if not found:
        there = dataset.count_rows(source)
        what = f"'{source.name}' has {there} rows, and no row {numbers.start}"
        raise ProblemsFound([Problem(what, f"--row {there}, or a lower one", Place(str(source.files[0])))])
    return found


def _rows(looked: _Looked, question: Question) -> Iterator[Example]:
    for source, rows, made in _ask(looked, question):
        parts = iter(made)
        for row, sample in rows:
            if isinstance(sample, Fault):
                yield Example(source.name, row.number, {}, sample.sentence(row.file)[0])
            else:
                yield Example(source.name, row.number, _notes(looked, source, row, sample), parts=next(parts))


def _blocks(looked: _Looked, question: Question, numbers: range) -> Iterator[Example]:
    for source, rows, made in _ask(looked, question):
        for number, parts in list(enumerate(made, 1))[numbers.start - 1 : numbers.stop - 1]:
            yield Example(source.name, number, {"packed": f"a block of the first {len(rows)} rows"}, parts=parts)


def _notes(looked: _Looked, source: Source, row: Row, sample: Sample) -> dict[str, str]:
    """Where system text and tools come from, and the label of a labelled answer."""
    columns, template = source.layout.columns, looked.options.template
    if looked.options.processing == "pt":
        return {}
    system = "none"
    if sample.system:
        in_column = row.value.get(columns.get("system")) == sample.system
        system = f"column '{columns['system']}'" if in_column else "the first message"
    elif looked.options.default_system is not None:
        system = "default_system of the recipe"
    elif template and template.default_system:
        system = f"template '{template.name}'"
    tools = {"tools": f"column '{columns['tools']}'"} if sample.tools else {}
    return {"system": system, **tools} | ({} if sample.label is None else {"label": str(sample.label).lower()})


def _ask(looked: _Looked, question: Question) -> Iterator[tuple[Source, Chosen, list[list[Part]]]]:
    """Each data set with its chosen rows, and what LLaMA-Factory makes of the usable ones."""
    seen = looked.seen
    with process.scratch_folder() as folder:
        entries = {str(n): _write(folder / f"{n}.json", *each) for n, each in enumerate(looked.chosen)}
        write_json(folder / dataset.REGISTRY_FILE, {name: entry for name, entry in entries.items() if entry})
        write_json(folder / "asked.json", _asked(looked))
        chosen = fill(seen.plan.environment, Run(folder), question.workspace)
        around = deep.child_environment(seen.machine, question.environment, chosen)
        done = process.capture([sys.executable, "-m", "iis_finetune.probe.preview", str(folder)], SECONDS, around)
        if wrong := deep.problems_of(seen.recipe, done):
            raise ProblemsFound(wrong)
        made = msgspec.json.decode((folder / "examples.json").read_bytes(), type=dict[str, list[list[Part]]])
    for n, (source, rows) in enumerate(looked.chosen):
        yield source, rows, made.get(str(n), [])


def _asked(looked: _Looked) -> dict[str, Any]:
    settings, template = looked.seen.plan.settings, looked.options.template
    data = {name: settings[name] for name in OF_ROWS if settings[name] is not None}
    model = {name: settings[name] for name in OF_TOKENIZER if settings[name] is not None}
    length = settings["cutoff_len"] if looked.tokenised else UNCUT
    stage = looked.options.processing
    return {
        "stage": "ppo" if stage == "generate" else stage,
        "model": model | ({"model_name_or_path": str(looked.seen.model.folder)} if looked.tokenised else {}),
        "data": {**data, "cutoff_len": length, "packing": looked.options.packing},
        "words": template.tokens if template else (),
    }


def _write(file: Path, source: Source, rows: Chosen) -> dict[str, Any]:
    """The usable rows as one JSON array, out of which nobody reads dates, and its entry; nothing without such rows."""
    layout = source.layout
    columns = dict.fromkeys(layout.columns.values())
    usable = [{**columns, **row.value} for row, sample in rows if not isinstance(sample, Fault)]
    file.write_text(json.dumps(usable, default=str), encoding="utf-8")
    entry = {key: getattr(layout, key) for key in ("formatting", "ranking", "columns", "tags")}
    return {"file_name": file.name, **entry} if usable else {}

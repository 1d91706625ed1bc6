"""The verbs on one's own data: data add, data check."""

from pathlib import Path
from typing import Annotated

import typer

from .. import dataset
from ..errors import COMMAND_LINE, Misused, Place, Problem, ProblemsFound, did_you_mean, errors_of
from . import data_make, show
from .download import Source, fetch_rows
from .words import AsJson, Full, workspace

app = typer.Typer(help="Register, look at and check your own data sets.", no_args_is_help=True, rich_markup_mode=None)

Own = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="JSON, JSONL, CSV, text, Parquet, Arrow, also as .gz; a folder of them; a hub's id."
    ),
]
Columns = Annotated[str, typer.Option("--columns", metavar="FIELD=COLUMN,..", help="instruction=q,output=a")]
Encoding = Annotated[str | None, typer.Option("--encoding", help="What it is written in, if that is not recognised.")]
Name = Annotated[str | None, typer.Option("--name", help="Its name in recipes; the file's name otherwise.")]
Copied = Annotated[bool, typer.Option("--copy", help="Copy the file into data/ instead of naming where it lies.")]
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Registered names; all of them if none.")]
Stage = Annotated[
    str | None, typer.Option("--stage", help="pt, sft, rm, dpo or kto; what the columns are for if not said.")
]


@app.command()
def add(
    own: Own,
    name: Name = None,
    copy: Copied = False,
    columns: Columns = "",
    encoding: Encoding = None,
    source: Source = None,
) -> None:
    """Register a data set: how it is written and its format are recognised, dataset_info.json gets its entry."""
    path = Path(own).expanduser()
    if not path.exists() and dataset.HUB_ID.fullmatch(own) and not path.parent.is_dir():
        path = fetch_rows(own, source)
    asked = dataset.OwnFile(path=path, name=name, copy=copy, columns=_columns(columns), encoding=encoding)
    with show.meter("reading rows") as progress:
        added = dataset.add(asked, workspace().data, progress)
    show.problems(added.reading.problems)
    _tell(added)


def _tell(added: dataset.Added) -> None:
    name, reading, kind = added.source.name, added.reading, added.found.format
    for form in {str(each): each for each in added.found.forms}.values():
        show.line(f"{form.file}: {form}")
    if not added.found.usable:
        rows = added.source.files[0]
        show.line(
            f"  LLaMA-Factory cannot read that; the rows are written to {rows}, in UTF-8, and this stays as it is"
        )
    fields = ", ".join(f"{dataset.COLUMNS.get(key, key)}={column}" for key, column in kind.entry["columns"].items())
    show.line(f"registered '{name}' in {added.registry}: {kind.name} format, {reading.kept} usable rows")
    show.line(f"  {fields}; if that is not meant: --columns")
    if not reading.complete:
        show.line(f"  {_part(added.source, reading)}; all are read by: iis-finetune data check {name} --full")
    if Path(added.entry["file_name"]).is_absolute():
        show.line(f"  it is read from {added.entry['file_name']}; with --copy it is put into {added.registry.parent}")
    stage = "" if kind.stage == "sft" else f" stage={'dpo' if kind.stage == 'rm' else kind.stage}"
    show.line(f"a recipe trains on it with: dataset={name}{stage}")
    show.line("next: iis-finetune recipes")


def _columns(given: str) -> dict[str, str]:
    """`instruction=q,output=a` by LLaMA-Factory's keys. Raises Misused for a field that there is not."""
    pairs = [pair.strip().partition("=") for pair in given.split(",") if pair.strip()]
    for field, sign, column in pairs:
        if field not in dataset.FIELDS or not (sign and column):
            fix = did_you_mean(field, dataset.FIELDS, f"fields are: {', '.join(dataset.FIELDS)}")
            raise Misused(f"--columns: '{field}{sign}{column}' is not FIELD=COLUMN", fix)
    return {dataset.FIELDS[field]: column for field, _, column in pairs}


def _part(source: dataset.Source, reading: dataset.Reading) -> str:
    with show.meter("counting rows") as progress:
        return f"first {reading.rows:,} of {dataset.count_rows(source, progress):,} rows read"


@app.command()
def check(names: Names = None, stage: Stage = None, full: Full = False, as_json: AsJson = False) -> None:
    """Read the rows as LLaMA-Factory would: what stops it, what it drops, what it trains oddly."""
    registry = dataset.known(workspace().data)
    if errors_of(registry.problems) and not (names and registry.entries):
        raise ProblemsFound(registry.problems)
    problems: list[Problem] = []
    counts, parts = {}, {}
    for name in names or dataset.read_registry(workspace().data).entries:
        entry = registry.entries.get(name)
        for_stage = stage or dataset.stage_of(entry.value if entry else {})
        sources, found = dataset.check_registered([name], workspace().data, for_stage, Place(COMMAND_LINE))
        problems += [each for each in found if each not in problems]
        for source in sources:
            options = dataset.Options(for_stage, None if full else dataset.LIMIT)
            with show.meter("reading rows") as progress:
                report = dataset.check_rows(source, options, progress=progress)
            counts[source.name] = {"rows": report.rows, "kept": report.kept, "dropped": report.dropped}
            problems += report.problems
            parts[source.name] = "" if report.complete else f" ({_part(source, report)}; --full reads all)"
    for name, count in counts.items() if not as_json else ():
        told = f"{count['rows']} rows, {count['kept']} usable, {count['dropped']} would be dropped"
        show.line(f"{name}: {told}{parts[name]}")
    show.verdict(problems, {"data": counts} if as_json else None)


for _verb in (data_make.split, data_make.clean):
    app.command()(_verb)

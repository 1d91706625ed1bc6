"""The verbs on one's own data: data add, data check."""

from pathlib import Path
from typing import Annotated

import typer

from .. import dataset
from ..errors import COMMAND_LINE, Place, ProblemsFound, errors_of
from . import data_make, show
from .words import AsJson, Full, workspace

app = typer.Typer(help="Register, look at and check your own data sets.", no_args_is_help=True, rich_markup_mode=None)

File = Annotated[Path, typer.Argument(metavar="FILE", help="JSON, JSONL, CSV, text, Parquet or Arrow.")]
Name = Annotated[str | None, typer.Option("--name", help="Its name in recipes; the file's name otherwise.")]
Copied = Annotated[bool, typer.Option("--copy", help="Copy the file into data/ instead of naming where it lies.")]
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Registered names; all of them if none.")]
Stage = Annotated[
    str | None, typer.Option("--stage", help="pt, sft, rm, dpo or kto; what the columns are for if not said.")
]


@app.command()
def add(file: File, name: Name = None, copy: Copied = False) -> None:
    """Register a data set: its format is recognised, dataset_info.json gets its entry."""
    workspace().data.mkdir(exist_ok=True)
    with show.meter("reading rows") as progress:
        added = dataset.add(dataset.OwnFile(file, name, copy), workspace().data, progress)
    show.problems(added.reading.problems)
    name, reading, kind = added.source.name, added.reading, added.format
    show.line(f"registered '{name}' in {added.registry}: {kind.name} format, {reading.kept} usable rows")
    if not reading.complete:
        show.line(f"  {_part(added.source, reading)}; all are read by: iis-finetune data check {name} --full")
    if Path(added.entry["file_name"]).is_absolute():
        show.line(f"  it is read from {added.entry['file_name']}; with --copy it is put into {added.registry.parent}")
    stage = "" if kind.stage == "sft" else f" stage={'dpo' if kind.stage == 'rm' else kind.stage}"
    show.line(f"a recipe trains on it with: dataset={name}{stage}")
    show.line("next: iis-finetune recipes")


def _part(source: dataset.Source, reading: dataset.Reading) -> str:
    with show.meter("counting rows") as progress:
        return f"first {reading.rows:,} of {dataset.count_rows(source, progress):,} rows read"


@app.command()
def check(names: Names = None, stage: Stage = None, full: Full = False, as_json: AsJson = False) -> None:
    """Read the rows as LLaMA-Factory would: what stops it, what it drops, what it trains oddly."""
    registry = dataset.read_registry(workspace().data)
    if errors_of(registry.problems):
        raise ProblemsFound(registry.problems)
    problems, counts, parts = list(registry.problems), {}, {}
    for name in names or registry.entries:
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

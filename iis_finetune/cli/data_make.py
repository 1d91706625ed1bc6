"""The verbs that make new data sets of a registered one: data split, data clean."""

from typing import Annotated

import typer
from msgspec import to_builtins

from .. import dataset
from ..errors import Misused, did_you_mean
from . import show
from .words import AsJson, workspace

Registered = Annotated[str, typer.Argument(metavar="DATASET", help="A registered name.")]
Test = Annotated[float, typer.Option("--test", metavar="SHARE", help="The share of the rows to hold out.")]
By = Annotated[str | None, typer.Option("--by", metavar="COLUMN", help="Rows with the same value there stay together.")]
Seed = Annotated[int, typer.Option("--seed", help="Another seed holds out other rows.")]
Name = Annotated[str | None, typer.Option("--name", help="Another name for what is made.")]
ALL, KINDS = ",".join(dataset.DROPPED), dataset.DROPPED | dataset.REPORTED
Drop = Annotated[str, typer.Option("--drop", metavar="KINDS", help="The kinds of rows to leave out.")]
FixText = Annotated[bool, typer.Option("--fix-text", help="Mend text decoded wrongly; take control characters out.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the table; write nothing.")]
SHOWN = 3  # rows of a kind in the table


def split(
    name: Registered, test: Test = 0.1, by: By = None, seed: Seed = 42, new: Name = None, as_json: AsJson = False
) -> None:
    """Hold rows out: two new data sets, DATASET_train and DATASET_test; rows near each other stay on one side."""
    if not 0 < test < 1:
        raise Misused(f"{test} is no share of the rows", "--test 0.1 holds out one in ten", "--test")
    made = dataset.split(name, workspace().data, dataset.Cut(test, by, seed, new), show.meter)
    if as_json:
        show.document(to_builtins(made, enc_hook=str))
        return
    for side, rows in zip(made.names, made.rows, strict=False):
        show.line(f"registered '{side}': {rows:,} rows")
    if made.rows[-1]:
        show.line(
            f"left out: {made.rows[-1]:,} rows, near rows of the other side (Jaccard {dataset.NEAR}): {made.left_out}"
        )
    show.line(f"a recipe trains and evaluates with: dataset={made.names[0]} kit.evaluate_after={made.names[1]}")
    show.line(f"next: iis-finetune data check {' '.join(made.names)}")


def clean(
    name: Registered,
    drop: Drop = ALL,
    fix: FixText = False,
    dry: DryRun = False,
    new: Name = None,
    as_json: AsJson = False,
) -> None:
    """Leave rows out that have something wrong: a new data set, DATASET_clean, and a file that tells why of each."""
    kinds = tuple(drop.split(","))
    for kind in kinds:
        if kind not in dataset.DROPPED:
            raise Misused(
                f"'{kind}' cannot be left out", did_you_mean(kind, dataset.DROPPED, f"some of {ALL}"), "--drop"
            )
    made = dataset.clean(name, workspace().data, dataset.Wash(kinds, fix, dry, new), show.meter)
    if as_json:
        show.document(to_builtins(made, enc_hook=str))
        return
    table = [
        (kind, *_told(made.found[kind]), "left out" if kind in kinds else "stays", what) for kind, what in KINDS.items()
    ]
    show.table(("kind", "rows", "first", "", "what"), [row for row in table if row[1]], (1,))
    show.line(f"{made.rows:,} rows, {made.kept:,} stay, {made.mended:,} are mended")
    if dry:
        show.line(f"nothing was written\nnext: iis-finetune data clean {name}")
    else:
        show.line(f"registered '{made.name}'; the rows of the table are told in {made.left_out}")
        show.line(f"next: iis-finetune data check {made.name}")


def _told(rows: list[int]) -> tuple[int, str]:
    return len(rows), ", ".join(map(str, rows[:SHOWN])) + ", ..." * (len(rows) > SHOWN)

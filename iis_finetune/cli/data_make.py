"""The verbs that make new data sets of a registered one: data split, data clean."""

import shlex
from collections.abc import Sequence
from typing import Annotated

import typer
from msgspec import to_builtins

from .. import dataset
from ..errors import Misused, did_you_mean
from ..preflight import rows as preflight
from ..tables import read
from . import show
from .words import AsJson, question, workspace

Registered = Annotated[str, typer.Argument(metavar="DATASET", help="A registered name.")]
Test = Annotated[float, typer.Option("--test", metavar="SHARE", help="The share of the rows to hold out.")]
By = Annotated[str | None, typer.Option("--by", metavar="COLUMN", help="Rows with the same value there stay together.")]
Seed = Annotated[int, typer.Option("--seed", help="Another seed holds out other rows.")]
Name = Annotated[str | None, typer.Option("--name", help="Another name for what is made.")]
Drop = Annotated[str | None, typer.Option("--drop", metavar="KINDS", help="exact,near: leave out no others.")]
FixText = Annotated[bool, typer.Option("--fix-text", help="Mend text decoded wrongly; take control characters out.")]
ForRecipe = Annotated[
    str | None, typer.Option("--recipe", metavar="RECIPE", help="Leave out what its cutoff_len cuts, too.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the table; write nothing.")]


def split(
    name: Registered, test: Test = 0.1, by: By = None, seed: Seed = 42, new: Name = None, as_json: AsJson = False
) -> None:
    """Hold rows out: two new data sets, DATASET_train and DATASET_test; rows near each other stay on one side."""
    if not 0 < test < 1:
        raise Misused(f"{test} is no share of the rows", "--test 0.1 holds out one in ten", "--test")
    divided = dataset.split(name, workspace().data, dataset.Cut(test, by, seed, new), show.meter)
    if as_json:
        show.document(to_builtins(divided))
        return
    (train, held, left), rows = divided.rows, divided.rows
    show.line(f"registered '{train}': {rows[train]:,} rows, and '{held}': {rows[held]:,} rows")
    if rows[left]:
        near = f"near rows of the other side (Jaccard {dataset.NEAR} or more)"
        show.line(f"left out: {rows[left]:,} rows, {near}; they are in data/{left}.jsonl")
    if divided.lacking:
        show.line(f"without '{by}': {divided.lacking:,} rows, each on a side by itself")
    for answer, count in divided.not_held_out.items():
        show.line(f"none held out: {count:,} rows with the answer {answer[:40]!r}; another --seed may hold out some")
    if divided.template:
        show.line(dataset.TEMPLATE.format(divided.template))
    stage = dataset.stage_of(dataset.read_registry(workspace().data).entries[train].value)
    pairs = f"eval_dataset={held} eval_strategy=epoch stage={'dpo' if stage == 'rm' else stage}"  # not for answering
    held_out = pairs if stage in ("rm", "kto") else f"kit.evaluate_after={held}"
    show.line(f"a recipe trains and evaluates with: dataset={train} {held_out}")
    show.line(f"next: iis-finetune data check {train} {held}")


def clean(
    name: Registered,
    drop: Drop = None,
    fix: FixText = False,
    recipe: ForRecipe = None,
    dry: DryRun = False,
    new: Name = None,
    as_json: AsJson = False,
) -> None:
    """Leave out rows with something wrong: a new data set, DATASET_clean, and a file that tells why of each."""
    kinds, made = read("row_kinds.toml"), f"{new or name}_clean"
    known = [kind for kind, row in kinds.items() if row["left_out"] and (recipe or kind != "cut")]
    chosen = [kind.strip() for kind in drop.split(",")] if drop else known
    for kind in chosen:
        if kind not in known:
            usual = did_you_mean(kind, known, f"some of {','.join(known)}")
            fix_it = "--recipe RECIPE, whose cutoff_len cuts" if kind == "cut" else usual
            raise Misused(f"'{kind}' cannot be left out", fix_it, "--drop")
    encoding = preflight.encoding(question(recipe, [f"dataset={name}"], rows=False)) if recipe else None
    cleaned = dataset.clean(name, workspace().data, dataset.Wash(chosen, fix, dry, new, encoding), show.meter)
    show.answer(to_builtins(cleaned), as_json)
    _tell(cleaned, chosen, fix)
    if not dry:
        show.line(f"registered '{made}'; data/{made}_found.jsonl tells why of each row in the table")
    given = {"--drop": drop, "--recipe": recipe, "--name": new, "--fix-text": "" if fix else None}
    words = [word for option, value in given.items() if value is not None for word in (option, value) if word]
    show.line(f"next: iis-finetune data {shlex.join(['clean', name, *words]) if dry else f'check {made}'}")


def _tell(cleaned: dataset.Cleaned, chosen: Sequence[str], fix: bool) -> None:
    """The table of what was found, what is done with it, and what was not compared."""
    kinds = read("row_kinds.toml")
    done = dict.fromkeys(kinds, "stays") | dict.fromkeys(chosen, "left out")
    done |= {kind: "mended" for kind, row in kinds.items() if fix and row.get("mended")}
    found = [(kind, rows) for kind, rows in cleaned.found.items() if rows]
    if found:
        table = ((kind, len(rows), str(rows[:3])[1:-1], done[kind], kinds[kind]["what"]) for kind, rows in found)
        show.table(("kind", "rows", "first", "done", "what"), table, (1,))
    show.line(f"{cleaned.rows:,} rows, {cleaned.kept:,} stay; near is a Jaccard of {dataset.NEAR} or more")
    if cleaned.template:
        show.line(dataset.TEMPLATE.format(cleaned.template))

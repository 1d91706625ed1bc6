"""The verbs that look at rows: data preview, data stats."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec.structs import replace

from .. import __version__, dataset
from ..errors import Misused
from ..preflight import rows as of_recipe
from ..runs import KIT, write
from . import show
from .data import app
from .words import AsJson, Overrides, RecipeName, question, typed

Rows = Annotated[int, typer.Option("--rows", min=1, max=1000, metavar="N", help="How many of each data set.")]
OneRow = Annotated[int | None, typer.Option("--row", min=1, metavar="I", help="This one alone.")]
Page = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page instead of printing.")]
Data = Annotated[str, typer.Argument(metavar="RECIPE-or-DATASET", help="A recipe, or a registered data set.")]
Counted = Annotated[bool, typer.Option("--full", help="Count the tokens of every row, not of 20,000 only.")]

# What stands before and behind a text of each kind: on a terminal, and where there are no colours.
COLOURS = {"plain": ("\033[2m", "\033[0m"), "loss": ("\033[32m", "\033[0m"), "cut": ("\033[9;31m", "\033[0m")}
MARKS = {"plain": ("", ""), "loss": ("⟦", "⟧"), "cut": ("~~", "~~")}


@app.command()
def preview(
    recipe: RecipeName,
    overrides: Overrides = None,
    rows: Rows = 3,
    row: OneRow = None,
    html: Page = None,
    as_json: AsJson = False,
) -> None:
    """Rows as the model sees them: special tokens, what carries loss, what cutoff_len cuts."""
    if html and html.exists():
        raise Misused(f"{html} is there already", "name a new file, or move that one away", "--html")
    found, problems = of_recipe.seen_by_the_model(question(recipe, overrides), (row or 1, row or rows))
    if as_json:
        show.verdict(problems, found)
    show.problems(problems)
    if html:
        write(html, _rendered("preview.html.j2", {**found, "problems": problems, "version": __version__}))
        show.line(f"written: {html}")
    else:
        coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        show.page(_rendered("preview.txt.j2", {**found, "marks": COLOURS if coloured else MARKS}))
    show.line(f"next: iis-finetune data stats {typed(recipe, overrides)}")


def _rendered(template: str, values: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    folder = FileSystemLoader(KIT / "tables")
    pages = Environment(loader=folder, trim_blocks=True, autoescape=select_autoescape(["html.j2"]))
    pages.filters["shown"] = show.shown
    return pages.get_template(template).render(values)


@app.command()
def stats(name: Data, overrides: Overrides = None, full: Counted = False, as_json: AsJson = False) -> None:
    """Rows, turns, lengths, repeated answers, scripts, how data sets are mixed, and what to change."""
    limit = None if full else dataset.COUNTED
    with show.meter("reading rows") as progress:
        found = of_recipe.measure(replace(question(name, overrides), limit=limit, progress=progress))
    if as_json:
        show.document(found)
        return
    show.page(_rendered("stats.txt.j2", found))
    show.line(f"next: iis-finetune data {'preview' if found['recipe'] else 'check'} {typed(name, overrides)}")

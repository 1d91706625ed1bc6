"""The verbs that show rows: data preview, data stats."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import to_builtins

from .. import __version__
from ..errors import Misused
from ..runs import KIT, write
from . import show
from .data import app
from .words import AsJson, Overrides, RecipeName, question, typed

if TYPE_CHECKING:
    from ..preflight.preview import Example, Preview

Rows = Annotated[int, typer.Option("--rows", min=1, max=1000, metavar="N", help="How many of each data set.")]
OneRow = Annotated[int | None, typer.Option("--row", min=1, metavar="I", help="This one alone.")]
Page = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page instead of printing.")]

# (carries loss, is kept) -> the style on a terminal, the marks without one
MARKS = {
    (False, True): ("dim", ("", "")),
    (True, True): ("green", ("⟦", "⟧")),
    (False, False): ("red dim strike", ("~~", "~~")),
    (True, False): ("red strike", ("~~⟦", "⟧~~")),
}


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
    from ..preflight.preview import preview as look  # what the other verbs need not wait for

    if html and html.exists():
        raise Misused(f"{html} is there already", "name a new file, or move that one away", "--html")
    found = look(question(recipe, overrides, rows=False), range(row or 1, (row or rows) + 1))
    if as_json:
        show.verdict(found.problems, to_builtins(found))
    show.problems(found.problems)
    if html:
        write(html, _page(found))
        show.line(f"written: {html}")
    else:
        show.pieces([("carries loss", *MARKS[True, True]), ("  no loss", *MARKS[False, True])])
        for example in found.examples:
            _print(example, found)
    show.line(f"next: iis-finetune data stats {typed(recipe, overrides)}")


def _print(example: "Example", found: "Preview") -> None:
    notes = "; ".join(f"{name}: {text}" for name, text in example.notes.items())
    show.line(f"\n{example.data}, {'block' if found.packed else 'row'} {example.number}{notes and f'  ({notes})'}")
    if example.fault:
        show.line(f"  LLaMA-Factory makes nothing of it: {example.fault}")
    for part in example.parts:
        loss = sum(label >= 0 for label in part.labels)
        cut = f", {part.whole - len(part.ids)} cut off by cutoff_len {found.cutoff_len}" * (part.whole > len(part.ids))
        counted = f"{part.whole} tokens{cut}; {loss} carry loss, {'one' if part.stops else 'none'} of them a stop token"
        show.line("  ".join(filter(None, (part.name, counted * found.tokenised))))
        show.pieces((text, *MARKS[loss, kept]) for text, loss, kept in part.pieces)


def _page(found: "Preview") -> str:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(KIT / "tables"), autoescape=True, trim_blocks=True)
    return environment.get_template("preview.html.j2").render(found=found, version=__version__)

"""The verb machines: what `--on` takes."""

from typing import Any

from .. import machine
from . import show
from .words import AsJson

COLUMNS = ("name", "card", "architecture", "memory_gib", "precision", "attention", "knowledge")


def machines(as_json: AsJson = False) -> None:
    """List the machines that --on takes, and what is known of each."""
    rows = [_row(name) for name in machine.profiles()]
    show.answer({"machines": rows}, as_json)
    show.table([column.replace("_gib", " GiB") for column in COLUMNS], [list(row.values()) for row in rows])
    show.line("\nAn architecture (gfx1100, sm_89) and a card's own name do as well; NAMEx2 is two of them.")
    show.line("knowledge: documented by the maker or a public run, never run by us; else derived, or reported once.")
    show.line("next: iis-finetune plan RECIPE --on NAME")


def _row(name: str) -> dict[str, Any]:
    """What `auto` decides for one card, and how sure the table is of it."""
    found = machine.profile(name)
    row, one = machine.architecture(found.arch), next(iter(found.devices), None)
    precision = str(machine.decide_precision(found)[0].value)
    attention = str(machine.decide_attention(found, precision)[0].value)
    sure = all(row[cell]["confirmed"] for cell in ("precision", "attention"))
    cells = (name, one.name if one else "no card", found.arch, one.memory_gib if one else found.memory_gib)
    return dict(zip(COLUMNS, (*cells, precision, attention, "documented" if sure else "unconfirmed"), strict=True))

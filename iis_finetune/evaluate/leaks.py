"""Which rows of an evaluation the training saw, so that the figures can be told without them, too."""

from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from .. import dataset
from ..arguments import trained_with
from ..dataset import Leaks
from ..errors import Place
from ..plan.after import Trained
from .answers import UNSLICEABLE, Evaluation

NEAR_ROWS = 20_000  # training rows among which nearly equal ones are looked for: 0.3 ms each


def seen_rows(asked: Evaluation, trained: Trained) -> tuple[Leaks | None, set[int]]:
    """What leaks, as far as the rows are on this disk, and those rows' places among the answers, where known."""
    settings = trained_with(trained.arguments)
    folder, stage = settings["dataset_dir"], settings["stage"]

    def read(names: list[str], read_as: str, generate: bool) -> list[dataset.Read]:
        options = replace(dataset.options_of(settings, read_as), keyed=True, generate=generate)
        sources, _ = dataset.check_registered(names, folder, read_as, Place())
        return [dataset.Read(each, options, dataset.check_rows(each, options)) for each in sources]

    learnt = read(settings.names("dataset"), stage, False)
    held = read([asked.data], "pt" if stage == "pt" else "sft", stage != "pt")
    if not (learnt and held):
        return None, set()
    leaks = dataset.leaks_of(held[0], learnt, sum(each.reading.kept for each in learnt) <= NEAR_ROWS)
    entry, rows = dataset.read_registry(Path(folder)).entries[asked.data].value, {leak.row for leak in leaks.found}
    known = not any(key in entry for key in UNSLICEABLE)
    return leaks, {at for at, (row, _) in enumerate(held[0].keyed()) if known and row in rows}


def unseen_slices(slices: Iterable[str], leaks: Leaks) -> list[int]:
    """The slices of the rows, by their places, that have none of those that leak."""
    starts = [int(name.rpartition("-")[2]) for name in slices]
    seen = {bisect_left(starts, leak.row) - 1 for leak in leaks.found}
    return [at for at in range(len(starts)) if at not in seen]

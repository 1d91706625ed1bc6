"""New data sets made of a registered one: their files and their entries, all of them or none."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..errors import COMMAND_LINE, Misused, Place, ProblemsFound, errors_of
from ..runs import write
from .registry import check_registered, read_registry, with_entries
from .rows import Progress
from .sources import Options, Source, stage_of

KEPT = ("formatting", "ranking", "columns", "tags")  # of an entry: how the rows are read, not where they lie
Meter = Callable[[str], AbstractContextManager[Progress]]  # shows how far a part of the work is


class Making(NamedTuple):
    """A registered data set, what its rows are read for, and a stream to each file that is made of it."""

    source: Source
    options: Options
    streams: list[IO[bytes]]


@contextmanager
def making(name: str, folder: Path, names: Sequence[str]) -> Iterator[Making]:
    """Make data sets of a registered one, and a file beside them (the last name), when the block ends well.

    Raises ProblemsFound when the data set is not here or a name is taken.
    """
    registry = read_registry(folder)
    stage = stage_of(registry.entries[name].value if name in registry.entries else {})
    sources, problems = check_registered([name], folder, stage, Place(COMMAND_LINE))
    if not sources or errors_of(problems):
        raise ProblemsFound(problems)
    if taken := [each for each in names if each in registry.entries or (folder / f"{each}.jsonl").exists()]:
        raise Misused(f"{taken[0]} is there already", "give another name: --name NAME", "--name")
    files = [folder / f"{each}.jsonl" for each in names]
    parts = [file.with_name(f".{os.getpid()}-{file.name}") for file in files]
    try:
        with ExitStack() as opened:
            yield Making(sources[0], Options(stage, None), [opened.enter_context(part.open("wb")) for part in parts])
        for part, file in zip(parts, files, strict=True):
            with part.open("rb") as whole:
                os.fsync(whole.fileno())
            part.rename(file)
        kept = {key: value for key, value in registry.entries[name].value.items() if key in KEPT}
        entries = {each: {"file_name": f"{each}.jsonl", **kept} for each in names[:-1]}
        if entries:
            write(registry.file, with_entries(read_registry(folder).text, entries))
    except BaseException:
        for path in (*files, *parts):
            path.unlink(missing_ok=True)
        raise


def line_of(row: Any) -> bytes:
    """A row as a line of JSON; half a surrogate pair is left out, as LLaMA-Factory's reader does."""
    return (json.dumps(row, ensure_ascii=False, default=str) + "\n").encode("utf-8", "ignore")

"""New data sets made of a registered one: their files and their entries, all of them or none."""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..errors import COMMAND_LINE, Misused, Place, ProblemsFound, errors_of
from ..process import scratch_folder
from .registry import check_registered, enter, known
from .rows import Progress
from .sources import Options, Source, stage_of

JSON = json.JSONEncoder(ensure_ascii=False, default=str)
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
    source, value = registered(name, folder, names)
    files = [folder / f"{each}.jsonl" for each in names]
    entry, placed = {key: value[key] for key in KEPT if key in value}, list[Path]()
    try:
        if files:
            folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder) if files else nullcontext(folder) as parts:
            with ExitStack() as opened:
                streams: list[IO[bytes]] = [opened.enter_context((parts / file.name).open("wb")) for file in files]
                yield Making(source, Options(stage_of(value), None), streams)
            for file in files:
                with (parts / file.name).open("rb") as whole:
                    os.fsync(whole.fileno())
                os.link(whole.name, file)  # unlike a rename it fails where another has made a file of that name
                placed.append(file)
        if entries := {file.stem: {"file_name": file.name, **entry} for file in files[:-1]}:
            enter(folder, entries)
        placed.clear()
    except FileExistsError as error:
        raise Misused(f"{error.filename2} is there already", "give another name: --name NAME", "--name") from None
    finally:
        for file in placed:
            file.unlink(missing_ok=True)


def registered(name: str, folder: Path, names: Sequence[str]) -> tuple[Source, dict[str, Any]]:
    """The data set of a name and its entry, when it is here and what is to be made of it can have these names."""
    entries = known(folder).entries
    value = entries[name].value if name in entries else {}
    sources, problems = check_registered([name], folder, stage_of(value), Place(COMMAND_LINE))
    if not sources or errors_of(problems):
        raise ProblemsFound(problems)
    for each in names:
        if not re.fullmatch(r"[\w.-]+", each):
            raise Misused(f"'{each}' cannot name a data set", "use letters, digits, _ and -", "--name")
        if each in entries or (folder / f"{each}.jsonl").exists():
            raise Misused(f"{each} is there already", "give another name: --name NAME", "--name")
    return sources[0], value


def line_of(row: Any) -> bytes:
    """A row as a line of JSON; half a surrogate pair is left out, as LLaMA-Factory's reader does."""
    return (JSON.encode(row) + "\n").encode("utf-8", "ignore")

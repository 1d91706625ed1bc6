"""New data sets made of a registered one: their files and their entries, all of them or none."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from msgspec import Struct

from ..errors import COMMAND_LINE, Misused, Place, ProblemsFound, errors_of
from ..runs import write
from .registry import check_registered, read_registry, with_entries
from .rows import Progress
from .sources import Options, Source, stage_of

Meter = Callable[[str], AbstractContextManager[Progress]]  # shows how far a part of the work is
KEPT_KEYS = ("formatting", "ranking", "columns", "tags")


class Making(Struct, frozen=True):
    """A registered data set, what its rows are read for, and the entries of those made of it by the files they get.

    `beside` is a file for the rows that are in none of them.
    """

    source: Source
    options: Options
    entries: Mapping[Path, Mapping[str, Any]]
    beside: Path

    @contextmanager
    def streams(self) -> Iterator[list[IO[bytes]]]:
        """One to each file, the one beside last; the files get their names, and are registered, when all went well."""
        files = [*self.entries, self.beside]
        parts = [file.with_name(f".{os.getpid()}-{file.name}") for file in files]
        try:
            with ExitStack() as opened:
                streams: list[IO[bytes]] = [opened.enter_context(part.open("wb")) for part in parts]
                yield streams
                for stream in streams:
                    stream.flush()
                    os.fsync(stream.fileno())
            for part, file in zip(parts, files, strict=True):
                part.rename(file)
            registry = read_registry(self.beside.parent)
            write(registry.file, with_entries(registry.text, {file.stem: each for file, each in self.entries.items()}))
        except BaseException:
            for path in (*files, *parts):
                path.unlink(missing_ok=True)
            raise


def making(name: str, data_dir: Path, names: list[str], beside: str) -> Making:
    """Prepare to make data sets of a registered one; raises ProblemsFound when it is not here or a name is taken."""
    taken = read_registry(data_dir).entries
    stage = stage_of(taken[name].value if name in taken else {})
    sources, problems = check_registered([name], data_dir, stage, Place(COMMAND_LINE))
    if not sources or errors_of(problems):
        raise ProblemsFound(problems)
    files = [data_dir / f"{each}.jsonl" for each in (*names, beside)]
    for file in files:
        if file.stem in taken or file.exists():
            raise Misused(f"{file.stem} is there already", "give another name: --name NAME", "--name")
    entry = {key: value for key, value in taken[name].value.items() if key in KEPT_KEYS}
    entries = {file: {"file_name": file.name, **entry} for file in files[:-1]}
    return Making(sources[0], Options(stage, None), entries, files[-1])


def line_of(row: Any) -> bytes:
    """A row as a line of JSON; half a surrogate pair is left out, as LLaMA-Factory's reader does."""
    return (json.dumps(row, ensure_ascii=False, default=str) + "\n").encode("utf-8", "ignore")

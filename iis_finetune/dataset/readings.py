"""What was found in data files, remembered while the files stay as they are."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct, field, to_builtins

from ..runs import read_json, typed, write
from .rows import Progress, Reading, check_rows
from .sources import Options, Source


class Readings(Struct, frozen=True):
    """A memory that grows: no file is read twice while its path, size, time of change and settings are the same.

    One goes with a process, in its question. A process that is started to go on is handed it in a file: `keep` here,
    `kept` there. Only what is in memory counts as known; it is not written by itself.
    """

    rows: dict[str, Reading] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    def check_rows(
        self, source: Source, options: Options, tokenizer_json: Path | None = None, progress: Progress | None = None
    ) -> Reading:
        """As `dataset.check_rows`, at most once."""
        tokenizer = (tokenizer_json, tokenizer_json.with_name("tokenizer_config.json")) if tokenizer_json else ()
        known = _key(source, options, _stamps(source.files), _stamps(tokenizer))
        if known not in self.rows:
            self.rows[known] = check_rows(source, options, tokenizer_json, progress)
        return self.rows[known]

    def sha256(self, source: Source) -> dict[str, str]:
        """SHA-256 of each file of a source, by the file's path."""
        return {str(path): self._sha256(path) for path in source.files}

    def _sha256(self, path: Path) -> str:
        known = _key(_stamps([path]))
        if known not in self.hashes:
            with path.open("rb") as file:
                self.hashes[known] = hashlib.file_digest(file, "sha256").hexdigest()
        return self.hashes[known]

    def keep(self, file: Path) -> None:
        """Write all that is known, for another process."""
        write(file, json.dumps(to_builtins(self)) + "\n")


def kept(file: Path) -> Readings:
    """What another process knew; nothing when it kept nothing."""
    return typed(file, Readings, read_json(file) or {})


def _stamps(files: Iterable[Path]) -> list[tuple[str, int, int] | None]:
    """Path, size and time of change of each file, taken before it is read; None for one that is not there."""
    found = [(file.resolve(), file.stat() if file.is_file() else None) for file in files]
    return [(str(path), stat.st_size, stat.st_mtime_ns) if stat else None for path, stat in found]


def _key(*parts: object) -> str:
    """Equal for equal parts, in every process: the parts are frozen data without sets."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()

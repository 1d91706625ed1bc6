"""The bytes of a model's files: ranged requests, hashed on the way, in several threads."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from ..errors import Place, Problem, ProblemsFound
from .asking import get
from .order import Hub, Listing, ModelOrder, RemoteFile
from .refusals import HubFailure, problem_of

if TYPE_CHECKING:
    from hashlib import _Hash

    from requests import Session

STREAMS = 4  # files fetched at once; more gain nothing against one hub and cost their open streams when interrupted
BLOCK_BYTES = 1 << 19  # measured: 256 KiB to 1 MiB hash and write fastest; above, blocks fall out of the cache


class Progress(Struct, frozen=True):
    """Bytes here of one file and of the whole model, or a `note` to show; called from threads, one at a time."""

    path: str = ""
    path_bytes: int = 0
    path_total_bytes: int = 0
    bytes: int = 0
    total_bytes: int = 0
    note: str | None = None


Report = Callable[[Progress], None]


class _Stopped(Exception):
    """Another file failed, or Ctrl-C was pressed."""


@dataclass
class Transfer:
    """What the threads of one fetch share; without a session nothing is fetched, all comes from what was linked."""

    order: ModelOrder
    listing: Listing
    staging: Path
    session: Session | None
    report: Report
    fetched_bytes: int = 0
    done: list[RemoteFile] = field(default_factory=list)
    errors: list[ProblemsFound | OSError] = field(default_factory=list)
    here: dict[str, int] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, file: RemoteFile, here: int, new: int = 0) -> None:
        if self.stop.is_set():
            raise _Stopped
        with self.lock:
            self.fetched_bytes += new
            self.here[file.path] = here
            self.report(Progress(file.path, here, file.size, sum(self.here.values()), self.listing.size_bytes))


@dataclass
class _Partial:
    """A file being written, and the hashes of exactly the bytes in it; git's is for small files on Hugging Face."""

    file: RemoteFile
    handle: FileIO
    hashes: dict[str, _Hash] = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.size, self.hashes = 0, {"sha256": hashlib.sha256()}
        if self.file.git_sha1:
            self.hashes["git hash"] = hashlib.sha1(b"blob %d\0" % self.file.size, usedforsecurity=False)

    def count(self, block: bytes) -> None:
        for each in self.hashes.values():
            each.update(block)
        self.size += len(block)

    def fault(self) -> str | None:
        stated = {"sha256": self.file.sha256, "git hash": self.file.git_sha1}
        wrong = [name for name, each in self.hashes.items() if stated[name] and each.hexdigest() != stated[name]]
        return f"does not have the {wrong[0]} that the hub states" if wrong else None


def fetch_files(transfer: Transfer) -> tuple[RemoteFile, ...]:
    """Complete and verify every listed file, the largest first; raises ProblemsFound, OSError when the disk refuses."""
    waiting = deque(sorted(transfer.listing.files, key=lambda file: -file.size))
    # No pool: its threads are waited for at exit, so that Ctrl-C would last until a silent server's time-out.
    threads = [threading.Thread(target=_work, args=(transfer, waiting), daemon=True) for _ in range(STREAMS)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads) and not transfer.stop.wait(0.02):
            pass
    finally:
        transfer.stop.set()
        for thread in threads:
            thread.join(timeout=1)
    problems = [problem for error in transfer.errors if isinstance(error, ProblemsFound) for problem in error.problems]
    if problems:
        raise ProblemsFound(problems)
    if transfer.errors:
        raise transfer.errors[0]
    if len(transfer.done) < len(transfer.listing.files):
        raise RuntimeError("a thread of the download ended before its work was done")
    return tuple(sorted(transfer.done, key=lambda file: file.path))


def _work(transfer: Transfer, waiting: deque[RemoteFile]) -> None:
    with suppress(IndexError, _Stopped):  # nothing is left
        try:
            while not transfer.stop.is_set():
                transfer.done.append(_fetch_file(transfer, waiting.popleft()))
        except (ProblemsFound, OSError) as error:
            transfer.errors.append(error)
            transfer.stop.set()


def _fetch_file(transfer: Transfer, file: RemoteFile) -> RemoteFile:
    """Complete one file; one that fails its check is fetched again once."""
    path = transfer.staging / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    fetches = 0
    while True:
        size = path.stat().st_size if path.exists() else 0
        if size > file.size or (path.is_symlink() and size < file.size):
            path.unlink()
        had_all = 0 < size == file.size
        sha256, fault = _complete(transfer, file, path)
        if fault is None:
            return RemoteFile(file.path, file.size, sha256)
        path.unlink(missing_ok=True)  # never written over: it may be a link into a cache
        fetches += not had_all  # a file that lay here wrong has not been fetched yet
        if fetches == 2 or transfer.session is None:
            raise ProblemsFound([wrong_file(transfer.listing.hub, file.path, f"{fault}, also when fetched again")])


def wrong_file(hub: Hub, path: str, fault: str) -> Problem:
    fix = "repeat later, or take it from the other hub: the other files are kept"
    return Problem(f"{path} from {hub.name} {fault}", fix, Place(path), kind="missing", code=3)


def _complete(transfer: Transfer, file: RemoteFile, path: Path) -> tuple[str, str | None]:
    """Bring the file to its size, going on where it ends; return its sha256 and what is wrong with it."""
    tries = 0
    is_whole = path.exists() and path.stat().st_size == file.size
    if not is_whole:
        path.touch()
    with path.open("rb" if is_whole else "r+b", buffering=0) as handle:  # a whole file may be a link into a cache
        partial = _Partial(file, handle)
        while block := handle.read(BLOCK_BYTES):
            partial.count(block)
            transfer.tell(file, partial.size)
        while partial.size < file.size:
            before = partial.size
            try:
                _stream(transfer, partial)
            except HubFailure as failure:
                if failure.kind == "wrong":
                    return "", failure.detail
                tries = 1 if partial.size > before else tries + 1
                _pause(transfer, failure, tries)
        transfer.tell(file, partial.size)
    return partial.hashes["sha256"].hexdigest(), partial.fault()


def _pause(transfer: Transfer, failure: HubFailure, tries: int) -> None:
    """Wait before going on, longer each time; give up when waiting will not help."""
    hub, order = transfer.listing.hub, transfer.order
    seconds = order.patience.pause_seconds(failure, tries)
    if seconds is None:
        raise ProblemsFound([problem_of(failure, hub, order)]) from failure
    with transfer.lock:
        transfer.report(Progress(note=f"{hub.name}: {failure.detail}; going on in {seconds:.0f} s"))
    if transfer.stop.wait(seconds):
        raise _Stopped


def _stream(transfer: Transfer, partial: _Partial) -> None:
    """Fetch what the file lacks. Raises HubFailure when the connection ends early or the hub contradicts its list."""
    import urllib3

    if transfer.session is None:
        raise HubFailure("wrong", "is shorter than the cache says")
    file, patience = partial.file, transfer.order.patience
    headers = {"Range": f"bytes={partial.size}-"} if partial.size else {}
    timeouts = (patience.connect_seconds, patience.read_seconds)
    with get(transfer.session, transfer.listing.url(file.path), timeouts, headers) as response:
        if partial.size and response.status_code != 206:  # the server sends all instead of the range
            partial.handle.seek(0)
            partial.handle.truncate()
            partial.begin()
        length: int | None = response.raw.length_remaining
        if length is not None and partial.size + length != file.size:
            raise HubFailure("wrong", f"has {partial.size + length} bytes where the hub's list says {file.size}")
        try:
            while partial.size < file.size:
                block = response.raw.read1(min(BLOCK_BYTES, file.size - partial.size))  # what is here, at once
                if not block:
                    raise HubFailure("broken", f"it ended {file.size - partial.size} bytes early")
                partial.handle.write(block)
                partial.count(block)
                transfer.tell(file, partial.size, len(block))
        except urllib3.exceptions.HTTPError as error:
            raise HubFailure("broken", "the connection broke off") from error

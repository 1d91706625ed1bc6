"""Fetching a model into a folder that gets its name only when all is there and right."""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from msgspec import Struct, to_builtins

from ..errors import Place, Problem, ProblemsFound
from . import folder as folders
from .asking import choose_source, open_session
from .folder import INCOMPLETE, Installed, Manifest, is_whole, read_manifest, size_of
from .order import Hub, Listing, ModelOrder, is_offline
from .refusals import on_disk
from .selection import weights_faults
from .transfer import Progress, Report, Transfer, fetch_files, wrong_file


class Fetched(Struct, frozen=True):
    """What lies in `folder` now; `reason` says where it came from and why."""

    folder: Path
    manifest: Manifest
    reason: str
    fetched_bytes: int = 0

    def as_json(self) -> dict[str, str | int | None]:
        origin: dict[str, str | int | None] = to_builtins(self.manifest) | {"size_bytes": self.manifest.size_bytes}
        del origin["files"]
        return origin | {"folder": str(self.folder), "reason": self.reason, "fetched_bytes": self.fetched_bytes}


def fetch(order: ModelOrder, environment: Mapping[str, str], report: Report) -> Fetched:
    """Bring a model onto this disk, complete and verified, by way of `<folder>.incomplete`, where a later call goes on.

    Raises ProblemsFound with exit code 3, or 2 when the folder holds something else.
    """
    folder = order.folder
    with _disk_problems(folder):
        if ready := _already(order):
            return ready
        is_empty = folder.is_dir() and not any(folder.iterdir())
        if folder.exists() and not is_empty and read_manifest(folder) is None:
            what = f"{folder} exists and was not made by this command"
            raise ProblemsFound([Problem(what, "move it away, or choose another folder with --to", Place(str(folder)))])
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder, report):
            ready = _already(order)  # made by the process that was waited for
            return ready or _fetch(order, environment, report)


def _already(order: ModelOrder) -> Fetched | None:
    manifest = read_manifest(order.folder)
    if manifest is None or not is_whole(order.folder):
        return None
    is_default = {order.revision, manifest.revision} <= {"main", "master"}  # each hub has its own word for it
    asked = is_default or order.revision in (None, manifest.revision, manifest.commit)
    same = manifest.model in {order.model, order.id_on("huggingface"), order.id_on("modelscope")}
    return Fetched(order.folder, manifest, "it is on disk already") if asked and same else None


@contextmanager
def _alone(folder: Path, report: Report) -> Iterator[None]:
    """Hold the folder's lock, waiting for another process that has it; the lock ends with its process."""
    import fcntl

    with (folder.parent / f".{folder.name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(Progress(note=f"another process is fetching {folder.name}: waiting for it"))
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _disk_problems(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into problems."""
    try:
        yield
    except OSError as error:
        what, fix = f"{folder.parent}: {error.strerror or error}", "choose another folder with --to or IIS_MODELS"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what, fix = f"the disk of {folder.parent} is full", "make room and repeat: what is here is kept"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            what = f"{folder.parent} cannot be written to"
        raise ProblemsFound([Problem(what, fix, Place(str(error.filename or folder)), kind="machine")]) from error


def _fetch(order: ModelOrder, environment: Mapping[str, str], report: Report) -> Fetched:
    models = folders.cached(environment) if order.noun == "model" else ()
    caches = [each for each in models if each.source and each.model == order.id_on(each.source)]
    listing, from_cache = _choose(order, environment, caches, report)
    hub, staging = listing.hub, order.folder.with_name(order.folder.name + INCOMPLETE)
    if not listing.files:
        others = {"model": "a data set, or a model in another format", "data set": "a model, or data in another format"}
        fix = f"check the name: this may be {others[order.noun]}"
        raise ProblemsFound([Problem(f"{listing.model} on {hub.name} has no files to train on", fix, code=3)])
    staging.mkdir(exist_ok=True)
    _link(listing, staging, [order.folder, *(entry.folder for entry in caches)])
    _check_space(listing, staging)
    size = f"{listing.size_bytes / 1e9:.2f} GB in {len(listing.files)} files"
    report(Progress(note=f"{listing.model}: {size}; {listing.reason}"))
    transfer = Transfer(order, listing, staging, None if from_cache else open_session(hub, environment), report)
    files = fetch_files(transfer)
    if faults := weights_faults(staging):
        raise ProblemsFound(wrong_file(hub, path, fault) for path, fault in faults)
    manifest = Manifest(listing.model, hub.source, hub.site, listing.revision, listing.commit, files, folders.now())
    folders.write_manifest(staging, manifest)
    _swap(staging, order.folder)
    return Fetched(order.folder, manifest, listing.reason, transfer.fetched_bytes)


def _choose(
    order: ModelOrder, environment: Mapping[str, str], caches: list[Installed], report: Report
) -> tuple[Listing, bool]:
    """Ask the hubs; when none may be asked, or none gives the model, take a whole one out of their caches."""
    from_cache = _cached_choice(order, caches)
    if is_offline(order, environment):
        if from_cache:
            return from_cache, True
        what = f"{order.model} is not on this disk, and the network is switched off"
        fix = f"go online (--offline, HF_HUB_OFFLINE), or use a {order.noun} that is here{on_disk(order)}"
        raise ProblemsFound([Problem(what, fix, kind="missing", code=3)])
    try:
        return choose_source(order, environment, lambda note: report(Progress(note=note))), False
    except ProblemsFound:
        if from_cache is None:
            raise
        return from_cache, True


def _cached_choice(order: ModelOrder, caches: list[Installed]) -> Listing | None:
    """Return a whole cached model of the asked revision, the branch's own commit before others, newer before older."""
    usable = [
        entry
        for entry in caches
        if order.source in ("auto", entry.source)
        and (order.revision in (None, entry.commit, entry.folder.name) or _is_branch(entry, order))
        and entry.complete
    ]
    entry = max(usable, key=lambda each: (_is_branch(each, order), each.folder.stat().st_mtime), default=None)
    if entry is None or entry.source is None:
        return None
    hub, files = Hub(entry.source, entry.place), tuple(folders.cached_files(entry))
    return Listing(hub, entry.model, order.revision or "main", entry.commit, files, f"it lies in {entry.folder}")


def _is_branch(entry: Installed, order: ModelOrder) -> bool:
    """Hugging Face's cache keeps the commit of each branch or tag in a file of that name."""
    name = entry.folder.parent.parent / "refs" / (order.revision or "main")
    return entry.source == "huggingface" and name.is_file() and name.read_text().strip() == entry.commit


def _link(listing: Listing, staging: Path, folders: list[Path]) -> None:
    """Take what other folders hold at the right size, to be verified like the rest, and drop what is not listed.

    The folder that will be replaced gives hard links, the hubs' caches symbolic ones.
    """
    wanted = {file.path for file in listing.files}
    for path in staging.rglob("*"):
        gone = path.is_symlink() and not path.exists()
        if gone or (path.is_file() and path.relative_to(staging).as_posix() not in wanted):
            path.unlink()
    for file in listing.files:
        target = staging / file.path
        found = [folder / file.path for folder in folders if size_of(folder / file.path) == file.size]
        if not found or target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if found[0].is_relative_to(folders[0]):
            with suppress(OSError):  # a file system without hard links: the file is fetched
                os.link(found[0], target, follow_symlinks=False)
        else:
            target.symlink_to(found[0].resolve())


def _check_space(listing: Listing, staging: Path) -> None:
    present = sum(size_of(staging / file.path) or 0 for file in listing.files)
    needed, free = listing.size_bytes - present, shutil.disk_usage(staging).free
    if needed > free:
        what = (
            f"{listing.model} needs {needed} more bytes ({needed / 1e9:.2f} GB), and {staging.parent} has {free} free"
        )
        fix = f"free {needed - free} bytes, or choose another disk with --to or IIS_MODELS"
        raise ProblemsFound([Problem(what, fix, Place(str(staging.parent)), kind="machine")])


def _swap(staging: Path, folder: Path) -> None:
    """Give the finished folder its name; a folder that it replaces goes only then."""
    replaced = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    staging.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)

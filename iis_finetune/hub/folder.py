"""Models on disk: the manifest beside each one, what lies here and in the hubs' caches, offline verification."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ..errors import Place, Problem
from ..runs import write
from .order import HubName, RemoteFile
from .selection import is_model, needed, weights_faults

MANIFEST = ".iis-finetune.json"
INCOMPLETE = ".incomplete"


@dataclass(frozen=True)
class Manifest:
    """Where a model came from and what it consists of; `verified` is the UTC time of the last full check, or None."""

    model: str
    source: str
    endpoint: str
    revision: str
    commit: str | None
    files: tuple[RemoteFile, ...]
    verified: str | None

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Installed:
    """A model on disk. `place`: models, huggingface cache or modelscope cache; unknown values are None."""

    model: str
    folder: Path
    place: str
    source: str | None
    commit: str | None
    size_bytes: int
    verified: str | None
    complete: bool

    def as_json(self) -> dict[str, str | int | bool | None]:
        return asdict(self) | {"folder": str(self.folder)}


@dataclass(frozen=True)
class Cached:
    """One revision of a model in a hub's own cache."""

    model: str
    source: HubName
    folder: Path
    commit: str | None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write(folder / MANIFEST, json.dumps(asdict(manifest), indent=1))


def read_manifest(folder: Path) -> Manifest | None:
    """Return a folder's manifest; None when there is none, or none that can be read."""
    try:
        data = json.loads((folder / MANIFEST).read_bytes())
        return Manifest(**data | {"files": tuple(RemoteFile(**file) for file in data["files"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def is_whole(folder: Path) -> bool:
    """Return whether every file is there at its size and the last check found nothing; reads no weights."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.verified is None or folder.name.endswith(INCOMPLETE):
        return False
    return all(size_of(folder / file.path) == file.size for file in manifest.files)


def size_of(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def verify(folder: Path) -> list[Problem]:
    """One problem for each file that is not as the manifest says; noted there, so that a damaged model is not used."""
    manifest = read_manifest(folder)
    if manifest is None:
        what = f"{folder} holds no manifest to verify against" if folder.is_dir() else f"there is no model in {folder}"
        return [Problem(what, "iis-finetune download MODEL", Place(str(folder)), kind="missing", code=3)]
    faults = [(file.path, fault) for file in manifest.files if (fault := _fault(folder, file))]
    known = {path for path, _ in faults}
    faults += [(path, fault) for path, fault in weights_faults(folder) if path not in known]
    with suppress(OSError):  # a read-only folder can be verified too; only the date of it is lost
        write_manifest(folder, replace(manifest, verified=None if faults else now()))
    fix = f"iis-finetune download {manifest.model} fetches it again"
    return [
        Problem(f"{path} {fault}", fix, Place(str(folder / path)), kind="missing", code=3) for path, fault in faults
    ]


def _fault(folder: Path, file: RemoteFile) -> str | None:
    path = folder / file.path
    size = size_of(path)
    if size is None:
        return "is a link to a file that is gone" if path.is_symlink() else "is missing"
    if size != file.size:
        return f"has {size} bytes instead of {file.size}"
    with path.open("rb") as handle:
        same = hashlib.file_digest(handle, "sha256").hexdigest() == file.sha256
    return None if same else "does not have the sha256 it was fetched with"


def installed(models_root: Path, environment: Mapping[str, str]) -> list[Installed]:
    """List the models under the models folder and in both hubs' caches; reads no weights."""
    folders = [path for path in sorted(models_root.glob("*")) if path.is_dir() and "@" not in path.name]
    here = [_installed(path) for path in folders]
    for entry in cached(environment):
        described = _described(entry.model, entry.folder, f"{entry.source} cache")
        here.append(replace(described, source=entry.source, commit=entry.commit))
    return here


def _installed(folder: Path) -> Installed:
    """A folder of the models folder, by its manifest where that is valid."""
    manifest = read_manifest(folder)
    if manifest is None or folder.name.endswith(INCOMPLETE):
        name = folder.name.removesuffix(INCOMPLETE).replace("--", "/", 1)
        return _described(name, folder, "models")
    origin = manifest.source, manifest.commit, manifest.size_bytes, manifest.verified
    return Installed(manifest.model, folder, "models", *origin, is_whole(folder))


def _described(model: str, folder: Path, place: str) -> Installed:
    """A folder without a manifest, by the files in it."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    complete = not folder.name.endswith(INCOMPLETE) and is_model(folder)
    return Installed(model, folder, place, None, None, size, None, complete)


def cached(environment: Mapping[str, str]) -> Iterator[Cached]:
    """Yield what the hubs' own clients have fetched, in their present and former layouts."""
    home = Path(environment.get("HOME") or Path.home())
    cache_home = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    huggingface = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    hub_cache = Path(huggingface or Path(environment.get("HF_HOME") or cache_home / "huggingface") / "hub").expanduser()
    for folder in sorted(hub_cache.glob("models--*--*/snapshots/*")):
        model = folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        yield Cached(model, "huggingface", folder, folder.name)
    base = Path(environment.get("MODELSCOPE_CACHE") or home / ".cache" / "modelscope").expanduser()
    for folder in sorted(base.glob("models/*--*/snapshots/*")):
        yield Cached(folder.parent.parent.name.replace("--", "/", 1), "modelscope", folder, None)
    for folder in sorted([*base.glob("models/*/*"), *base.glob("hub/models/*/*")]):  # up to modelscope 1.37
        if folder.is_dir() and folder.name != "snapshots":
            yield Cached(f"{folder.parent.name}/{folder.name.replace('___', '.')}", "modelscope", folder, None)


def cached_files(entry: Cached) -> list[RemoteFile]:
    """List what training needs of a cached model; Hugging Face's cache names each file by its hash."""
    paths = [path for path in sorted(entry.folder.rglob("*")) if path.is_file()]
    files = []
    for path in paths:
        blob = path.resolve().name if entry.source == "huggingface" else ""
        sha256 = blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None
        git_sha1 = blob if re.fullmatch(r"[0-9a-f]{40}", blob) else None
        files.append(RemoteFile(path.relative_to(entry.folder).as_posix(), path.stat().st_size, sha256, git_sha1))
    return needed(files)

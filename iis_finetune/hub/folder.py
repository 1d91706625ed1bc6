"""Models on disk: the manifest beside each one, what lies here and in the hubs' caches, offline verification."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from ..errors import Place, Problem
from ..runs import write
from .order import HubName, RemoteFile
from .selection import is_model, needed, weights_faults

MANIFEST = ".iis-finetune.json"
INCOMPLETE = ".incomplete"


class Manifest(Struct, frozen=True):
    """Where a model came from and what it consists of; `verified` is the UTC time of the last full check, or None."""

    model: str
    source: HubName
    endpoint: str
    revision: str
    commit: str | None
    files: tuple[RemoteFile, ...]
    verified: str | None

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)


class Installed(Struct, frozen=True):
    """A model on disk. `place`: models, huggingface cache or modelscope cache; unknown values are None."""

    model: str
    folder: Path
    place: str
    source: HubName | None = None
    commit: str | None = None
    manifest: Manifest | None = None

    @property
    def size_bytes(self) -> int:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return self.manifest.size_bytes if self.manifest else sum(path.stat().st_size for path in files)

    @property
    def verified(self) -> str | None:
        return self.manifest.verified if self.manifest else None

    @property
    def complete(self) -> bool:
        if self.manifest:
            return is_whole(self.folder)
        return not self.folder.name.endswith(INCOMPLETE) and is_model(self.folder)

    def as_json(self) -> dict[str, str | int | bool | None]:
        shown = ("model", "place", "source", "commit", "size_bytes", "verified", "complete")
        return {name: getattr(self, name) for name in shown} | {"folder": str(self.folder)}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write(folder / MANIFEST, json.dumps(to_builtins(manifest), indent=1))


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
    fix = f"`iis-finetune download {manifest.model}` fetches it again"
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
    return [*map(_installed, folders), *cached(environment)]


def _installed(folder: Path) -> Installed:
    """A folder of the models folder, by its manifest where that is valid."""
    manifest = read_manifest(folder)
    if manifest is None or folder.name.endswith(INCOMPLETE):
        return Installed(folder.name.removesuffix(INCOMPLETE).replace("--", "/", 1), folder, "models")
    return Installed(manifest.model, folder, "models", manifest.source, manifest.commit, manifest)


def cached(environment: Mapping[str, str]) -> Iterator[Installed]:
    """Yield what the hubs' own clients have fetched, each revision by itself, in their present and former layouts."""
    home = Path(environment.get("HOME") or Path.home())
    cache_home = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    huggingface = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    hub_cache = Path(huggingface or Path(environment.get("HF_HOME") or cache_home / "huggingface") / "hub").expanduser()
    for folder in sorted(hub_cache.glob("models--*--*/snapshots/*")):
        model = folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        yield Installed(model, folder, "huggingface cache", "huggingface", folder.name)
    base = Path(environment.get("MODELSCOPE_CACHE") or home / ".cache" / "modelscope").expanduser()
    for folder in sorted(base.glob("models/*--*/snapshots/*")):
        yield Installed(folder.parent.parent.name.replace("--", "/", 1), folder, "modelscope cache", "modelscope")
    for folder in sorted([*base.glob("models/*/*"), *base.glob("hub/models/*/*")]):  # up to modelscope 1.37
        if folder.is_dir() and folder.name != "snapshots":
            model = f"{folder.parent.name}/{folder.name.replace('___', '.')}"
            yield Installed(model, folder, "modelscope cache", "modelscope")


def cached_files(entry: Installed) -> list[RemoteFile]:
    """List what training needs of a cached model; Hugging Face's cache names each file by its hash."""
    files = []
    for path in sorted(path for path in entry.folder.rglob("*") if path.is_file()):
        blob = path.resolve().name if entry.source == "huggingface" else ""
        sha256, git_sha1 = (blob if re.fullmatch(f"[0-9a-f]{{{length}}}", blob) else None for length in (64, 40))
        files.append(RemoteFile(path.relative_to(entry.folder).as_posix(), path.stat().st_size, sha256, git_sha1))
    return needed(files)

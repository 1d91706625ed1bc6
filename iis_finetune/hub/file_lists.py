"""The hubs' lists of files, held to their types: a list that cannot be right is refused whole."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated

from msgspec import Meta, Struct, field, json

from .order import RemoteFile
from .refusals import HubFailure, refusal

MOST_COMMAS = 5_000_000  # 200,000 files have some 3,000,000; what is longer would fill the memory before it is refused
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

# A hub may leave any of these out, or empty.
Size = Annotated[int, Meta(ge=0)] | None
Commit = Annotated[str, Meta(pattern=r"^[\w./-]{0,100}$")] | None
Sha256 = Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] | None
GitSha1 = Annotated[str, Meta(pattern="^([0-9a-f]{40})?$")] | None


class OutsideGit(Struct):
    """Hugging Face's words on a large file: git itself holds only what points to it."""

    size: Size = None
    sha256: Sha256 = None


class HuggingFaceFile(Struct):
    path: str = field(name="rfilename")
    size: Size = None
    git_sha1: GitSha1 = field(name="blobId", default=None)
    lfs: OutsideGit | None = None


class ModelScopeFile(Struct, rename="pascal"):
    path: str
    type: str | None = None
    size: Size = None
    sha256: Sha256 = None
    revision: Commit = None
    committed_date: int | None = None


class Committer(Struct, rename="pascal"):
    id: Commit = None
    short_id: Commit = None


class ModelScopeList(Struct, rename="pascal"):
    files: list[ModelScopeFile] | None = None
    latest_committer: Committer | None = None


class ListAnswer(Struct):
    """Either hub's answer; ModelScope's can be a refusal with status 200."""

    sha: Commit = None
    siblings: list[HuggingFaceFile] | None = None
    data: ModelScopeList | None = field(name="Data", default=None)
    success: bool | None = field(name="Success", default=None)
    code: int | None = field(name="Code", default=None)
    message: str | None = field(name="Message", default=None)


def read_list(body: bytes) -> tuple[str | None, list[RemoteFile]]:
    """Return the commit and its files. Raises HubFailure."""
    if body.count(b",") > MOST_COMMAS:
        raise _malformed("it is too long")
    try:
        answer = json.decode(body, type=ListAnswer, strict=False)
    except (ValueError, RecursionError) as error:
        raise _malformed(str(error)) from error
    if answer.success is False:
        raise refusal(answer.code or 404, {}, answer.message or "")
    files = [*_of_hugging_face(answer.siblings or []), *_of_modelscope(answer.data)]
    if len({file.path for file in files}) < len(files):
        raise _malformed("it names a file twice")
    for file in files:
        _refuse_outside(file.path)
    return answer.sha or _commit(answer.data), files


def _of_hugging_face(listed: list[HuggingFaceFile]) -> Iterator[RemoteFile]:
    for each in listed:
        if each.lfs:
            size = each.size if each.lfs.size is None else each.lfs.size
            yield RemoteFile(each.path, size or 0, each.lfs.sha256 or None, None)
        else:
            yield RemoteFile(each.path, each.size or 0, None, each.git_sha1 or None)


def _of_modelscope(data: ModelScopeList | None) -> Iterator[RemoteFile]:
    for each in (data and data.files) or []:
        if each.type != "tree":
            yield RemoteFile(each.path, each.size or 0, each.sha256 or None, None)


def _commit(data: ModelScopeList | None) -> str | None:
    """Some answers of ModelScope leave the commit's id empty; the newest file's revision is then the same commit."""
    if data is None:
        return None
    last = data.latest_committer or Committer()
    files = [each for each in data.files or [] if each.type != "tree"]
    newest = max(files, key=lambda each: each.committed_date or 0, default=None)
    return last.id or (newest and newest.revision) or last.short_id or None


def _refuse_outside(path: str) -> None:
    """A hub must write neither outside the model's folder nor to the terminal. Raises HubFailure."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts:
        raise _malformed("a file lies outside the model's folder")
    if CONTROL.search(path):
        raise _malformed("the name of a file holds control characters")


def _malformed(detail: str) -> HubFailure:
    return HubFailure("malformed", f"its list of files cannot be read: {detail}")

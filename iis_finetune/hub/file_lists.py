"""The hubs' lists of files, held to their types: a list that cannot be right is refused whole."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    FailFast,
    Field,
    NonNegativeInt,
    ValidationError,
)

from .order import RemoteFile
from .refusals import HubFailure, refusal

MOST_COMMAS = 5_000_000  # 200,000 files have some 3,000,000; what is longer would fill the memory before it is refused
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _inside(path: str) -> str:
    """A hub must write neither outside the model's folder nor to the terminal."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts:
        raise ValueError("the file lies outside the model's folder")
    if CONTROL.search(path):
        raise ValueError("the name holds control characters")
    return path


def _at(*places: str | AliasPath) -> Any:
    """A field that may be missing, at the first of these places; Hugging Face's come before ModelScope's."""
    return Field(None, validation_alias=AliasChoices(*places))


FilledIn = BeforeValidator(lambda value: None if value == "" else value)
Commit = Annotated[Annotated[str, Field(pattern=r"^[\w./-]{1,100}$")] | None, FilledIn]
Sha256 = Annotated[Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None, FilledIn]
GitSha1 = Annotated[Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None, FilledIn]


class ListedFile(BaseModel):
    """One file or folder; on Hugging Face `lfs` holds the size and hash of a file outside git."""

    path: Annotated[str, AfterValidator(_inside)] = Field(validation_alias=AliasChoices("rfilename", "Path"))
    lfs: dict[str, Any] | None = None
    size: NonNegativeInt | None = _at(AliasPath("lfs", "size"), "size", "Size")
    sha256: Sha256 = _at(AliasPath("lfs", "sha256"), "Sha256")
    git_sha1: GitSha1 = _at("blobId")
    type: str | None = _at("Type")
    revision: Commit = _at("Revision")
    committed: int | None = _at("CommittedDate")


class ListAnswer(BaseModel):
    """A hub's answer; ModelScope's can be a refusal with status 200."""

    commit: Commit = _at("sha", AliasPath("Data", "LatestCommitter", "Id"))
    short_commit: Commit = _at(AliasPath("Data", "LatestCommitter", "ShortId"))
    files: Annotated[list[ListedFile], FailFast(), BeforeValidator(lambda rows: rows or [])] = Field(
        [], validation_alias=AliasChoices("siblings", AliasPath("Data", "Files"))
    )
    success: bool | None = _at("Success")
    code: int | None = _at("Code")
    message: str | None = _at("Message")


def read_list(body: bytes) -> tuple[str | None, list[RemoteFile]]:
    """Return the commit and its files. Raises HubFailure."""
    if body.count(b",") > MOST_COMMAS:
        raise _malformed("it is too long")
    try:
        answer = ListAnswer.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise _malformed(f"{place}: {what}" if place else what) from error
    if answer.success is False:
        raise refusal(answer.code or 404, {}, answer.message or "")
    listed = [each for each in answer.files if each.type != "tree"]
    if len({each.path for each in listed}) < len(listed):
        raise _malformed("it names a file twice")
    # Some answers of ModelScope leave the commit's id empty; the newest file's revision is then the same commit.
    newest = max(listed, key=lambda each: each.committed or 0, default=None)
    commit = answer.commit or (newest and newest.revision) or answer.short_commit
    # Of a file outside git, git knows only what points to it.
    return commit, [RemoteFile(f.path, f.size or 0, f.sha256, None if f.lfs else f.git_sha1) for f in listed]


def _malformed(detail: str) -> HubFailure:
    return HubFailure("malformed", f"its list of files cannot be read: {detail}")

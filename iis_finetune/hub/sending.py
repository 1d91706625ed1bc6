"""Giving a model away: a hub gets what it lacks by its own client, then each of its hashes is compared with ours."""

import contextlib
import io
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from ..errors import Place, Problem, ProblemsFound
from .asking import list_all
from .order import Hub, ModelOrder, RemoteFile, hubs, is_offline
from .refusals import HubFailure, problem_of, refusal

LIST_LAGS = (1.0, 2.0)  # seconds; a list may come a little after its commit
MAY_PASS = (408, 409, 423, 425, 429)


class Gift(Struct, frozen=True):
    """Files of a folder, each with both of its hashes, and the repository that they are for."""

    repository: str
    folder: Path
    files: tuple[RemoteFile, ...]
    source: Literal["auto", "huggingface", "modelscope"] = "auto"
    private: bool = False

    @property
    def order(self) -> ModelOrder:
        return ModelOrder(self.repository, self.folder, source=self.source)

    def hub(self, environment: Mapping[str, str]) -> Hub:
        """The hub that it goes to: where none is named, the one that is asked first for models."""
        return hubs(self.order, environment)[0]


class Client(Struct, frozen=True):
    """What is asked of a hub's own client, and how it fails."""

    create: Callable[[], object]
    is_private: Callable[[], bool]
    upload: Callable[[Sequence[str]], object]
    errors: tuple[type[Exception], ...]


def standing(gift: Gift, environment: Mapping[str, str]) -> tuple[list[str], int] | None:
    """Which files of a repository would be replaced, and how many are others; None for a new one. Raises as `give`."""
    hub = _ready(gift, environment)
    try:
        there = _there(hub, gift, environment)
    except HubFailure as failure:
        raise _told(failure, hub, gift) from failure
    if there is None:
        return None
    ours = [file for file in gift.files if file.path in there]
    return [file.path for file in ours if _fault(file, there)], len(there) - len(ours)


def _ready(gift: Gift, environment: Mapping[str, str]) -> Hub:
    hub = gift.hub(environment)
    if hub.token is None or is_offline(gift.order, environment):
        raise _told(HubFailure("token" if hub.token is None else "offline"), hub, gift)
    return hub


def give(gift: Gift, environment: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Send what the hub lacks, compare all with what it has then; the page, what was sent. Raises ProblemsFound (3)."""
    hub = _ready(gift, environment)
    client = (_huggingface if hub.source == "huggingface" else _modelscope)(hub, gift)
    try:
        there = _there(hub, gift, environment)
        if there is None:
            client.create()
        elif gift.private and not client.is_private():
            raise _told(HubFailure("public"), hub, gift)
        lacking = tuple(file.path for file in gift.files if _fault(file, there or {}))
        if lacking:
            client.upload(lacking)
        _compare(hub, gift, environment)
    except HubFailure as failure:
        raise _told(failure, hub, gift) from failure
    except client.errors as error:
        raise _told(_meant(error), hub, gift) from error
    return hub.words["page"].format(site=hub.site, model=gift.repository), lacking


def _huggingface(hub: Hub, gift: Gift) -> Client:
    """All in one commit, so that nobody finds half a model; its store of large files knows those that it has."""
    import httpx
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    api, name = HfApi(hub.endpoint, hub.token, library_name="iis-finetune"), gift.repository

    def upload(paths: Sequence[str]) -> None:
        added = [CommitOperationAdd(path, gift.folder / path) for path in paths]
        api.create_commit(name, added, commit_message="Upload by iis-finetune")

    return Client(
        create=lambda: api.create_repo(name, private=gift.private or None),  # None: as the owner's settings say
        is_private=lambda: bool(api.model_info(name).private),
        upload=upload,
        errors=(httpx.HTTPError, OSError, RuntimeError, ValueError),
    )


def _modelscope(hub: Hub, gift: Gift) -> Client:
    """File by file: its client's upload of a folder counts failures and does not say why."""
    from modelscope_hub import HubApi
    from modelscope_hub.constants import Visibility
    from modelscope_hub.errors import HubError

    logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)
    api, name = HubApi(endpoint=hub.endpoint, token=hub.token), gift.repository
    visibility, quiet = Visibility.PRIVATE if gift.private else Visibility.PUBLIC, not sys.stderr.isatty()

    def upload(paths: Sequence[str]) -> None:
        for path in paths:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints
                api.upload_file(name, "model", gift.folder / path, path, disable_tqdm=quiet)

    return Client(
        create=lambda: api.create_repo(name, "model", visibility=visibility),
        is_private=lambda: api.get_repo(name, "model").visibility == Visibility.PRIVATE,
        upload=upload,
        errors=(HubError, OSError, ValueError),
    )


def _meant(error: BaseException) -> HubFailure:
    """What a client's error means, by the status of the answer that led to it; its text can hold signed addresses."""
    at: BaseException | None = error
    while at is not None:
        response = getattr(at, "response", None)
        if status := getattr(response, "status_code", None) or getattr(at, "status_code", None):
            failure = refusal(status, getattr(response, "headers", {}), "")
            lasts = failure.kind == "busy" and status < 500 and status not in MAY_PASS
            return HubFailure("refused", failure.detail) if lasts else failure
        at = at.__cause__ or at.__context__
    return HubFailure("forbidden" if isinstance(error, PermissionError) else "broken", type(error).__name__)


def _told(failure: HubFailure, hub: Hub, gift: Gift) -> ProblemsFound:
    return ProblemsFound([problem_of(failure, hub, gift.order, "pushing")])


def _there(hub: Hub, gift: Gift, environment: Mapping[str, str]) -> dict[str, RemoteFile] | None:
    """Every file that the hub has, by path; None for a repository that is not there."""
    try:
        return {file.path: file for file in list_all(hub, gift.order, environment)[1]}
    except HubFailure as failure:
        if failure.kind not in ("model", "revision"):
            raise
        return None


def _fault(file: RemoteFile, there: Mapping[str, RemoteFile]) -> str | None:
    """What tells the hub's file from ours, by the hash that it states."""
    remote = there.get(file.path)
    if remote is None:
        return "is not there"
    theirs, ours = remote.sha256 or remote.git_sha1, file.sha256 if remote.sha256 else file.git_sha1
    return None if theirs and theirs == ours else f"has the hash {str(theirs)[:12]} there and {str(ours)[:12]} here"


def _compare(hub: Hub, gift: Gift, environment: Mapping[str, str]) -> None:
    """Raises ProblemsFound with every file that the hub has otherwise than it is here."""
    for seconds in (*LIST_LAGS, 0.0):
        there = _there(hub, gift, environment) or {}
        wrong = {file.path: fault for file in gift.files if (fault := _fault(file, there))}
        if not wrong:
            return
        time.sleep(seconds)
    fix = "push again, it is sent anew; let nobody use it until then"
    found = (
        Problem(f"{path} on {hub.name} {why}", fix, Place(path), kind="missing", code=3) for path, why in wrong.items()
    )
    raise ProblemsFound(found)

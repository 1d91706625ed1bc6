"""Giving a model away: a hub gets what it lacks by its own client, then each of its hashes is compared with ours."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from msgspec import Struct

from ..errors import Place, Problem, ProblemsFound
from .asking import list_all
from .clients import CLIENTS, Client, failure_of
from .order import Hub, HubName, ModelOrder, Patience, RemoteFile, hubs, is_offline
from .refusals import HubFailure, problem_of

LIST_LAGS = (1.0, 2.0)  # seconds; a list may come a little after its commit


class Gift(Struct, frozen=True, kw_only=True):
    """These files of a folder, each with both of its hashes, and the repository that they are for."""

    repository: str
    folder: Path
    files: tuple[RemoteFile, ...] = ()
    source: Literal["auto", "huggingface", "modelscope"] = "auto"
    private: bool = False
    patience: Patience = Patience()

    @property
    def order(self) -> ModelOrder:
        return ModelOrder(self.repository, self.folder, source=self.source, patience=self.patience)

    def hub(self, environment: Mapping[str, str]) -> Hub:
        """The hub that it goes to: where none is named, the one that is asked first for models."""
        return hubs(self.order, environment)[0]


class Sent(Struct, frozen=True):
    """Where the files lie now; `kept` were there already, as they are here."""

    source: HubName
    page: str
    commit: str | None
    sent: tuple[str, ...]
    kept: tuple[str, ...]


def give(gift: Gift, environment: Mapping[str, str]) -> Sent:
    """Send what the hub lacks and compare all with what it has then. Raises ProblemsFound with exit code 3."""
    hub = gift.hub(environment)
    if is_offline(gift.order, environment):
        raise _told(HubFailure("offline", "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"), hub, gift)
    if hub.token is None:
        raise _told(HubFailure("token"), hub, gift)
    client = CLIENTS[hub.source](hub, gift.repository)
    try:
        _, there = _listed(hub, gift, environment)
        _make_ready(client, gift, there is not None)
        lacking = tuple(file.path for file in gift.files if _fault(file, there or {}))
        if lacking:
            client.upload(gift.folder, lacking)
        commit = _compare(hub, gift, environment)
    except HubFailure as failure:
        raise _told(failure, hub, gift) from failure
    except client.errors as error:
        raise _told(failure_of(error), hub, gift) from error
    page = hub.words["page"].format(site=hub.site, model=gift.repository)
    kept = tuple(file.path for file in gift.files if file.path not in lacking)
    return Sent(hub.source, page, commit, lacking, kept)


def _make_ready(client: Client, gift: Gift, exists: bool) -> None:
    """Make the repository; one that everybody can read does not get what was to be private."""
    if not exists:
        client.create(gift.private)
    elif gift.private and not client.is_private():
        raise HubFailure("exists")


def _told(failure: HubFailure, hub: Hub, gift: Gift) -> ProblemsFound:
    return ProblemsFound([problem_of(failure, hub, gift.order, "pushing")])


def _listed(hub: Hub, gift: Gift, environment: Mapping[str, str]) -> tuple[str | None, dict[str, RemoteFile] | None]:
    """The commit and every file that the hub has, by path; None for a repository that is not there."""
    try:
        commit, files = list_all(hub, gift.order, environment)
    except HubFailure as failure:
        if failure.kind not in ("model", "revision"):
            raise
        return None, None
    return commit, {file.path: file for file in files}


def _fault(file: RemoteFile, there: Mapping[str, RemoteFile]) -> str | None:
    """What tells the hub's file from ours, by whichever hash it states."""
    remote = there.get(file.path)
    if remote is None:
        return "is not there"
    if remote.sha256 is None and remote.git_sha1 is None:
        return "has no hash there"
    for name, ours, theirs in (("sha256", file.sha256, remote.sha256), ("git hash", file.git_sha1, remote.git_sha1)):
        if theirs is not None and theirs != ours:
            return f"has the {name} {theirs[:12]}... there and {str(ours)[:12]}... here"
    return None


def _compare(hub: Hub, gift: Gift, environment: Mapping[str, str]) -> str | None:
    """The commit in which every file is the one that is here; raises ProblemsFound with those that are not."""
    for seconds in (*LIST_LAGS, None):
        commit, there = _listed(hub, gift, environment)
        wrong = {file.path: fault for file in gift.files if (fault := _fault(file, there or {}))}
        if not wrong:
            return commit
        if seconds is not None:
            time.sleep(seconds)
    fix = "push again, it is sent anew; until then tell nobody to use it"
    raise ProblemsFound(
        Problem(f"{path} on {hub.name} {fault}", fix, Place(path), kind="missing", code=3)
        for path, fault in wrong.items()
    )

"""What the hubs' own clients do for an upload: make a repository, say whether it is private, take files."""

import contextlib
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from .order import Hub, HubName
from .refusals import HubFailure, refusal

PASSING = (408, 409, 423, 425, 429)  # refusals of a client that may be over soon


class HuggingFace:
    """All files in one commit, so that nobody finds half a model; its store of large files knows those it has."""

    def __init__(self, hub: Hub, repository: str) -> None:
        import httpx
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars

        if not sys.stderr.isatty():
            disable_progress_bars()
        self.api, self.repository = HfApi(hub.endpoint, hub.token, library_name="iis-finetune"), repository
        self.errors: tuple[type[Exception], ...] = (httpx.HTTPError, OSError, RuntimeError, ValueError)

    def create(self, private: bool) -> None:
        self.api.create_repo(self.repository, private=private or None)  # None: as the owner's settings say

    def is_private(self) -> bool:
        return bool(self.api.model_info(self.repository).private)

    def upload(self, folder: Path, names: Sequence[str]) -> None:
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(name, folder / name) for name in names]
        self.api.create_commit(self.repository, operations, commit_message="Upload by iis-finetune")


class ModelScope:
    """One by one: its client's upload of a folder counts failures and does not say why."""

    def __init__(self, hub: Hub, repository: str) -> None:
        from modelscope_hub import HubApi
        from modelscope_hub.errors import HubError

        logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)
        self.api, self.repository = HubApi(endpoint=hub.endpoint, token=hub.token), repository
        self.errors: tuple[type[Exception], ...] = (HubError, OSError, ValueError)

    def create(self, private: bool) -> None:
        self.api.create_repo(self.repository, "model", visibility="private" if private else "public")

    def is_private(self) -> bool:
        return str(self.api.get_repo(self.repository, "model").visibility).lower() not in ("5", "public")

    def upload(self, folder: Path, names: Sequence[str]) -> None:
        for name in names:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints
                self.api.upload_file(
                    self.repository, "model", folder / name, name, disable_tqdm=not sys.stderr.isatty()
                )


Client = HuggingFace | ModelScope
CLIENTS: dict[HubName, type[Client]] = {"huggingface": HuggingFace, "modelscope": ModelScope}


def failure_of(error: BaseException) -> HubFailure:
    """What a client's error means, by the status of the answer that led to it; its text can hold signed addresses."""
    at: BaseException | None = error
    while at is not None:
        response = getattr(at, "response", None)
        status = getattr(response, "status_code", None) or getattr(at, "status_code", None)
        if status:
            failure = refusal(int(status), getattr(response, "headers", {}), "")
            final = failure.kind == "busy" and int(status) not in PASSING and int(status) < 500
            return HubFailure("refused", failure.detail) if final else failure
        at = at.__cause__ or at.__context__
    return HubFailure("broken", type(error).__name__)

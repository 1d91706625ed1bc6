"""What is asked for, and of whom: orders, the two hubs as they are configured here, what a hub lists."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

from msgspec import Struct
from msgspec.structs import replace

from ..arguments import find_model
from ..tables import read
from .refusals import HubFailure

HubName = Literal["huggingface", "modelscope"]
Noun = Literal["model", "data set"]
LONGEST_PAUSE_SECONDS = 120.0


class RemoteFile(Struct, frozen=True):
    """A file as a hub or a manifest states it; small files on Hugging Face have git's sha1 instead of a sha256."""

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None


class Patience(Struct, frozen=True):
    """How long to wait for a hub, and how often to come back to it."""

    probe_seconds: float = 5.0
    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    tries: int = 6  # without one new byte in between
    first_pause_seconds: float = 1.0  # doubles with each try

    def pause_seconds(self, failure: HubFailure, tries: int) -> float | None:
        """How long to wait after so many failed tries; None when waiting will not help."""
        if not failure.passes or tries >= self.tries:
            return None
        growing = self.first_pause_seconds * 2.0 ** (tries - 1)
        return min(max(growing, failure.retry_after or 0.0), LONGEST_PAUSE_SECONDS)


class ModelOrder(Struct, frozen=True):
    """Which model or data set, from where, to where; `model` is a hub's id or one of LLaMA-Factory's display names.

    `to` is the models or data folder, in which it gets `<org>--<name>`, unless `exact` says that it is the model's own.
    `texts`: its configuration and tokenizer alone, without weights.
    """

    model: str
    to: Path
    exact: bool = False
    revision: str | None = None
    source: Literal["auto", "huggingface", "modelscope"] = "auto"
    offline: bool = False
    patience: Patience = Patience()
    chosen_by: str = "--source "  # what a person types before a hub's name, in the verb that asks
    noun: Noun = "model"
    texts: bool = False

    @property
    def folder(self) -> Path:
        name = self.model if "/" in self.model else self.id_on("huggingface")
        return self.to if self.exact else self.to / name.replace("/", "--")

    def id_on(self, source: HubName) -> str:
        """Return the id that this hub knows the model by; LLaMA-Factory's table has those that differ."""
        known = find_model(self.model) if self.noun == "model" else None
        return (known and getattr(known, source)) or self.model


class Hub(Struct, frozen=True):
    """One hub as it is configured here; the token never shows in a representation."""

    source: HubName
    endpoint: str
    token: str | None = None
    noun: Noun = "model"

    def __repr__(self) -> str:
        return f"Hub({self.source}, {self.site})"

    @property
    def site(self) -> str:
        """The address without a user or password in it."""
        return self.endpoint.replace(f"{urlsplit(self.endpoint).netloc.rpartition('@')[0]}@", "")

    @property
    def words(self) -> dict[str, str]:
        """Its row in the table of the hubs."""
        row = read("hubs.toml")["hubs"][self.source]
        return {"noun": self.noun, **row, **row.get(self.noun, {})}

    @property
    def name(self) -> str:
        return f"{self.words['title']} ({self.site})"

    def revision(self, order: ModelOrder) -> str:
        """The revision to ask for: each hub has its own name for the default branch."""
        return self.words["branch"] if order.revision in (None, "main") else str(order.revision)

    def list_url(self, order: ModelOrder) -> str:
        revision = quote(self.revision(order), safe="")
        return self.words["list"].format(endpoint=self.endpoint, model=order.id_on(self.source), revision=revision)


class Listing(Struct, frozen=True):
    """The files of one revision that training needs, as a hub states them; `reason`: why it was this hub."""

    hub: Hub
    model: str
    revision: str
    commit: str | None
    files: tuple[RemoteFile, ...]
    reason: str = ""

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def url(self, path: str) -> str:
        revision, commit = (quote(each, safe="") for each in (self.revision, self.commit or self.revision))
        place = {"endpoint": self.hub.endpoint, "model": self.model, "path": quote(path)}
        return self.hub.words["file"].format(**place, revision=revision, commit=commit)


def is_offline(order: ModelOrder, environment: Mapping[str, str]) -> bool:
    """Return whether no packet may be sent: by the order, or by the variables that the hubs' own clients obey."""
    switches = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return order.offline or any(environment.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in switches)


def hubs(order: ModelOrder, environment: Mapping[str, str]) -> list[Hub]:
    """Return the hubs to ask, preferred first; a mirror or a token named in the environment is used."""
    sources: list[HubName] = ["huggingface", "modelscope"]
    if environment.get("USE_MODELSCOPE_HUB", "").lower() in {"1", "true", "y"}:  # LLaMA-Factory's switch
        sources.reverse()
    return [
        replace(_configured(source, environment), noun=order.noun)
        for source in sources
        if order.source in ("auto", source)
    ]


def _configured(source: HubName, environment: Mapping[str, str]) -> Hub:
    row = read("hubs.toml")["hubs"][source]
    endpoint = (first_set(row["endpoint_variables"], environment) or str(row["endpoint"])).strip().rstrip("/")
    endpoint = endpoint if "://" in endpoint else f"https://{endpoint}"
    return Hub(source, endpoint, first_set(row["token_variables"], environment) or _login(source))


def first_set(names: list[str], environment: Mapping[str, str]) -> str | None:
    """The value of the first of these variables that has one."""
    return next((environment[name] for name in names if environment.get(name)), None)


def _login(source: HubName) -> str | None:
    """Return the token of the login that the hub's own client keeps."""
    if source == "huggingface":
        from huggingface_hub import get_token

        return get_token()
    from modelscope_hub.config import HubConfig  # what modelscope delegates to; 0.2 s to import instead of 2 s

    return HubConfig().load_token()

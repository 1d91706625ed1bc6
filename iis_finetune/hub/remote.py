"""What the two hubs answer: which one has the model, which files, which bytes.

Both are asked over one HTTP session of ours, and their own clients serve the logins only. Three reasons, all measured
with huggingface_hub 1.33 and modelscope 1.40 (2026-11): huggingface_hub starts a file again from zero in a new process
and accepts wrong bytes of the right length; importing modelscope takes 2 s; and the two clients read different proxy,
certificate and retry settings, so that every error would have two forms.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit

from ..arguments import find_model
from ..errors import ProblemsFound
from .files import RemoteFile, Source, needed
from .refusals import HubFailure, no_answer, passes, problem_of, refusal, table

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session

# Files fetched at once; more gain nothing against one hub and cost their open streams at every interruption.
STREAMS = 4
MAX_PAUSE_SECONDS = 120.0


@dataclass(frozen=True)
class Patience:
    """How long to wait for a hub, and how often to come back to it."""

    probe_seconds: float = 5.0
    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    tries: int = 6  # without one new byte in between
    first_pause_seconds: float = 1.0  # doubles with each try

    def pause_seconds(self, failure: HubFailure, tries: int) -> float | None:
        """How long to wait after so many tries in vain; None when to give up, as the failure will not pass."""
        if not passes(failure) or tries >= self.tries:
            return None
        return min(max(self.first_pause_seconds * 2.0 ** (tries - 1), failure.retry_after or 0.0), MAX_PAUSE_SECONDS)


@dataclass(frozen=True)
class Request:
    """Which model, from where, to where; `model` is a hub's id or one of LLaMA-Factory's display names.

    `to` is the models folder, in which the model gets `<org>--<name>`, unless `exact` says that it is the model's own.
    """

    model: str
    to: Path
    exact: bool = False
    revision: str | None = None
    source: Literal["auto", "huggingface", "modelscope"] = "auto"
    offline: bool = False
    patience: Patience = Patience()

    @property
    def folder(self) -> Path:
        name = self.model if "/" in self.model else self.id_on("huggingface")
        return self.to if self.exact else self.to / name.replace("/", "--")

    def id_on(self, source: Source) -> str:
        """Return the id that this hub knows the model by; LLaMA-Factory's table has those that differ."""
        known = find_model(self.model)
        return (known and getattr(known, source)) or self.model


@dataclass(frozen=True)
class Hub:
    """One hub as it is configured here; the token never shows in a representation."""

    source: Source
    endpoint: str
    token: str | None = field(default=None, repr=False)

    @property
    def site(self) -> str:
        """The address without a user or password in it."""
        return self.endpoint.replace(f"{urlsplit(self.endpoint).netloc.rpartition('@')[0]}@", "")

    @property
    def words(self) -> dict[str, str]:
        """Its row in the table of the hubs."""
        return dict(table()["hubs"][self.source])

    @property
    def name(self) -> str:
        return f"{self.words['title']} ({self.site})"

    def revision(self, request: Request) -> str:
        """Return the revision to ask for; the hubs name their default branch differently."""
        return self.words["branch"] if request.revision in (None, "main") else str(request.revision)

    def list_url(self, model: str, revision: str) -> str:
        return self.words["list"].format(endpoint=self.endpoint, model=model, revision=quote(revision, safe=""))


@dataclass(frozen=True)
class Listing:
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


def is_offline(request: Request, environment: Mapping[str, str]) -> bool:
    """Return whether no packet may be sent: by the request, or by the variables that the hubs' own clients obey."""
    switches = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return request.offline or any(environment.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in switches)


def hubs(request: Request, environment: Mapping[str, str]) -> list[Hub]:
    """Return the hubs to ask, preferred first; `HF_ENDPOINT` stands in for Hugging Face, as in its own client."""
    sources: list[Source] = ["huggingface", "modelscope"]
    if environment.get("USE_MODELSCOPE_HUB", "").lower() in {"1", "true", "y"}:  # LLaMA-Factory's switch
        sources.reverse()
    asked = [source for source in sources if request.source in ("auto", source)]
    return [Hub(source, _endpoint(source, environment), _token(source, environment)) for source in asked]


def _endpoint(source: Source, environment: Mapping[str, str]) -> str:
    names = {"huggingface": ("HF_ENDPOINT",), "modelscope": ("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN")}[source]
    configured = next((environment[name] for name in names if environment.get(name)), None)
    endpoint = (configured or str(table()["hubs"][source]["endpoint"])).strip().rstrip("/")
    return endpoint if "://" in endpoint else f"https://{endpoint}"


def _token(source: Source, environment: Mapping[str, str]) -> str | None:
    """Return the token from the environment, else from the login that the hub's own client keeps."""
    if source == "huggingface":
        from huggingface_hub import get_token

        return environment.get("HF_TOKEN") or environment.get("HUGGING_FACE_HUB_TOKEN") or get_token()
    from modelscope_hub.config import HubConfig  # what modelscope delegates to; 0.2 s to import instead of 2 s

    return environment.get("MODELSCOPE_API_TOKEN") or HubConfig().load_token()


def open_session(hub: Hub, environment: Mapping[str, str]) -> Session:
    """Return a session that carries the hub's token to the hub alone; redirects to other hosts go without it."""
    import requests

    session = requests.Session()
    session.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=STREAMS))
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=STREAMS))
    session.headers.update({"User-Agent": "iis-finetune", "Accept-Encoding": "identity"})
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
    session.verify = next((environment[name] for name in names if environment.get(name)), True)

    def sign(prepared: PreparedRequest) -> PreparedRequest:
        # Set as `auth` also without a token: else requests takes a password for this host out of ~/.netrc.
        if hub.token:
            prepared.headers["Authorization"] = f"Bearer {hub.token}"
            if hub.source == "modelscope":  # its older endpoints know the cookie only
                prepared.headers["Cookie"] = f"m_session_id={hub.token}"
        return prepared

    session.auth = sign
    return session


def get(
    session: Session, url: str, timeouts: tuple[float, float], headers: Mapping[str, str] | None = None
) -> Response:
    """Ask once; the answer's body is still to be read. Raises HubFailure for no answer and for a refusal."""
    import requests

    try:
        response = session.get(url, timeout=timeouts, headers=headers, stream=True)
        if response.status_code >= 400:
            raise refusal(response.status_code, response.headers, response.text[:2000])
    except (requests.RequestException, OSError) as error:
        raise no_answer(error) from error
    return response


def list_files(hub: Hub, request: Request, environment: Mapping[str, str], seconds: float | None = None) -> Listing:
    """Ask one hub once for the model's files. Raises HubFailure."""
    import requests

    model, revision, patience = request.id_on(hub.source), hub.revision(request), request.patience
    timeouts = (seconds or patience.connect_seconds, seconds or patience.read_seconds)
    read = _read_huggingface if hub.source == "huggingface" else _read_modelscope
    with open_session(hub, environment) as session:
        response = get(session, hub.list_url(model, revision), timeouts)
        try:
            commit, files = read(response.json())
        except (requests.RequestException, ValueError, KeyError, AttributeError) as error:
            raise HubFailure("broken", "its list of files cannot be read") from error
    return Listing(hub, model, revision, commit, tuple(needed(files)))


def _read_huggingface(answer: dict[str, Any]) -> tuple[str | None, list[RemoteFile]]:
    files = []
    for entry in answer.get("siblings") or []:
        lfs = entry.get("lfs") or {}
        git_sha1 = None if lfs else entry.get("blobId")
        size = int(lfs.get("size") or entry.get("size") or 0)
        files.append(RemoteFile(entry["rfilename"], size, lfs.get("sha256"), git_sha1))
    return answer.get("sha"), files


def _read_modelscope(answer: dict[str, Any]) -> tuple[str | None, list[RemoteFile]]:
    if answer.get("Success") is False:
        raise refusal(int(answer.get("Code") or 404), {}, str(answer.get("Message")))
    data = answer.get("Data") or {}
    entries = [entry for entry in data.get("Files") or [] if entry.get("Type") != "tree"]
    files = [RemoteFile(entry["Path"], int(entry.get("Size") or 0), entry.get("Sha256") or None) for entry in entries]
    latest = data.get("LatestCommitter") or {}
    # Some answers leave the commit's id empty; the newest file's revision is then the same commit.
    newest: dict[str, Any] = max(entries, key=lambda entry: entry.get("CommittedDate") or 0, default={})
    return latest.get("Id") or newest.get("Revision") or latest.get("ShortId") or None, files


def choose_source(request: Request, environment: Mapping[str, str], say: Callable[[str], object] = str) -> Listing:
    """Ask every configured hub at once and take the preferred one of those that list the model.

    One that is only busy is asked again with growing pauses, which `say` is told of.
    Raises ProblemsFound with what each hub answered.
    """
    candidates = hubs(request, environment)
    answer_of = _ask_all(candidates, request, environment)
    failures: list[tuple[Hub, HubFailure]] = []
    for hub in candidates:
        answer = answer_of(hub)
        if isinstance(answer, Listing):
            return replace(answer, reason=_reason(hub, request, failures))
        failures.append((hub, answer))
    for hub in [hub for hub, failure in failures if failure.kind in {"busy", "broken"}]:
        answer = _ask_again(hub, request, environment, say)
        if isinstance(answer, Listing):
            return replace(answer, reason=f"{hub.name} was busy, and answered when asked again")
        failures = [(other, answer if other == hub else failure) for other, failure in failures]
    telling = [pair for pair in failures if pair[1].kind != "unreachable"] or failures[:1]
    raise ProblemsFound(problem_of(failure, hub, request) for hub, failure in telling)


def _ask_all(
    candidates: list[Hub], request: Request, environment: Mapping[str, str]
) -> Callable[[Hub], Listing | HubFailure]:
    """Ask in threads that nobody has to wait for; return a function that gives a hub's answer, or its time-out."""
    answers: dict[Source, Listing | HubFailure] = {}
    # A hub that was asked for by name is worth waiting for.
    seconds = request.patience.probe_seconds if len(candidates) > 1 else request.patience.read_seconds
    deadline = time.monotonic() + seconds

    def ask(hub: Hub) -> None:
        try:
            answers[hub.source] = list_files(hub, request, environment, seconds)
        except HubFailure as failure:
            answers[hub.source] = failure

    threads = {hub.source: threading.Thread(target=ask, args=(hub,), daemon=True) for hub in candidates}
    for thread in threads.values():
        thread.start()

    def answer_of(hub: Hub) -> Listing | HubFailure:
        threads[hub.source].join(max(0.0, deadline - time.monotonic()))
        return answers.get(hub.source) or HubFailure("unreachable", f"no answer in {seconds:g} s")

    return answer_of


def _ask_again(
    hub: Hub, request: Request, environment: Mapping[str, str], say: Callable[[str], object]
) -> Listing | HubFailure:
    for tries in count(1):
        try:
            return list_files(hub, request, environment)
        except HubFailure as failure:
            last = failure
        if (seconds := request.patience.pause_seconds(last, tries)) is None:
            break
        say(f"{hub.name}: {last.detail}; asking again in {seconds:.0f} s")
        time.sleep(seconds)
    return last


def _reason(hub: Hub, request: Request, failures: list[tuple[Hub, HubFailure]]) -> str:
    if request.source != "auto":
        return f"{hub.name} was asked for"
    return "; ".join([f"{other.name}: {failure.detail}" for other, failure in failures] + [f"{hub.name} has it"])

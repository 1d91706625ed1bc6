"""Asking the hubs: which of them has the model, and which files; every request goes through `get`.

Both hubs are reached over one HTTP session of ours; their own clients serve the logins only. Building on them was tried
in 2026-11 and did not hold. huggingface_hub 1.33: with its `http_get` 8 of 77 tests fail; 20 cuts and 5 kills of a
200 MB model cost 419 MB (at most 334 are allowed), as each end of a stream loses up to 10 MB, and time-outs and
certificates can be set for the whole process only. modelscope-hub 0.5.1 gives a file up at its sixth interruption,
however much came in between: 20 cuts lost 2 of 4 files. No line of ours would have gone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from msgspec.structs import replace

from ..errors import ProblemsFound
from ..tables import read
from .file_lists import read_list
from .order import Hub, Listing, ModelOrder, RemoteFile, first_set, hubs, is_offline
from .refusals import HubFailure, no_answer, problem_of, refusal
from .selection import needed, of_rows

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session

Answer = Listing | HubFailure

MOST_REDIRECTS = 10
LONGEST_LIST = 64 * 2**20  # bytes; 200,000 files are about 40 MB
LONGEST_REFUSAL = 4096
BLOCK_BYTES = 1 << 16
LICENCE = re.compile(rb'"[lL]icense": ?"([\w.+ -]{2,60})"')  # both hubs' word for it
PROBE_SECONDS = 5.0


def open_session(hub: Hub, environment: Mapping[str, str]) -> Session:
    """Return a session that carries the hub's token to the hub alone; redirects to other hosts go without it."""
    import requests

    session = requests.Session()
    session.headers.update({"User-Agent": "iis-finetune", "Accept-Encoding": "identity"})
    session.verify = first_set(read("hubs.toml")["certificate_variables"], environment) or True

    def sign(prepared: PreparedRequest) -> PreparedRequest:
        # Set as `auth` also without a token: else requests takes a password for this host out of ~/.netrc.
        if hub.token and not session.should_strip_auth(hub.endpoint, str(prepared.url)):
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
    for _ in range(MOST_REDIRECTS):
        try:
            response = _send(session, url, timeouts, headers)
        except (OSError, ValueError) as error:  # what requests raises is an OSError, but for some malformed addresses
            raise no_answer(error) from error
        try:
            target = session.get_redirect_target(response)
            url = urljoin(url, target or "")
        except ValueError as error:  # not an address
            response.close()
            raise no_answer(error) from error
        if target is None:
            return _granted(response, timeouts[1])
        with response:  # a short body is read to its end, so that the connection can be used again
            read_body(response, LONGEST_REFUSAL, timeouts[1])
        if urlsplit(url).scheme not in ("http", "https"):
            raise HubFailure("redirect", "to an address that is not http or https")
    raise HubFailure("redirect", f"more than {MOST_REDIRECTS} times, perhaps in a circle")


def _send(session: Session, url: str, timeouts: tuple[float, float], headers: Mapping[str, str] | None) -> Response:
    """Send one request; the session's own `get` would read all of a redirect's body, however long that is."""
    import requests

    prepared = session.prepare_request(requests.Request("GET", url, headers=headers))
    address = str(prepared.url)
    settings = session.merge_environment_settings(address, {}, stream=True, verify=None, cert=None)
    return session.get_adapter(address).send(prepared, timeout=timeouts, **settings)


def _granted(response: Response, seconds: float) -> Response:
    if response.status_code >= 300:
        with response:
            body = read_body(response, LONGEST_REFUSAL, seconds)
        raise refusal(response.status_code, response.headers, body.decode("utf-8", "replace"))
    if response.headers.get("Content-Encoding", "identity") != "identity":
        response.close()
        raise HubFailure("malformed", "it compresses its answers, though it was asked not to")
    return response


def read_body(response: Response, most: int, seconds: float) -> bytes:
    """Read at most `most` bytes and for at most `seconds`, whatever the server sends."""
    import urllib3

    body, deadline = bytearray(), time.monotonic() + seconds
    try:
        while len(body) < most and (block := response.raw.read1(min(BLOCK_BYTES, most - len(body)))):
            body += block
            if time.monotonic() > deadline:
                raise HubFailure("unreachable", "its answer takes too long")
    except urllib3.exceptions.HTTPError as error:
        raise HubFailure("broken", "the connection broke off") from error
    return bytes(body)


def list_files(hub: Hub, order: ModelOrder, environment: Mapping[str, str], seconds: float | None = None) -> Listing:
    """Ask one hub once for the model's files that training needs. Raises HubFailure."""
    commit, files = list_all(hub, order, environment, seconds)
    wanted = needed(files, order.texts) if order.noun == "model" else of_rows(files)
    return Listing(hub, order.id_on(hub.source), hub.revision(order), commit, tuple(wanted))


def list_all(
    hub: Hub, order: ModelOrder, environment: Mapping[str, str], seconds: float | None = None
) -> tuple[str | None, list[RemoteFile]]:
    """Ask one hub once for the commit and every file of it. Raises HubFailure."""
    patience = order.patience
    timeouts = (seconds or patience.connect_seconds, seconds or patience.read_seconds)
    with open_session(hub, environment) as session, get(session, hub.list_url(order), timeouts) as response:
        body = read_body(response, LONGEST_LIST + 1, timeouts[1])
    if len(body) > LONGEST_LIST:
        raise HubFailure("malformed", f"its list of files is longer than {LONGEST_LIST >> 20} MB")
    return read_list(body)


def licence_of(model: str, environment: Mapping[str, str]) -> str | None:
    """The licence that a hub states for a model; None where none does, or none is to be asked."""
    order, timeouts = ModelOrder(model, Path()), (PROBE_SECONDS, PROBE_SECONDS)
    for hub in [] if is_offline(order, environment) else hubs(order, environment):
        url = hub.words["about"].format(endpoint=hub.endpoint, model=order.id_on(hub.source))
        with suppress(HubFailure), open_session(hub, environment) as session, get(session, url, timeouts) as answer:
            if stated := LICENCE.search(read_body(answer, LONGEST_LIST, PROBE_SECONDS)):
                return stated[1].decode().lower().replace("apache license ", "apache-").removesuffix(" license")
    return None


def choose_source(order: ModelOrder, environment: Mapping[str, str], say: Callable[[str], object] = str) -> Listing:
    """Take the preferred hub of those that list the model, asked at once, a busy one again; raises ProblemsFound."""
    failures: dict[Hub, HubFailure] = {}
    for hub, answer in _ask_all(order, environment):
        if isinstance(answer, Listing):
            others = "".join(f"{other.name}: {failure.detail}; " for other, failure in failures.items())
            reason = f"{others}{hub.name} has it" if order.source == "auto" else f"{hub.name} was asked for"
            return replace(answer, reason=reason)
        failures[hub] = answer
    for hub in [hub for hub, failure in failures.items() if failure.kind in {"busy", "broken"}]:
        answer = _ask_again(hub, order, environment, say)
        if isinstance(answer, Listing):
            return replace(answer, reason=f"{hub.name} was busy, and answered when asked again")
        failures[hub] = answer
    telling = [pair for pair in failures.items() if pair[1].kind != "unreachable"] or list(failures.items())[:1]
    raise ProblemsFound(problem_of(failure, hub, order) for hub, failure in telling)


def _ask_all(order: ModelOrder, environment: Mapping[str, str]) -> Iterator[tuple[Hub, Answer]]:
    """The hubs' answers, preferred hub first, or their time-outs; asked at once, in threads nobody has to wait for."""
    candidates = hubs(order, environment)
    # A hub that was asked for by name is worth waiting for.
    seconds = order.patience.probe_seconds if len(candidates) > 1 else order.patience.read_seconds
    deadline = time.monotonic() + seconds
    answers: dict[Hub, Answer] = {}

    def ask(hub: Hub) -> None:
        answers[hub] = _answer(hub, order, environment, seconds)

    threads = {hub: Thread(target=ask, args=(hub,), daemon=True) for hub in candidates}
    for thread in threads.values():
        thread.start()
    for hub, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        yield hub, answers.get(hub) or HubFailure("unreachable", f"no answer in {seconds:g} s")


def _answer(hub: Hub, order: ModelOrder, environment: Mapping[str, str], seconds: float | None = None) -> Answer:
    try:
        return list_files(hub, order, environment, seconds)
    except HubFailure as failure:
        return failure


def _ask_again(hub: Hub, order: ModelOrder, environment: Mapping[str, str], say: Callable[[str], object]) -> Answer:
    tries = 1
    while isinstance(answer := _answer(hub, order, environment), HubFailure):
        seconds = order.patience.pause_seconds(answer, tries)
        if seconds is None:
            break
        say(f"{hub.name}: {answer.detail}; asking again in {seconds:.0f} s")
        time.sleep(seconds)
        tries += 1
    return answer

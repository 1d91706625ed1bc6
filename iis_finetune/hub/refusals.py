"""What a hub's refusal means, and what to do about it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..arguments import frozen
from ..errors import Problem
from ..tables import read

if TYPE_CHECKING:
    from .order import Hub, ModelOrder


class HubFailure(Exception):
    """A hub gave no answer, or refused; the text of an answer is never kept, for it can hold signed addresses.

    `kind` is a row of the advice in the table, or `wrong`: the hub contradicts its own list.
    """

    def __init__(self, kind: str, detail: str = "", retry_after: float | None = None):
        self.kind, self.detail, self.retry_after = kind, detail, retry_after
        super().__init__(detail)

    @property
    def passes(self) -> bool:
        """Return whether it may be over soon."""
        return self.kind in read("hubs.toml")["passing"]


def problem_of(failure: HubFailure, hub: Hub, order: ModelOrder, doing: str = "fetching") -> Problem:
    """Put a hub's refusal into the user's words, which depend on what is being done."""
    advice = read("hubs.toml")[doing].get(failure.kind) or read("hubs.toml")["fetching"][failure.kind]
    advice = advice["with_token"] if hub.token and "with_token" in advice else advice
    model, rows = order.id_on(hub.source), frozen("models")["models"].values()
    known = {row[source] for row in rows for source in ("huggingface", "modelscope") if row[source]}
    known = known if order.noun == "model" else set()
    near = difflib.get_close_matches(model, sorted(known), n=3, cutoff=0.8)
    fields = hub.words | {
        "hub": hub.name,
        "address": urlsplit(hub.site).hostname or "",
        "model": model,
        "revision": hub.revision(order),
        "page": hub.words["page"].format(site=hub.site, model=model),
        "detail": failure.detail,
        "near": f"did you mean {', '.join(near)}? else " if near else "",
        "on_disk": on_disk(order),
        "other_hub": order.chosen_by + ("modelscope" if hub.source == "huggingface" else "huggingface"),
    }
    what, fix = advice["what"].format(**fields), advice["fix"].format(**fields)
    return Problem(what, fix, kind=advice.get("kind", "missing"), code=3)


def on_disk(order: ModelOrder) -> str:
    """Name the models that can be used without a network."""
    from .folder import is_whole

    root = order.to.parent if order.exact else order.to
    names = sorted(path.name for path in root.glob("*") if is_whole(path))
    return f": {', '.join(names)}" if names else " (there is none)"


def refusal(status: int, headers: Mapping[str, str], body: str) -> HubFailure:
    """Name a refusal by the hub's own code, else by the status; ModelScope says 404 for revisions too."""
    codes, statuses = read("hubs.toml")["codes"], read("hubs.toml")["statuses"]
    kind = codes.get(headers.get("X-Error-Code")) or statuses.get(str(status), "busy")
    if kind == "model" and ("evision" in body or "版本" in body):
        kind = "revision"
    return HubFailure(kind, f"it answered {status}", _retry_after(headers))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Read seconds or a date; Hugging Face gives the seconds in `RateLimit: "api";r=0;t=55` as well."""
    from urllib3 import Retry
    from urllib3.exceptions import InvalidHeader

    limit = re.search(r"\br=0;t=(\d+)", headers.get("RateLimit", ""))
    value = headers.get("Retry-After") or (limit[1] if limit else None)
    try:
        return Retry().parse_retry_after(value) if value else None
    except (InvalidHeader, ValueError, OverflowError):
        return None


def no_answer(error: Exception) -> HubFailure:
    """Name the reason why there was no answer; a library's own text is not repeated, for it can hold addresses."""
    import requests

    if isinstance(error, requests.exceptions.ProxyError):
        return HubFailure("proxy", "the proxy refused")
    if isinstance(error, requests.exceptions.SSLError) or "invalid path" in str(error):  # a CA file that is not there
        return HubFailure("certificate", "its certificate cannot be verified")
    return HubFailure("unreachable", "no answer in time" if isinstance(error, requests.Timeout) else "no connection")

"""Base models: fetched once, from the hub that answers, and verified.

`fetch` brings a model here, `verify` checks one offline, `installed` lists what is on disk; the manifest beside each
model says where it came from. `choose_source` asks the hubs and writes nothing.
"""

from .fetching import Fetched, fetch
from .files import RemoteFile
from .folder import installed, is_whole, read_manifest, verify
from .remote import Patience, Request, choose_source
from .transfer import Progress

__all__ = [
    "Fetched",
    "Patience",
    "Progress",
    "RemoteFile",
    "Request",
    "choose_source",
    "fetch",
    "installed",
    "is_whole",
    "read_manifest",
    "verify",
]

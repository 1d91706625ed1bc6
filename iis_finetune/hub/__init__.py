"""Base models: fetched once, from the hub that answers, and verified.

`fetch` brings a model here, `verify` checks one offline, `installed` lists what is on disk; the manifest beside each
model says where it came from. `choose_source` and `list_files` ask the hubs and write nothing.
"""

from .fetching import Fetched, fetch
from .files import RemoteFile, is_model
from .folder import Installed, Manifest, installed, is_whole, read_manifest, verify
from .remote import Hub, Listing, Patience, Request, choose_source, list_files
from .transfer import Progress

__all__ = [
    "Fetched",
    "Hub",
    "Installed",
    "Listing",
    "Manifest",
    "Patience",
    "Progress",
    "RemoteFile",
    "Request",
    "choose_source",
    "fetch",
    "installed",
    "is_model",
    "is_whole",
    "list_files",
    "read_manifest",
    "verify",
]

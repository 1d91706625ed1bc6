"""Base models: fetched once, from the hub that answers, and verified.

`fetch` brings a model here, `verify` checks one offline, `installed` lists what is on disk; the manifest beside each
model says where it came from. `choose_source` asks the hubs and writes nothing. `give` sends a folder to a hub.
"""

from .asking import choose_source, licence_of
from .fetching import Fetched, fetch
from .folder import installed, is_whole, read_manifest, verify
from .order import ModelOrder, Patience, RemoteFile, hubs
from .selection import weights_faults
from .sending import Gift, give, standing
from .transfer import Progress, Report

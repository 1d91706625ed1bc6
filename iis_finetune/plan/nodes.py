"""Several machines that train one model together: what each of them is told."""

from __future__ import annotations

from ..decision import Decision
from ..errors import Problem
from ..machine import Machine
from ..runs import Nodes
from .draft import Draft

UNNAMED = "FIRST_NODE"  # stands for an address that is not known yet
JOIN_SECONDS = 600  # torch 2.13 static_tcp_rendezvous.py; said all the same, because it is the limit that users meet


NOT_HERE = {
    "single": "a single process cannot be on several nodes",
    "fsdp": "FSDP over several nodes is not tried: a node would keep only its part of a checkpoint",
}


def write(draft: Draft, nodes: Nodes, machine: Machine, launcher: str) -> None:
    """Write what a run on several machines needs beside what several processes do."""
    if launcher in NOT_HERE:
        draft.complain(Problem(NOT_HERE[launcher], "kit.launcher: ddp, or zero3", draft.recipe.place("kit.launcher")))
    told = f"--nodes on the command line; this is node {nodes.rank}, the first is at {nodes.address}:{nodes.port}"
    draft.decisions.append(Decision("nodes", nodes.number, "override", told))
    draft.environment |= nodes.variables()
    if draft.arguments.get("stage") == "ppo":
        draft.complain(Problem("stage ppo runs on one machine", "train without --nodes", draft.recipe.place("stage")))
    reason = "every node keeps whole checkpoints in a run folder of its own, so no disk need be shared"
    draft.choose("save_on_each_node", True, reason)
    reason = f"a node waits {JOIN_SECONDS // 60} minutes for the others to come, then its attempt ends"
    _environment(draft, "PET_RDZV_CONF", f"timeout={JOIN_SECONDS}", reason)
    if nodes.interface:
        reason = f"the card that leads to {nodes.address}; gloo would take the one that the host's name belongs to"
        _environment(draft, "GLOO_SOCKET_IFNAME", nodes.interface, reason)
    elif machine.here and nodes.address != UNNAMED and "GLOO_SOCKET_IFNAME" not in draft.recipe.kit.env:
        what = f"no network card is known to lead to {nodes.address}"
        draft.complain(Problem(what, "kit.env={GLOO_SOCKET_IFNAME: eth0}", severity="warning", kind="machine"))
    if draft.arguments.get("save_total_limit") == 1:
        what = "with one checkpoint kept, nodes that are cut off during a save have none in common"
        place = draft.recipe.place("save_total_limit")
        draft.complain(Problem(what, "save_total_limit: 2", place, severity="warning"))


def _environment(draft: Draft, name: str, value: str, reason: str) -> None:
    draft.environment[name] = value
    draft.decisions.append(Decision(f"environment.{name}", value, "kit default", reason))

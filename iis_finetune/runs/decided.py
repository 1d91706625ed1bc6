"""What a run was planned as (decisions.json) and what it came from (provenance.json), read back here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field, to_builtins
from msgspec.structs import replace

from ..decision import Decision
from .documents import read_json, typed, write_json
from .run import Run


class Nodes(Struct, frozen=True):
    """`rank` is this machine's place among them; the first, at `address`, is 0. `interface` is the card towards it."""

    number: int
    rank: int
    address: str
    port: int
    interface: str | None = None

    @property
    def all(self) -> list[Nodes]:
        """One record for each machine; the network card of the others is not known here."""
        return [self if rank == self.rank else replace(self, rank=rank, interface=None) for rank in range(self.number)]

    def variables(self) -> dict[str, str]:
        """The variables from which LLaMA-Factory's launcher builds its torchrun command."""
        place = {"MASTER_ADDR": self.address, "MASTER_PORT": str(self.port)}
        return {"NNODES": str(self.number), "NODE_RANK": str(self.rank), **place}


class Decided(Struct, frozen=True):
    """What a run was planned as, with real paths; empty where a folder of an older version does not say it."""

    recipe: str = ""
    machine: str = ""
    precision: str = "as-saved"
    launcher: str = "single"
    processes: int = 1
    nodes: Nodes | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()
    memory: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[Mapping[str, Any], ...] = ()

    def decision(self, name: str) -> Decision | None:
        return next((each for each in self.decisions if each.name == name), None)


class Provenance(Struct, frozen=True):
    """What a run came from: its model folder and what that held, its data files by path."""

    model: str | None = None
    model_fingerprint: str | None = None
    data_sha256: Mapping[str, str] = field(default_factory=dict)


def provenance_of(run: Run) -> Provenance:
    """Empty where the file is not there; raises ProblemsFound for a damaged one."""
    return typed(run.provenance, Provenance, read_json(run.provenance) or {})


def write_decided(run: Run, decided: Decided) -> None:
    write_json(run.decisions, to_builtins(decided))


def read_decided(run: Run) -> Decided:
    """Empty where the file is not there; raises ProblemsFound for a damaged one."""
    return typed(run.decisions, Decided, read_json(run.decisions) or {})

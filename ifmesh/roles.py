"""Who may say what: one table, from the role of a key to the messages it may say and the bags it may push.  Pure.

A role is client, worker:STAGE, supervisor, gateway or operator.  Who speaks is told by the key alone, never by a routing id: those begin
with the tag of their key, so that nobody can speak for another, and a worker's is its life.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from ifmesh.commands import parent_of, peer_of
from ifmesh.protocol import ClientMessage, Exited, Header, Hello, Hi, Inspect, Lives, Probe, ToCoordinator, WorkerMessage

_ASKS = frozenset(get_args(ClientMessage)) - {Probe}

SAYS: Mapping[str, frozenset[type]] = {
    "client": _ASKS,  # of its own jobs: `Broker.receive`
    "gateway": _ASKS,
    "operator": _ASKS | {Probe},
    "worker": frozenset(get_args(WorkerMessage)),  # of its own lives: `speaks_for`
    "supervisor": frozenset({Hi, Inspect}),
}
PUSHES: Mapping[str, frozenset[str]] = {
    "client": frozenset({"upload"}),
    "gateway": frozenset({"upload"}),
    "operator": frozenset({"upload"}),
    "worker": frozenset({"result", "preview", "relay", "checkpoint", "probe"}),
}
EVERYBODY = frozenset({"gateway", "operator"})
"""Roles that see everybody's jobs."""


def says(role: str, message: ToCoordinator) -> bool:
    """May it say this to the coordinator?"""
    kind, _, stage = role.partition(":")
    return type(message) in SAYS.get(kind, ()) and (not isinstance(message, Hello) or message.stage == stage)


def pushes(role: str, header: Header) -> bool:
    """May it push this to the coordinator?  Bags of its own stage; early pictures come from a guard, whoever drew them."""
    kind, _, stage = role.partition(":")
    return header.kind in PUSHES.get(kind, ()) and (kind != "worker" or stage == ("guard" if header.kind == "preview" else header.stage))


def owner(name: str, role: str) -> str | None:
    """Whose jobs it sees: its own, by the name of its key; None: everybody's."""
    return None if role in EVERYBODY else name


def speaks_for(peer: bytes, message: ToCoordinator) -> bool:
    """Is it about the life of who says it?  That a process is there, or is over, is said by its parent alone."""
    if isinstance(message, Exited | Lives):
        return peer == parent_of(message.life)
    if not isinstance(message, WorkerMessage) or peer == peer_of(message.life):
        return True
    life, _, dial = peer.rpartition(b"~")
    return life == peer_of(message.life) and dial.isdigit()

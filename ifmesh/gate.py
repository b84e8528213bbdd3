"""The coordinator's gate: who said this, may it, and for whom.  Every message is looked up anew: who was revoked is heard no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from ifmesh import identity, roles
from ifmesh.authorized import Authorized, Entry
from ifmesh.errors import Misconfigured
from ifmesh.log import logger
from ifmesh.protocol import Beat, Header, Hello, Peer, ToCoordinator, Trusted
from ifmesh.wire import Garbled

OFTEN = 0.2
"""Seconds between two looks at the table."""


class Gate:
    """table: None: nobody has a key, and all are let in.  own: the coordinator's public key.  epoch: so that no number of a Trusted is
    ever used for two tables."""

    def __init__(self, table: Authorized | None, own: str, epoch: int) -> None:
        self._table, self._own, self._epoch = table, own, epoch
        self._lock = threading.Lock()  # over reading the table: ZAP asks, too
        self._looked = float("-inf")
        self._number = 0

    def refresh(self, now: float) -> bool:
        """Look at the table again, unless that was just done.  True: it is another than when this was last asked."""
        if self._table is None or now - self._looked < OFTEN:
            return False
        self._looked = now
        self._look(self._table)
        before, self._number = self._number, self._table.number
        return self._number != before

    def lets(self, public: str) -> bool:
        """For ZAP, in its thread.  Who is not known may have been invited just now."""
        if self._table is None:
            return False
        if self._table.find(public, time.time()) is None:
            self._look(self._table)
        return self._table.find(public, time.time()) is not None

    def speaker(self, peer: bytes, user: str) -> Entry | None:
        """Whose key that is; None: nobody has one.  Garbled: it was revoked, or the routing id is not one of its own."""
        entry = self._entry(user)
        if entry is not None and not peer.startswith(f"{identity.tag(user)}.".encode()):
            raise Garbled(f"{entry.name} under a routing id of another key")
        return entry

    def owner(self, entry: Entry | None, peer: bytes, message: ToCoordinator) -> str | None:
        """Whose jobs there are for the speaker (`roles.owner`).  Garbled: it may not say that."""
        if not roles.speaks_for(peer, message):
            raise Garbled(f"{type(message).__name__} in the name of another")
        if entry is None:
            return None
        if not roles.says(entry.role, message):
            raise Garbled(f"{type(message).__name__} by {entry.name}, which is {entry.role}")
        return roles.owner(entry.name, entry.role)

    def pushed(self, user: str, header: Header) -> None:
        """Garbled: this key may not push that."""
        entry = self._entry(user)
        if entry is not None and not roles.pushes(entry.role, header):
            raise Garbled(f"a {header.kind} of {header.stage or 'a client'} by {entry.name}, which is {entry.role}")

    def misplaced(self, entry: Entry | None, message: ToCoordinator) -> bool:
        """Is it a Hello that would have others push to somebody else?"""
        return entry is not None and isinstance(message, Hello) and any(e.key != entry.public for e in message.endpoints)

    def trusted(self, message: ToCoordinator) -> Trusted | None:
        """What a worker that says this has to know: who may push to it."""
        if self._table is None or not isinstance(message, Hello | Beat):
            return None
        number = (self._epoch << 20) + self._table.number
        if isinstance(message, Beat) and message.trusts == number:
            return None
        workers = ((e.public, e.role.partition(":")) for e in self._table.entries)
        return Trusted(number, (Peer(self._own, ""), *(Peer(key, stage) for key, (kind, _, stage) in workers if kind == "worker")))

    def revoked(self, lives: Iterable[str]) -> list[str]:
        """Those of these lives whose key is valid no more."""
        if self._table is None:
            return []
        known = {identity.tag(entry.public) for entry in self._table.entries}
        return [life for life in lives if life.partition(".")[0] not in known]

    def _look(self, table: Authorized) -> None:
        with self._lock:
            try:
                table.refresh()
            except Misconfigured as error:
                logger.error("%s; who may come in stays as it was", error)

    def _entry(self, user: str) -> Entry | None:
        """None: in a mesh without keys.  Garbled: its key was revoked."""
        if self._table is None:
            return None
        entry = self._table.find(user, time.time())
        if entry is None:
            raise Garbled("its key was revoked")
        return entry

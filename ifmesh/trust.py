"""Who may push to a worker, as the coordinator told it last: looked up for every newcomer and for every delivery."""

from __future__ import annotations

from ifmesh.identity import Identity
from ifmesh.protocol import Header, Trusted
from ifmesh.wire import Garbled


class Trust:
    """me: None: nobody has a key, and all may.  Until it is told more, the coordinator alone may push."""

    def __init__(self, me: Identity | None) -> None:
        self._stages = None if me is None else {me.server: ""}
        self._server = "" if me is None else me.server

    def learn(self, told: Trusted) -> None:
        if self._stages is not None:
            self._stages = {**{peer.key: peer.stage for peer in told.peers}, self._server: ""}

    def lets(self, public: str) -> bool:
        """For ZAP, in its thread."""
        return self._stages is not None and public in self._stages

    def wants(self, header: Header, user: str) -> bool:
        """True.  Garbled: who has this key may not push bags of that stage."""
        if self._stages is not None and self._stages.get(user) not in ("", header.stage):
            known = self._stages.get(user)
            raise Garbled(f"a {header.kind} of {header.stage} by {f'a worker of {known}' if known else 'a key that was revoked'}")
        return True

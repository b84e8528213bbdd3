"""The frames that a client may still have to send: uploads of jobs that are not accepted yet, and the PUSH they go through."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import zmq

from ifmesh import bags, sockets
from ifmesh.identity import Keys
from ifmesh.outlets import Outlets
from ifmesh.protocol import NEVER, Endpoint, Header
from ifmesh.sockets import Context

PATIENCE = 90.0  # seconds that a frame waits behind the one before it on a slow link; longer than the mind's longest wait
IDLE = 600.0  # seconds: a large frame may take that long, and a link that is closed loses it


class Parcels:
    """One frame, by its SHA-256, for all the jobs that bring it.  Owned by the connection's thread."""

    def __init__(self, ctx: Context, keys: Keys | None = None) -> None:
        self._ctx, self._keys = ctx, keys
        self._frames: dict[str, bytes] = {}
        self._outlets: Outlets | None = None
        self._inlet: tuple[int, tuple[Endpoint, ...]] = (0, ())

    def __len__(self) -> int:
        return len(self._frames)

    def keep(self, digest: str, frame: bytes) -> None:
        self._frames.setdefault(digest, frame)

    def sift(self, needed: Callable[[str], bool]) -> None:
        """Let go of what no open job needs any more.  With the last one the links go: whatever was sent is on the other side's disk."""
        if self._frames:
            self._frames = {digest: frame for digest, frame in self._frames.items() if needed(digest)}
            if not self._frames:
                self.reset()

    def welcome(self, epoch: int, inlet: tuple[Endpoint, ...]) -> None:
        """One link to one life of the coordinator, never to two: what is under way to the dead goes with it."""
        if (epoch, inlet) != self._inlet:
            self.reset()
            self._inlet = epoch, inlet

    def push(self, now: float, digest: str) -> None:
        """Send it, now or when its link is up."""
        frame = self._frames.get(digest)
        if frame is None:
            return
        if self._outlets is None:
            self._outlets = Outlets(self._ctx, sockets.host_id(), self._keys, PATIENCE, IDLE)
        self._outlets.send(now, "", self._inlet[1], Header("upload", digest, "", NEVER, bags.digest(frame)), frame)

    @property
    def waiting(self) -> bool:
        """Is there a frame whose link did not take it yet?"""
        return self._outlets is not None and self._outlets.waiting

    def register(self, poller: zmq.Poller) -> None:
        """To be polled; then `flush`."""
        if self._outlets is not None:
            self._outlets.register(poller)

    def wakeup(self) -> float:
        """When `flush` has something to do, if no link has; infinity: never."""
        return self._outlets.wakeup() if self._outlets is not None else inf

    def flush(self, now: float) -> None:
        if self._outlets is not None:
            self._outlets.flush(now)

    def reset(self) -> None:
        """Close the links; the frames stay."""
        if self._outlets is not None:
            self._outlets.close()

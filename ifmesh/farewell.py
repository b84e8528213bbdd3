"""How a coordinator that was told to stop leaves: when nothing is under way any more, and all whom it concerns have heard it."""

from __future__ import annotations

from typing import Literal

from ifmesh.protocol import Finished, Refused, Result, ToClient

LEAVING, AGAIN = 3.0, 0.5  # seconds in which all workers should have left, and between two farewells
# Seconds from the last word to a client to the end.  A DEALER that is IMMEDIATE drops what it has received, but its thread has not yet
# read, when the connection closes: one of ten results was lost so.
READ = 0.5


class Farewell:
    """Said once, the last words may be lost with the connection that is closed behind them, and a worker that waits for a Release needs
    an answer: so they are said until all workers have left and the last pictures were fetched, or for a few seconds."""

    def __init__(self) -> None:
        self._end_by: float | None = None  # when to say it at the latest
        self._gone_by: float | None = None  # it was said: when to end at the latest
        self._again_at = 0.0
        self._unfetched: set[tuple[bytes, str]] = set()  # who was told of a picture and has not come for it
        self._read_at = 0.0  # when each client has read what it was told

    @property
    def begun(self) -> bool:
        return self._end_by is not None

    def begin(self, now: float, drain: float) -> None:
        """drain: seconds for what is under way."""
        self._end_by = now + drain

    def told(self, now: float, peer: bytes, message: ToClient) -> None:
        """A client was told this."""
        if not self.begun:
            return
        self._read_at = now + READ
        if isinstance(message, Finished):
            self._unfetched.add((peer, message.job))
        elif isinstance(message, Result | Refused):
            self._unfetched.discard((peer, message.job))

    def gone(self, peer: bytes) -> None:
        """It cannot be told anything any more."""
        self._unfetched = {(waiting, job) for waiting, job in self._unfetched if waiting != peer}

    def next(self, now: float, idle: bool, alone: bool) -> Literal["wait", "speak", "end"]:
        """What to do now.  idle: nothing is under way; alone: no worker is left."""
        if self._end_by is None or (self._gone_by is None and now < self._end_by and not idle):
            return "wait"
        if self._gone_by is None:
            self._gone_by = now + LEAVING
        if (now >= self._read_at and alone and not self._unfetched) or now >= self._gone_by:
            return "end"
        if now < self._again_at:
            return "wait"
        self._again_at = now + AGAIN
        return "speak"

    def wakeup(self, now: float) -> float | None:
        """When to ask for the next, at the latest."""
        mine = self._end_by if self._gone_by is None else self._again_at
        return self._read_at if mine is not None and now < self._read_at < mine else mine

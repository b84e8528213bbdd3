"""The PUSH side of the data links: one socket per life of a receiver, and what waits for its link to come up."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from functools import partial
from math import inf

import zmq

from ifmesh import sockets
from ifmesh.identity import Keys
from ifmesh.line import Line
from ifmesh.log import logger
from ifmesh.protocol import Endpoint, Header
from ifmesh.sockets import Context
from ifmesh.wire import HEADER

Frame = bytes | memoryview

MOST = 256
TRIES = 0.8
"""Of the seconds after which the broker orders a bag again (mesh.transfer), the part in which its link has to come up."""
SOONEST, LATEST = 0.05, 1.0
"""Seconds between which a link is tried again that was refused: the receiver may be about to learn of our key."""

_Place = tuple[str, str]
"""(job, the stage whose early picture it is, "checkpoint", "probe", or "": the job's one bag)."""


@dataclass(slots=True)
class Link:
    """pending: by job, the newest bag that its pipe did not take yet, and since when; early pictures apart from bags.

    busy: until when what its pipe took may still be under way.  Nobody says when the last byte has left: to CURVE a message is gone as
    soon as it is encrypted.
    """

    line: Line
    to: tuple[Endpoint, ...]
    url: str
    busy: float
    pending: dict[_Place, tuple[Header, Frame, float]]


class Outlets:
    """Sends bags, best effort: whatever is lost here the broker sees missing and orders again, so nothing is kept for long.

    patience: seconds that a bag waits for its link, once that may be free: fewer than until the broker orders it again (`TRIES`), for then
    the receiver's other address is tried.  idle: seconds after which an unused link is closed; a life never comes back, so links to the
    dead go this way too.  slowest: bytes a second that a link carries at the least.  keys: our own; those of the receivers are in their
    endpoints.
    """

    def __init__(
        self, ctx: Context, host: str, keys: Keys | None = None, patience: float = 5.0, idle: float = 30.0, slowest: float = 200e3
    ) -> None:
        self._ctx, self._host, self._keys = ctx, host, keys
        self._patience, self._idle, self._slowest = patience, idle, slowest
        self._links: dict[str, Link] = {}
        self._cut: set[str] = set()  # addresses that gave no link: another of the same receiver goes first

    def send(self, now: float, life: str, to: tuple[Endpoint, ...], header: Header, frame: Frame) -> bool:
        """PUSH it to that life, now or as soon as its link is up.  False: it has no address that we could reach."""
        link = self._links.get(life)
        if link is not None and link.to != to:
            self._close(life)
            link = None
        if link is None:
            while len(self._links) >= MOST:
                self._close(min(self._links, key=lambda other: self._links[other].busy))
            try:
                link = self._linked(now, to)
            except (zmq.ZMQError, LookupError) as error:
                logger.warning("no way to %s: %s", life or "the coordinator", error, extra={"job": header.job})
                return False
            self._links[life] = link
        link.busy = max(link.busy, now)
        place = header.job, {"preview": header.stage, "checkpoint": "checkpoint", "probe": "probe"}.get(header.kind, "")
        link.pending.pop(place, None)
        link.pending[place] = (header, frame, now)
        self._flush(now, link)
        return True

    @property
    def waiting(self) -> bool:
        """Is there a bag whose link did not take it yet?"""
        return any(link.pending for link in self._links.values())

    def register(self, poller: zmq.Poller) -> None:
        """To be polled; then `flush`."""
        for link in self._links.values():
            link.line.register(poller, zmq.POLLOUT if link.pending else 0)

    def wakeup(self) -> float:
        """When `flush` has something to do, if no link has; infinity: never."""
        return min((due for link in self._links.values() if (due := link.line.wakeup()) is not None), default=inf)

    def flush(self, now: float, ready: Container[object] | None = None) -> None:
        """Send what can be sent; give up what has waited too long, and its link, which may be dead without a sign of it.

        ready: what a poll of what was registered has found; None: there was none.
        """
        for life, link in list(self._links.items()):
            try:
                link.line.tend(now, ready)
            except zmq.ZMQError as error:
                logger.warning("no way to %s: %s", life or "the coordinator", error)
            if not link.pending and now - link.busy <= self._idle:
                continue
            self._flush(now, link)
            late = [place for place, (_, _, since) in link.pending.items() if max(since, link.busy) + self._patience <= now]
            for job, _ in late:
                why = f": {link.line.trouble}" if link.line.trouble else ""
                logger.info("no link to %s in %.0f s%s", life or "the coordinator", self._patience, why, extra={"job": job})
            if late:
                self._cut = {link.url, *(self._cut if len(self._cut) < MOST else ())}
            if late or (not link.pending and now - link.busy > self._idle):
                self._close(life)

    def close(self) -> None:
        for life in list(self._links):
            self._close(life)

    def _linked(self, now: float, to: tuple[Endpoint, ...]) -> Link:
        """ZMQError, LookupError: there is no way."""
        try:
            end = sockets.choose((e for e in to if e.url not in self._cut), self._host)
        except LookupError:  # only those that failed once lead there: they may be well again
            end = sockets.choose(to, self._host)
        line = Line(partial(sockets.outlet, self._ctx, end.url, self._keys, end.key), SOONEST, LATEST)
        link = Link(line, to, end.url, now, {})
        link.line.dial()
        return link

    def _flush(self, now: float, link: Link) -> None:
        for place, (header, frame, _) in list(link.pending.items()):
            if link.line.socket is None:
                return
            try:
                link.line.socket.send_multipart([HEADER.encode(header), frame], zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            del link.pending[place]
            link.busy = max(link.busy, now) + len(frame) / self._slowest

    def _close(self, life: str) -> None:
        self._links.pop(life).line.close()

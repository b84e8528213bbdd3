"""The control link of a worker, or of its parent, to the coordinator: a DEALER that comes back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container

import zmq

from ifmesh import credentials, sockets
from ifmesh.config import Config
from ifmesh.identity import Identity
from ifmesh.line import Line
from ifmesh.log import logger
from ifmesh.sockets import Context, Socket, Witness

BACKLOG = 256
SOONEST, LATEST = 0.2, 5.0
"""Seconds between which a link that was refused is tried again."""


class Uplink:
    """What cannot leave yet waits here, in order; beyond the backlog the oldest goes: the next Beat says it all again.

    name: the routing id for each dial, by its number from 0 on.
    """

    def __init__(self, ctx: Context, config: Config, me: Identity | None, name: Callable[[int], bytes]) -> None:
        self._ctx, self._config, self._me, self._name = ctx, config, me, name
        self._dials = 0
        self._pending: deque[bytes] = deque(maxlen=BACKLOG)
        self._line = Line(self._made, SOONEST, LATEST)
        self._url = self._trouble = ""

    def dial(self) -> None:
        """Connect, anew if need be: the address is asked for again.  Nothing happens while there is none."""
        if self._line.socket is not None:
            self.hang_up()
            self._pending.clear()  # said on a link that was dead: old by now
        self._url = credentials.control(self._config, self._me)
        if self._url.endswith(":0"):  # "any port", and the coordinator has not said yet which
            return
        try:
            self._line.dial()
        except zmq.ZMQError as error:
            logger.warning("cannot dial %s: %s", self._url, error)

    @property
    def up(self) -> bool:
        """Is there a socket?  If not: `dial`, soon: the coordinator is about to write down where it listens."""
        return self._line.socket is not None

    @property
    def socket(self) -> Socket | None:
        """To be read when it was polled."""
        return self._line.socket

    def register(self, poller: zmq.Poller) -> None:
        """To be polled; then `tend`."""
        self._line.register(poller, zmq.POLLIN | (zmq.POLLOUT if self._pending else 0))

    def wakeup(self) -> float:
        """When `tend` has something to do, at the latest (monotonic)."""
        due = self._line.wakeup()
        return min(time.monotonic() + (1.0 if self.up else 0.2), float("inf") if due is None else due)

    def tend(self, ready: Container[object] | None = None) -> None:
        """Dial where it has to be, send what waits.  ready: what a poll of what was registered has found; None: there was none."""
        if not self.up:
            self.dial()
        try:
            self._line.tend(time.monotonic(), ready)
        except zmq.ZMQError as error:
            logger.warning("cannot dial %s: %s", self._url, error)
        if self._line.trouble != self._trouble:
            self._trouble = self._line.trouble
            if self._trouble:
                logger.warning("%s: %s; trying again", self._url, self._trouble)
        self._flush()

    def send(self, frame: bytes) -> None:
        self._pending.append(frame)
        self._flush()

    def received(self, most: int = 256) -> list[list[bytes]]:
        """What has come, message by message, at most so many."""
        came: list[list[bytes]] = []
        while (socket := self._line.socket) is not None and len(came) < most:
            try:
                came.append([part.bytes for part in sockets.received(socket, 1)])
            except zmq.Again:
                break
        return came

    def hang_up(self) -> None:
        """Close; what zmq has taken still leaves within the socket's own linger."""
        self._line.close()

    def _flush(self) -> None:
        while (socket := self._line.socket) is not None and self._pending:
            try:
                socket.send(self._pending[0], zmq.DONTWAIT)
            except zmq.Again:
                return
            self._pending.popleft()

    def _made(self, witness: Witness) -> Socket:
        keys, server = (None, "") if self._me is None else (self._me.keys, self._me.server)
        name = self._name(self._dials)
        self._dials += 1
        return sockets.control_client(self._ctx, self._url, name, keys, server, witness)

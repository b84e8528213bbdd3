"""The control link of a worker, or of its parent, to the coordinator: a DEALER that can be made anew."""

from __future__ import annotations

from collections import deque

import zmq

from ifmesh import sockets
from ifmesh.config import Config
from ifmesh.log import logger

BACKLOG = 256


class Uplink:
    """What cannot leave yet waits here, in order; beyond the backlog the oldest goes: the next Beat says it all again."""

    def __init__(self, ctx: zmq.Context[zmq.Socket[bytes]], config: Config, routing_id: bytes) -> None:
        self._ctx, self._config, self._id = ctx, config, routing_id
        self._pending: deque[bytes] = deque(maxlen=BACKLOG)
        self.socket: zmq.Socket[bytes] | None = None

    def dial(self) -> None:
        """Connect, anew if need be: the address is asked for again.  Nothing happens while there is none."""
        if self.socket is not None:
            self.hang_up()
            self._pending.clear()  # said on a link that was dead: old by now
        url = self._config.control()
        if url.endswith(":0"):  # "any port", and the coordinator has not said yet which
            return
        try:
            self.socket = sockets.control_client(self._ctx, url, self._id)
        except zmq.ZMQError as error:
            logger.warning("cannot dial %s: %s", url, error)

    @property
    def waiting(self) -> bool:
        """Poll the socket for POLLOUT; then `flush`."""
        return bool(self._pending)

    def send(self, frame: bytes) -> None:
        self._pending.append(frame)
        self.flush()

    def flush(self) -> None:
        while self.socket is not None and self._pending:
            try:
                self.socket.send(self._pending[0], zmq.DONTWAIT)
            except zmq.Again:
                return
            self._pending.popleft()

    def received(self, most: int = 256) -> list[list[bytes]]:
        """What has come, message by message, at most so many."""
        came: list[list[bytes]] = []
        while self.socket is not None and len(came) < most:
            try:
                came.append(self.socket.recv_multipart(zmq.DONTWAIT))
            except zmq.Again:
                break
        return came

    def hang_up(self) -> None:
        """Close; what zmq has taken still leaves within the socket's own linger."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None

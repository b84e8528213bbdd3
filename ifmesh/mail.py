"""What the coordinator says over its ROUTER: each message through its door, and pictures only to those who read."""

from __future__ import annotations

from typing import Any

import zmq

from ifmesh.protocol import ToClient, ToParent, ToWorker
from ifmesh.wire import TO_CLIENT, TO_PARENT, TO_WORKER, Door

Message = ToClient | ToWorker | ToParent

RESULTS = 4  # pictures of up to 64 MiB that may wait for one client to read them ...
PREVIEWS = 2  # ... and while so many do, it gets no early ones


class Mail:
    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._under_way: dict[bytes, list[zmq.MessageTracker]] = {}  # frames that libzmq still holds, by client

    def send(self, peer: bytes, message: Message, payload: bytes | None = None) -> bool:
        """False: it cannot be reached, or has not read for so long that its pipe is full.  Garbled: the message cannot be said."""
        parts: list[bytes | zmq.Frame] = [peer, _encode(message)]
        if payload is not None:
            frame = zmq.Frame(payload, track=True, copy=False)  # not copied however small: else nobody knows when it has left
            parts.append(frame)
        try:
            self._socket.send_multipart(parts, zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            return False
        if payload is not None and frame.tracker is not None:
            self._under_way.setdefault(peer, []).append(frame.tracker)
        return True

    def room(self, peer: bytes, most: int) -> bool:
        """Are fewer than so many pictures still on their way to this client?"""
        self._under_way = {who: left for who, all_ in self._under_way.items() if (left := [t for t in all_ if not t.done])}
        return len(self._under_way.get(peer, ())) < most


def _encode(message: Message) -> bytes:
    """Through the door that this kind of message goes through."""
    door: Door[Any] = TO_CLIENT if isinstance(message, ToClient) else TO_WORKER if isinstance(message, ToWorker) else TO_PARENT
    return door.encode(message)

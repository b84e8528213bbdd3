"""What the coordinator says over its ROUTER: each message through its door, and pictures only to those who read."""

from __future__ import annotations

from typing import Any

import zmq

from ifmesh.protocol import ToClient, ToParent, ToWorker
from ifmesh.wire import TO_CLIENT, TO_PARENT, TO_WORKER, Door

Message = ToClient | ToWorker | ToParent

RESULTS = 4  # pictures of up to 64 MiB that may wait for one client to read them ...
PREVIEWS = 2  # ... and while so many do, it gets no early ones
LARGE = 8 << 10  # bytes of a message that counts like a picture: a thousand smaller ones may wait for one client
UNREAD = 256 << 20  # bytes that may wait for all clients of one key together
_LAST, _MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)  # as numbers: to combine them each time costs more than to send


class Mail:
    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._under_way: dict[bytes, list[tuple[zmq.MessageTracker, int]]] = {}  # frames that libzmq still holds, by client; their bytes

    def send(self, peer: bytes, message: Message, payload: bytes | memoryview | None = None) -> bool:
        """False: it cannot be reached, or has not read for so long that its pipe is full.  Garbled: the message cannot be said.

        A large one is not said to who has not read the last few: it asks again, or is told again.
        """
        said = _encode(message)
        parts: list[bytes | zmq.Frame] = [peer, said]
        if payload is None and len(said) > LARGE:
            if not self.room(peer, RESULTS):
                return True
            parts, payload = [peer], said
        if payload is not None:
            frame = zmq.Frame(payload, track=True, copy=False)  # not copied however small: else nobody knows when it has left
            parts.append(frame)
        try:
            for part in parts[:-1]:
                self._socket.send(part, _MORE)
            self._socket.send(parts[-1], _LAST)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            return False
        if payload is not None and frame.tracker is not None:
            self._under_way.setdefault(peer, []).append((frame.tracker, len(payload)))
        return True

    def room(self, peer: bytes, most: int) -> bool:
        """Are fewer than so many pictures still on their way to this client, and not too many to all who have its key?"""
        self._under_way = {who: left for who, all_ in self._under_way.items() if (left := [one for one in all_ if not one[0].done])}
        unread = sum(size for who, all_ in self._under_way.items() if _key(who) == _key(peer) for _, size in all_)
        return len(self._under_way.get(peer, ())) < most and unread < UNREAD


def _key(peer: bytes) -> bytes:
    """The tag of its key, which its routing id begins with (`roles.tag`); in a mesh without keys all are one."""
    return peer[:16] if peer[16:17] == b"." else b""


def _encode(message: Message) -> bytes:
    """Through the door that this kind of message goes through."""
    door: Door[Any] = TO_CLIENT if isinstance(message, ToClient) else TO_WORKER if isinstance(message, ToWorker) else TO_PARENT
    return door.encode(message)

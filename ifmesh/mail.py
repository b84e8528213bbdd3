"""What the coordinator says over its ROUTER: each message through its door, and pictures only to those who read.

Every message wakes a process or two, which costs it more than to read ten.  So what nobody waits for is said together with what comes next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zmq

from ifmesh.protocol import Progress, Queued, Release, Started, ToClient, ToParent, ToWorker
from ifmesh.wire import TO_CLIENT, TO_PARENT, TO_WORKER, Door

Message = ToClient | ToWorker | ToParent

RESULTS = 4  # pictures of up to 64 MiB that may wait for one client to read them ...
PREVIEWS = 2  # ... and while so many do, it gets no early ones
LARGE = 8 << 10  # bytes of a message that counts like a picture: a thousand smaller ones may wait for one client
MOMENT = 0.02  # seconds that one of NEWS waits for others to the same peer
NEWS = Release | Queued | Started | Progress
UNREAD = 256 << 20  # bytes that may wait for all clients of one key together
_LAST, _MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)  # as numbers: to combine them each time costs more than to send


class Mail:
    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._under_way: dict[bytes, list[tuple[zmq.MessageTracker, int]]] = {}  # frames that libzmq still holds, by client; their bytes
        self._news: dict[bytes, list[bytes]] = {}  # by peer: what waits, in its order
        self.due: float | None = None
        """When to `flush`, at the latest; None: nothing waits."""

    def later(self, now: float, peer: bytes, message: NEWS) -> None:
        """Before what is sent to this peer next, or in a moment.  Garbled: the message cannot be said."""
        self._news.setdefault(peer, []).append(_encode(message))
        if self.due is None:
            self.due = now + MOMENT

    def flush(self) -> list[bytes]:
        """Say what waits.  Those who cannot be reached."""
        self.due = None
        return [peer for peer in list(self._news) if not self._said(peer, [])]

    def send(self, peer: bytes, message: Message, payload: bytes | memoryview | None = None) -> bool:
        """False: it cannot be reached, or has not read for so long that its pipe is full.  Garbled: the message cannot be said.

        A large one is not said to who has not read the last few: it asks again, or is told again.
        """
        said = _encode(message)
        parts: list[bytes | zmq.Frame] = [said]
        if payload is None and len(said) > LARGE:
            if not self.room(peer, RESULTS):
                return True
            parts, payload = [], said
        if payload is not None:
            frame = zmq.Frame(payload, track=True, copy=False)  # not copied however small: else nobody knows when it has left
            parts.append(frame)
        if not self._said(peer, parts):
            return False
        if payload is not None and frame.tracker is not None:
            self._under_way.setdefault(peer, []).append((frame.tracker, len(payload)))
        return True

    def room(self, peer: bytes, most: int) -> bool:
        """Are fewer than so many pictures still on their way to this client, and not too many to all who have its key?"""
        self._under_way = {who: left for who, all_ in self._under_way.items() if (left := [one for one in all_ if not one[0].done])}
        unread = sum(size for who, all_ in self._under_way.items() if key(who) == key(peer) for _, size in all_)
        return len(self._under_way.get(peer, ())) < most and unread < UNREAD

    def _said(self, peer: bytes, parts: Sequence[bytes | zmq.Frame]) -> bool:
        """What has waited, then this message, if there is one."""
        waited: list[Sequence[bytes | zmq.Frame]] = [(said,) for said in self._news.pop(peer, ())]
        try:
            for message in [*waited, parts] if parts else waited:
                for part in (peer, *message[:-1]):
                    self._socket.send(part, _MORE)
                self._socket.send(message[-1], _LAST)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            return False
        return True


def key(peer: bytes) -> bytes:
    """Whose client that is: the tag of its key, which its routing id begins with (`roles.tag`); in a mesh without keys all are one."""
    return peer[:16] if peer[16:17] == b"." else b""


def _encode(message: Message) -> bytes:
    """Through the door that this kind of message goes through."""
    door: Door[Any] = TO_CLIENT if isinstance(message, ToClient) else TO_WORKER if isinstance(message, ToWorker) else TO_PARENT
    return door.encode(message)

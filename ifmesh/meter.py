"""Who sends without end.  A message reaches us when its last part is here, and libzmq bounds the bytes of a part, and how many messages
wait, but not how many parts a message has: one that never ends fills the memory (measured: 110 MB/s by parts of one byte).

So the kernel is asked how much has come over each connection since the last message from it, and who has sent more than can be under
way is hung up on: what it had sent so far is freed with the connection, and nobody else notices.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress

import zmq

from ifmesh.log import logger

OFTEN = 0.5
"""Seconds between two looks."""
_RECEIVED = 128  # where tcpi_bytes_received is in Linux's struct tcp_info (8 bytes)
_COOKIE = 57  # SO_COOKIE: no two connections have the same, unlike descriptors


class Meter:
    """most: by local port, bytes that may come over one connection without a whole message.

    Connections within a host by files are nobody's but our own, and not looked at.
    """

    def __init__(self, most: Mapping[int, int]) -> None:
        self._most = most
        self._looked = float("-inf")
        self._heard: set[int] = set()  # descriptors by which messages have come since the last look
        self._counts: dict[bytes, int] = {}  # by cookie: bytes that had come when a message was heard last
        self.cut = 0
        """How many were hung up on."""

    def heard(self, part: zmq.Frame) -> None:
        """A message has come; this is of it."""
        with suppress(zmq.ZMQError):
            fd = part.get(zmq.SRCFD)
            if isinstance(fd, int):
                self._heard.add(fd)

    def look(self, now: float) -> bool:
        """True: somebody was hung up on."""
        if now - self._looked < OFTEN:
            return False
        self._looked = now
        heard, self._heard = self._heard, set()
        before, self._counts = self._counts, {}
        cut = self.cut
        for fd in _descriptors():
            with suppress(OSError, struct.error):
                self._judge(fd, fd in heard, before)
        return self.cut > cut

    def _judge(self, fd: int, heard: bool, before: Mapping[bytes, int]) -> None:
        """OSError: it is no such connection, or is closed by now."""
        with _same(fd) as same:  # whatever becomes of fd, this stays what it is
            if same.family not in (socket.AF_INET, socket.AF_INET6) or same.type != socket.SOCK_STREAM:
                return
            most = self._most.get(same.getsockname()[1])
            if most is None:
                return
            who = same.getpeername()[0]
            came = struct.unpack_from("=Q", same.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), _RECEIVED)[0]
            cookie = same.getsockopt(socket.SOL_SOCKET, _COOKIE, 8)
            self._counts[cookie] = came if heard else before.get(cookie, 0)
            if came - self._counts[cookie] > most:
                same.shutdown(socket.SHUT_RDWR)  # libzmq takes it for the end of the connection
                self.cut += 1
                if self.cut <= 10 or self.cut % 1000 == 0:
                    logger.warning("hung up on %s (%d so far): a message of more than %d bytes without end", who, self.cut, most)


def _same(fd: int) -> socket.socket:
    copy = os.dup(fd)
    try:
        return socket.socket(fileno=copy)
    except BaseException:  # it is no socket
        os.close(copy)
        raise


def _descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # none left to look with, or another system
        return []

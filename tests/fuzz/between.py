"""Somebody on the wire between a client with good keys and the mesh: listens, or spoils what goes by."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from tests.fuzz.strangers import Overheard


class Between:
    """One connection to `host:port`, by way of `url`.  bend: what becomes of the number-th part that the client sends, as it came."""

    def __init__(self, port: int, bend: Callable[[int, bytes], bytes] = lambda _, part: part, host: str = "127.0.0.1") -> None:
        self._there, self._bend = (host, port), bend
        self._door = socket.create_server(("127.0.0.1", 0))
        self._said = bytearray()
        self._ends: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.url = f"tcp://127.0.0.1:{self._door.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._door, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._thread.join()

    def overheard(self) -> Overheard:
        """The greeting, and each frame behind it."""
        parts, rest = [bytes(self._said[:64])], bytes(self._said[64:])
        while len(rest) > 9:
            long = rest[0] & 2
            end = 9 + int.from_bytes(rest[1:9], "big") if long else 2 + rest[1]
            parts.append(rest[:end])
            rest = rest[end:]
        return Overheard(tuple(parts))

    def _serve(self) -> None:
        with suppress(OSError):
            client, _ = self._door.accept()
            self._ends.append(client)
            server = socket.create_connection(self._there)
            self._ends.append(server)
            back = threading.Thread(target=_carried, args=(server, client, lambda part: part), daemon=True)
            back.start()
            number = 0

            def bent(part: bytes) -> bytes:
                nonlocal number
                number += 1
                self._said += part
                return self._bend(number, part)

            _carried(client, server, bent)
            back.join()


def _carried(source: socket.socket, target: socket.socket, through: Callable[[bytes], bytes]) -> None:
    with suppress(OSError):
        while part := source.recv(65536):
            target.sendall(through(part))
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

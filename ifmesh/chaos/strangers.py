"""Bad bytes: what comes from whoever has no business here, and from an own client that has lost its mind."""

from __future__ import annotations

import socket
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import zmq

from ifmesh import bags, sockets
from ifmesh.identity import Identity, Keys, generate, tag
from ifmesh.protocol import Beat, Bye, Done, Exited, Fetch, Header, Hi, Inspect, Step, Submit, ToCoordinator, Watch
from ifmesh.request import Request
from ifmesh.sockets import Context
from ifmesh.wire import HEADER, TO_COORDINATOR

FRAMES = 40
OPENINGS = (
    b"GET / HTTP/1.1\r\nHost: mesh\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL",
    b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL" + bytes(16) + b"\x01" + bytes(31) + b"\x02\xff" * 8,
    b"\x01\x00",
    b"",
)


@dataclass(slots=True)
class Strangers:
    """control: host and port of the coordinator.  me: an operator of the mesh, whose keys the insider has; None: nobody has keys."""

    control: tuple[str, int]
    me: Identity | None
    ctx: Context = field(default_factory=sockets.context)

    def throw(self, how: str, number: int, inlets: Sequence[Path], lives: Sequence[str]) -> int:
        """One fit of it; how many frames or connections it was, that found somebody.  inlets: the socket files of the mesh; lives: of its
        workers."""
        random = Random(number)
        match how:
            case "raw":
                return self._raw(random)
            case "inlet":
                return self._into(random, inlets)
            case _:
                return self._frames(random, how, lives)

    def close(self) -> None:
        self.ctx.destroy(linger=0)

    def _raw(self, random: Random) -> int:
        """Connections that are no ZeroMQ."""
        for _ in range(8):
            with suppress(OSError), socket.create_connection(self.control, timeout=1) as made:
                made.sendall(random.choice(OPENINGS) + random.randbytes(random.randrange(0, 4096)))
        return 8

    def _frames(self, random: Random, how: str, lives: Sequence[str]) -> int:
        """Messages to the coordinator: noise, lies, and what was a message before something happened to it."""
        keys, server = self._keys(how)
        name = f"{tag(keys.public) + '.' if keys else ''}stranger.{random.randbytes(8).hex()}".encode()
        made = sockets.control_client(self.ctx, "tcp://{}:{}".format(*self.control), name, keys, server)
        try:
            return self._sent(made, [[bent(random, TO_COORDINATOR.encode(said(random, lives)))] for _ in range(FRAMES)])
        finally:
            made.close(linger=200)

    def _into(self, random: Random, inlets: Sequence[Path]) -> int:
        """Bags that nobody waits for, to any socket that takes them."""
        if not inlets:
            return 0
        keys, server = self._keys(random.choice(("null", "unknown key", "insider")))
        made = sockets.outlet(self.ctx, f"ipc://{random.choice(inlets)}", keys, server)
        try:
            return self._sent(made, [delivery(random) for _ in range(FRAMES)])
        finally:
            made.close(linger=200)

    def _keys(self, how: str) -> tuple[Keys | None, str]:
        """With which keys one comes, and whom one expects there."""
        if self.me is None or how == "null":
            return None, ""
        return (self.me.keys if how == "insider" else generate()), self.me.server

    @staticmethod
    def _sent(made: zmq.Socket[bytes], messages: Sequence[Sequence[bytes]]) -> int:
        for number, message in enumerate(messages):
            if not made.poll(300, zmq.POLLOUT):  # not let in, or nobody there
                return number
            with suppress(zmq.ZMQError):
                made.send_multipart(message, zmq.DONTWAIT)
        return len(messages)


def said(random: Random, lives: Sequence[str]) -> ToCoordinator:
    """A message; of a worker's, a lie."""
    job, token = f"stranger-{random.getrandbits(32):x}", (1, random.getrandbits(16))
    life = random.choice((*lives, f"stage_one-0.{random.getrandbits(48):012x}"))
    return random.choice(
        (
            Hi(),
            Watch(job),
            Fetch(job),
            Inspect(random.getrandbits(20)),
            Submit(job, Request("a stranger", 2**63 + 5)),
            Step(life, job, token, 1, 5),
            Done(life, job, token, "0" * 32, 10, 5, 0.1),
            Beat(life, random.getrandbits(30), "ready", ()),
            Bye(life),
            Exited(life, "crashed", "a stranger says so"),
        )
    )


def delivery(random: Random) -> list[bytes]:
    frame = bags.encode({})
    header = Header(random.choice(("bag", "result", "preview", "upload")), "stranger", "stage_one", (1, 1), bags.digest(frame))
    return [
        bent(random, HEADER.encode(header)),
        random.choice((frame, bent(random, frame), random.randbytes(1 << random.randrange(4, 18)))),
    ]


def bent(random: Random, frame: bytes) -> bytes:
    """The same bytes, after something happened to them."""
    match random.randrange(6):
        case 0:
            return random.randbytes(random.randrange(0, 200))
        case 1:
            return frame[: random.randrange(len(frame))]
        case 2:
            return frame * random.randrange(2, 50)
        case 3:
            return zlib.compress(frame)
        case 4:
            at = random.randrange(len(frame))
            return frame[:at] + random.randbytes(1) + frame[at + 1 :]
        case _:
            return frame

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
from ifmesh.protocol import Done, Fetch, Header, Hi, Inspect, Step, Submit, ToCoordinator, Watch
from ifmesh.request import Request
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
    """control: host and port of the coordinator."""

    control: tuple[str, int]
    ctx: zmq.Context[zmq.Socket[bytes]] = field(default_factory=zmq.Context)

    def throw(self, how: str, number: int, inlets: Sequence[Path]) -> int:
        """One fit of it; how many frames or connections it was.  inlets: the socket files of the mesh."""
        random = Random(number)
        match how:
            case "raw":
                return self._raw(random)
            case "inlet":
                return self._into(random, inlets)
            case _:
                return self._frames(random, unknown=how == "unknown key")

    def close(self) -> None:
        self.ctx.destroy(linger=0)

    def _raw(self, random: Random) -> int:
        """Connections that are no ZeroMQ."""
        for _ in range(8):
            with suppress(OSError), socket.create_connection(self.control, timeout=1) as made:
                made.sendall(random.choice(OPENINGS) + random.randbytes(random.randrange(0, 4096)))
        return 8

    def _frames(self, random: Random, unknown: bool) -> int:
        """Messages to the coordinator: noise, and what was a message before something happened to it."""
        made = sockets.control_client(self.ctx, "tcp://{}:{}".format(*self.control), b"stranger." + random.randbytes(8).hex().encode())
        try:
            if unknown:
                made.disconnect("tcp://{}:{}".format(*self.control))
                made.curve_publickey, made.curve_secretkey = zmq.curve_keypair()
                made.curve_serverkey = zmq.curve_keypair()[0]
                made.connect("tcp://{}:{}".format(*self.control))
            return self._sent(made, [[bent(random, TO_COORDINATOR.encode(said(random)))] for _ in range(FRAMES)])
        finally:
            made.close(linger=200)

    def _into(self, random: Random, inlets: Sequence[Path]) -> int:
        """Bags that nobody waits for, to any socket that takes them."""
        if not inlets:
            return 0
        made = self.ctx.socket(zmq.PUSH)
        made.connect(f"ipc://{random.choice(inlets)}")
        try:
            return self._sent(made, [delivery(random) for _ in range(FRAMES)])
        finally:
            made.close(linger=200)

    @staticmethod
    def _sent(made: zmq.Socket[bytes], messages: Sequence[Sequence[bytes]]) -> int:
        for number, message in enumerate(messages):
            if not made.poll(300, zmq.POLLOUT):  # not let in, or nobody there
                return number
            with suppress(zmq.ZMQError):
                made.send_multipart(message, zmq.DONTWAIT)
        return len(messages)


def said(random: Random) -> ToCoordinator:
    """A message; of a worker's, one that nobody granted."""
    job, life, token = f"stranger-{random.getrandbits(32):x}", f"stage_one-0.{random.getrandbits(48):012x}", (1, random.getrandbits(16))
    return random.choice(
        (
            Hi(),
            Watch(job),
            Fetch(job),
            Inspect(random.getrandbits(20)),
            Submit(job, Request("a stranger", 2**63 + 5)),
            Step(life, job, token, 1, 5),
            Done(life, job, token, "0" * 32, 10, 5, 0.1),
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

"""The PULL side of the data links: what has come, checked as far as it can be without knowing the job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import zmq

from ifmesh import bags
from ifmesh.log import Garbage
from ifmesh.protocol import Header
from ifmesh.wire import HEADER, Garbled

Delivery = tuple[Header, bytes]


def deliveries(inlet: zmq.Socket[bytes], kind: Literal["bag", "result"], garbage: Garbage, most: int = 16) -> Iterator[Delivery]:
    """Header and frame of each whole delivery of this kind, at most so many messages; the rest is garbage."""
    for _ in range(most):
        try:
            parts = inlet.recv_multipart(zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return
        try:
            if len(parts) != 2:
                raise Garbled(f"{len(parts)} parts instead of header and frame")
            header = HEADER.decode(parts[0].bytes)
            if header.kind != kind:
                raise Garbled(f"a {header.kind} at the door for a {kind} (job {header.job})")
            frame = parts[1].bytes
            if bags.digest(frame) != header.digest:
                raise Garbled(f"job {header.job}, {header.stage}: the digest is not that of the {len(frame)} bytes")
        except Garbled as error:
            garbage.dropped(_sender(parts[0]), error)
        else:
            yield header, frame


def _sender(part: zmq.Frame) -> str:
    """All that a PULL can know of it."""
    try:
        return f"{part.get('Peer-Address') or 'somebody'} (data)"
    except zmq.ZMQError:
        return "somebody (data)"

"""The PULL side of the data links: what has come, checked as far as it can be without knowing the job."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import zmq

from ifmesh import bags, sockets
from ifmesh.cascade import BROUGHT, MASK, SOURCE
from ifmesh.geometry import FILE_BYTES
from ifmesh.log import Garbage
from ifmesh.protocol import Header, Kind
from ifmesh.wire import HEADER, Garbled

Delivery = tuple[Header, memoryview]


def deliveries(
    inlet: zmq.Socket[bytes],
    kinds: Collection[Kind],
    garbage: Garbage,
    wanted: Callable[[Header, str], bool] = lambda *_: True,
    heard: Callable[[zmq.Frame], None] = lambda _: None,
    most: int = 16,
) -> Iterator[Delivery]:
    """Header and frame of each whole delivery of these kinds, at most so many messages; the rest is garbage.

    wanted: asked of each header, and of the public key of who sent it; what nobody waits for is dropped before its frame is looked at.
    Garbled, if that key may not send it.  heard: told of each message, whatever it is: see `meter`.
    """
    for _ in range(most):
        try:
            parts = sockets.received(inlet, 2)
        except zmq.Again:
            return
        heard(parts[0])
        try:
            if len(parts) != 2:
                raise Garbled(f"{'more' if len(parts) > 2 else len(parts)} parts instead of header and frame")
            header = HEADER.decode(parts[0].bytes)
            if header.kind not in kinds:
                raise Garbled(f"a {header.kind} at the door for a {' or '.join(kinds)} (job {header.job})")
            if not wanted(header, sockets.speaker(parts[0])):
                continue
            frame = parts[1].buffer  # not copied
            if bags.digest(frame) != header.digest:
                raise Garbled(f"job {header.job}, {header.stage}: the digest is not that of the {len(frame)} bytes")
        except Garbled as error:
            garbage.dropped(_sender(parts[0]), error)
        else:
            yield header, frame


def brought(frame: bytes | memoryview) -> tuple[str, ...]:
    """The names of what an upload holds, in the order of `cascade.BROUGHT`.  Garbled: it holds what no client brings."""
    bag = bags.decode(frame)
    names = tuple(name for name in BROUGHT if name in bag)
    if not names or len(names) < len(bag):
        raise Garbled(f"an upload of {len(bag)} tensors, of which {len(names)} are among {', '.join(BROUGHT)}")
    bags.decode(frame, (BROUGHT[name] for name in names))
    for file in (SOURCE.name, MASK.name):
        if file in bag and bag[file].shape[0] > FILE_BYTES:
            raise Garbled(f"a {file} of {bag[file].shape[0]} bytes; at most {FILE_BYTES}")
    return names


def _sender(part: zmq.Frame) -> str:
    """All that a PULL can know of it."""
    try:
        return f"{part.get('Peer-Address') or 'somebody'} (data)"
    except zmq.ZMQError:
        return "somebody (data)"

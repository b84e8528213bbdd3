"""The PUSH side of the data links: a receiver's other address is tried when one gives no link."""

from __future__ import annotations

import time
from pathlib import Path

import zmq

from ifmesh import bags, sockets
from ifmesh.outlets import Outlets
from ifmesh.protocol import Endpoint, Header


def test_a_dead_address_gives_way_to_the_next(tmp_path: Path) -> None:
    ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pull, (url,) = sockets.inlet(ctx, ["tcp://127.0.0.1:*"])
    outlets = Outlets(ctx, "here", patience=0.05)
    to = (Endpoint("here", f"ipc://{tmp_path / 'removed'}"), Endpoint("", url))
    frame = bags.encode({})
    header = Header("bag", "a", "encoder", (1, 1), bags.digest(frame))
    try:
        end = time.monotonic() + 10
        assert outlets.send(time.monotonic(), "life", to, header, frame)
        while outlets.waiting and time.monotonic() < end:  # until the first address is given up
            zmq.select([], outlets.waiting, [], 0.01)
            outlets.flush(time.monotonic())
        while not pull.poll(20) and time.monotonic() < end:  # as the broker does: it has the bag sent again
            outlets.send(time.monotonic(), "life", to, header, frame)
        assert pull.recv_multipart(zmq.DONTWAIT)[1] == frame
    finally:
        outlets.close()
        pull.close()
        ctx.term()

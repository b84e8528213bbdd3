"""The PUSH side of the data links: a receiver's other address is tried when one gives no link."""

from __future__ import annotations

import select
import time
from pathlib import Path

import zmq

from ifmesh import bags, sockets
from ifmesh.outlets import Outlets
from ifmesh.protocol import Endpoint, Header
from ifmesh.wire import HEADER


def test_an_early_picture_does_not_push_a_bag_aside(tmp_path: Path) -> None:
    """All of these are for one receiver, whose link is not up yet: of each kind, the newest."""
    ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    outlets = Outlets(ctx, "here")
    to = (Endpoint("here", f"ipc://{tmp_path / 'in'}"),)
    frame = bags.encode({})
    told = [("bag", "stage_one", 1), ("preview", "stage_one", 1), ("bag", "stage_two", 2), ("preview", "stage_one", 3)]
    told += [("preview", "stage_two", 4)]
    for kind, stage, number in told:
        header = Header(kind, "a", stage, (1, number), bags.digest(frame))  # type: ignore[arg-type]
        assert outlets.send(0.0, "life", to, header, frame)
    pull, _ = sockets.inlet(ctx, [to[0].url])
    got: list[tuple[str, str, int]] = []
    try:
        while len(got) < 3:
            poller = zmq.Poller()
            poller.register(pull, zmq.POLLIN)
            outlets.register(poller)
            assert poller.poll(20_000)
            outlets.flush(1.0)
            while pull.poll(0):
                came = HEADER.decode(pull.recv_multipart()[0])
                got.append((came.kind, came.stage, came.token[1]))
        assert got == [told[2], told[3], told[4]]
        assert not outlets.waiting
    finally:
        outlets.close()
        pull.close()
        ctx.term()


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
            pull.poll(10)
            outlets.flush(time.monotonic())
        while not pull.poll(20) and time.monotonic() < end:  # as the broker does: it has the bag sent again
            outlets.send(time.monotonic(), "life", to, header, frame)
        assert pull.recv_multipart(zmq.DONTWAIT)[1] == frame
    finally:
        outlets.close()
        pull.close()
        ctx.term()


def test_an_address_that_gave_no_link_is_tried_again_when_no_other_leads_there(tmp_path: Path) -> None:
    """As after a partition: the other address of this receiver is a file on its own host."""
    ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    port, (url,) = sockets.inlet(ctx, ["tcp://127.0.0.1:*"])
    port.close()  # nobody is there
    outlets = Outlets(ctx, "here", patience=0.05)
    to = (Endpoint("there", f"ipc://{tmp_path / 'file'}"), Endpoint("", url))
    frame = bags.encode({})
    header = Header("bag", "a", "encoder", (1, 1), bags.digest(frame))
    end = time.monotonic() + 20
    assert outlets.send(time.monotonic(), "life", to, header, frame)
    while outlets.waiting and time.monotonic() < end:  # until it is given up
        select.select([], [], [], 0.01)  # a Poller of nothing would not wait
        outlets.flush(time.monotonic())
    pull, _ = sockets.inlet(ctx, [url])
    try:
        while not pull.poll(20) and time.monotonic() < end:
            assert outlets.send(time.monotonic(), "life", to, header, frame)
            outlets.flush(time.monotonic())
        assert pull.recv_multipart(zmq.DONTWAIT)[1] == frame
    finally:
        outlets.close()
        pull.close()
        ctx.term()


def test_a_busy_link_is_waited_for_and_stays(tmp_path: Path) -> None:
    """What its pipe has taken is given the time that its bytes take; only then a bag behind it is late, and its link given up."""
    ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pull, (url,) = sockets.inlet(ctx, [f"ipc://{tmp_path}/in"])
    outlets = Outlets(ctx, "here", patience=5.0, idle=30.0, slowest=1e6)
    frame = bytes(8_000_000)
    taken = 0

    def fill(now: float) -> int:
        """So many bags fit until one has to wait for a receiver that does not read."""
        sent = 0
        while not outlets.waiting:
            header = Header("bag", f"j{sent}", "encoder", (1, 1), "")
            assert outlets.send(now, "life", (Endpoint("here", url),), header, frame)
            sent += 1
            poller = zmq.Poller()
            outlets.register(poller)
            while outlets.waiting and poller.poll(1000):
                outlets.flush(now)
                poller = zmq.Poller()
                outlets.register(poller)
        return sent - 1

    try:
        taken = fill(0.0)
        assert taken >= 2
        outlets.flush(8.0 * taken + 4.9)
        assert outlets.waiting
        got = 0
        while got <= taken:
            poller = zmq.Poller()
            poller.register(pull, zmq.POLLIN)
            outlets.register(poller)
            assert poller.poll(20_000), f"only {got} of {taken + 1} came"
            outlets.flush(8.0 * taken + 4.9)
            while pull.poll(0):
                assert pull.recv_multipart()[1] == frame
                got += 1
        more = fill(1000.0)
        outlets.flush(1000.0 + 8.0 * more + 5.0)
        assert not outlets.waiting
    finally:
        outlets.close()
        pull.close()
        ctx.term()


def test_an_idle_link_is_closed_when_its_last_bag_must_have_left(tmp_path: Path) -> None:
    ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pull, (url,) = sockets.inlet(ctx, [f"ipc://{tmp_path}/in"])
    outlets = Outlets(ctx, "here", idle=30.0, slowest=1e6)
    frame = bytes(40_000_000)  # more than the kernel holds for somebody
    try:
        assert outlets.send(0.0, "life", (Endpoint("here", url),), Header("bag", "j", "encoder", (1, 1), ""), frame)
        while outlets.waiting:
            poller = zmq.Poller()
            outlets.register(poller)
            assert poller.poll(20_000)
            outlets.flush(0.0)
        outlets.flush(69.0)
        assert pull.poll(20_000)
        assert pull.recv_multipart()[1] == frame
    finally:
        outlets.close()
        pull.close()
        ctx.term()

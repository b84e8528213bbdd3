"""The data links over real sockets: what waits for a link, what is given up, what is garbage."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
import zmq

from ifmesh import bags, sockets
from ifmesh.bell import Bell
from ifmesh.inlet import deliveries
from ifmesh.log import Garbage
from ifmesh.outlets import Outlets
from ifmesh.places import announce, remembered, socket_file, withdraw
from ifmesh.protocol import Endpoint, Header
from ifmesh.wire import HEADER

Held = Callable[[sockets.Socket], sockets.Socket]
FRAME = bags.encode({})


@pytest.fixture
def ctx() -> Iterator[sockets.Context]:
    made: sockets.Context = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def held() -> Iterator[Held]:
    """Keeps sockets until the test is over, then closes them."""
    kept: list[sockets.Socket] = []

    def hold(socket: sockets.Socket) -> sockets.Socket:
        kept.append(socket)
        return socket

    yield hold
    for socket in kept:
        socket.close()


def header(number: int, job: str = "j") -> Header:
    return Header("bag", job, "encoder", (1, number), bags.digest(FRAME))


def came(inlet: sockets.Socket, outlets: Outlets, count: int) -> list[tuple[str, int]]:
    """(job, number of its token) of so many deliveries, as they come."""
    got: list[tuple[str, int]] = []
    poller = zmq.Poller()
    while len(got) < count:
        poller.register(inlet, zmq.POLLIN)
        for waiting in outlets.waiting:
            poller.register(waiting, zmq.POLLOUT)
        assert poller.poll(20_000)
        outlets.flush(0.0)
        poller = zmq.Poller()
        got += [(h.job, h.token[1]) for h, frame in deliveries(inlet, "bag", Garbage()) if frame == FRAME]
    return got


def test_a_bag_waits_for_its_link_and_the_newest_wins(ctx: sockets.Context, held: Held, tmp_path: Path) -> None:
    url = f"ipc://{tmp_path}/in"
    outlets = Outlets(ctx, "")
    to = (Endpoint("", "tcp://127.0.0.1:9"), Endpoint("here", url))
    here = Outlets(ctx, "here")
    assert not outlets.send(0.0, "w.1", to[1:], header(1), FRAME)  # another host: it has no way there
    for number in (1, 2, 3):
        assert here.send(0.0, "w.1", to, header(number), FRAME)
    assert here.send(0.0, "w.1", to, header(1, "other"), FRAME)
    inlet = held(sockets.inlet(ctx, [url])[0])
    assert came(inlet, here, 2) == [("j", 3), ("other", 1)]
    assert here.send(0.0, "w.1", to, header(4), FRAME)
    assert came(inlet, here, 1) == [("j", 4)]
    here.close()
    outlets.close()


def test_what_waits_too_long_is_given_up_with_its_link(ctx: sockets.Context, held: Held, tmp_path: Path) -> None:
    outlets = Outlets(ctx, "here", patience=5.0, idle=30.0)
    to = (Endpoint("here", f"ipc://{tmp_path}/in"),)
    assert outlets.send(0.0, "w.1", to, header(1), FRAME)
    outlets.flush(4.9)
    assert len(outlets.waiting) == 1
    outlets.flush(5.0)
    assert outlets.waiting == []
    inlet = held(sockets.inlet(ctx, [to[0].url])[0])
    assert outlets.send(6.0, "w.1", to, header(2), FRAME)  # a new link, and nothing of the old
    assert came(inlet, outlets, 1) == [("j", 2)]
    outlets.close()


def test_garbage_is_counted_and_stops_nothing(ctx: sockets.Context, held: Held) -> None:
    inlet, (url,) = sockets.inlet(ctx, ["tcp://127.0.0.1:0"])
    push = held(sockets.outlet(ctx, url))
    held(inlet)
    bad: list[list[bytes]] = [
        [b"x"],
        [HEADER.encode(header(1))],
        [HEADER.encode(header(1)), FRAME, b""],
        [HEADER.encode(header(1)), FRAME + b"x"],
        [HEADER.encode(Header("result", "j", "guard", (1, 1), bags.digest(FRAME))), FRAME],
    ]
    garbage = Garbage()
    got = []
    for parts in (*bad, [HEADER.encode(header(7)), FRAME]):
        assert push.poll(20_000, zmq.POLLOUT)
        push.send_multipart(parts)
        assert inlet.poll(20_000)
        got += list(deliveries(inlet, "bag", garbage))
    assert [h.token for h, _ in got] == [(1, 7)]
    assert garbage.total == len(bad)


def test_garbage_without_end_is_logged_seldom(caplog: pytest.LogCaptureFixture) -> None:
    garbage = Garbage()
    for number in range(5000):
        garbage.dropped(f"sender {number % 2000}" if number > 2500 else "one", "nonsense")
    assert garbage.total == 5000
    assert len(caplog.records) < 2600


def test_a_bell_wakes_a_poll_and_tells_signals() -> None:
    bell = Bell()
    poller = zmq.Poller()
    poller.register(bell.fileno(), zmq.POLLIN)

    def ring() -> None:
        for _ in range(10_000):
            bell.ring()

    ringing = Thread(target=ring)
    ringing.start()
    assert poller.poll(20_000)
    ringing.join()
    assert bell.hear() == []
    before = signal.getsignal(signal.SIGUSR1)
    try:
        bell.answer([signal.SIGUSR1])
        signal.raise_signal(signal.SIGUSR1)
        heard: list[signal.Signals] = []
        while not heard:
            assert poller.poll(20_000)
            heard = bell.hear()
        assert heard == [signal.SIGUSR1]
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR1, before)
        bell.close()


def test_the_port_is_remembered_beyond_the_end(tmp_path: Path) -> None:
    assert remembered(tmp_path, "tcp://127.0.0.1:0") is None
    announce(tmp_path, "tcp://127.0.0.1:4321")
    withdraw(tmp_path)
    withdraw(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"port"}
    assert remembered(tmp_path, "tcp://127.0.0.1:0") == "tcp://127.0.0.1:4321"
    assert remembered(tmp_path, "tcp://127.0.0.1:7640") is None
    (tmp_path / "port").write_text("99999999")
    assert remembered(tmp_path, "tcp://127.0.0.1:0") is None


def test_socket_files_have_short_paths(tmp_path: Path) -> None:
    paths = {socket_file(tmp_path, name) for name in ("a", "b", "n/../" * 50)}
    assert len(paths) == 3
    assert all(len(str(path)) < 100 and path.parent == sockets.run_dir(tmp_path) for path in paths)
    sockets.run_dir(tmp_path).rmdir()

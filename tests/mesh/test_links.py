"""The data links over real sockets: what waits for a link, what is given up, what is garbage, what is written down."""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
import zmq

from ifmesh import bags, sockets
from ifmesh.bell import Bell
from ifmesh.geometry import FILE_BYTES
from ifmesh.inlet import brought, deliveries
from ifmesh.journal import Journal
from ifmesh.log import Garbage
from ifmesh.mail import MOMENT, PREVIEWS, Mail
from ifmesh.outlets import Outlets
from ifmesh.places import announce, remembered, socket_file, withdraw
from ifmesh.protocol import Accepted, Endpoint, Header, Kind, Preview, Progress, Release, Started
from ifmesh.stage import Tensor
from ifmesh.wire import HEADER, TO_CLIENT, Garbled
from ifmesh.writer import Landed, Stored, Unstored, Writer

Held = Callable[[sockets.Socket], sockets.Socket]
FRAME = bags.encode({})
BAGS: tuple[Kind, ...] = ("bag", "preview")


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
        outlets.register(poller)
        assert poller.poll(20_000)
        outlets.flush(0.0)
        poller = zmq.Poller()
        got += [(h.job, h.token[1]) for h, frame in deliveries(inlet, BAGS, Garbage()) if frame == FRAME]
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
    assert outlets.waiting
    outlets.flush(5.0)
    assert not outlets.waiting
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
        [HEADER.encode(Header("upload", "j", "", (0, 0), bags.digest(FRAME))), FRAME],
    ]
    garbage = Garbage()
    got = []
    for parts in (*bad, [HEADER.encode(header(7)), FRAME]):
        assert push.poll(20_000, zmq.POLLOUT)
        push.send_multipart(parts)
        assert inlet.poll(20_000)
        got += list(deliveries(inlet, BAGS, garbage))
    assert [h.token for h, _ in got] == [(1, 7)]
    assert garbage.total == len(bad)


def test_what_nobody_waits_for_is_dropped_unseen(ctx: sockets.Context, held: Held) -> None:
    """Not even the digest of its frame is looked at; that of the others is."""
    inlet, (url,) = sockets.inlet(ctx, ["tcp://127.0.0.1:0"])
    push = held(sockets.outlet(ctx, url))
    held(inlet)
    garbage = Garbage()
    got = []
    for number, frame in ((1, FRAME), (2, b"not the frame"), (3, b"not the frame"), (4, FRAME)):
        assert push.poll(20_000, zmq.POLLOUT)
        push.send_multipart([HEADER.encode(header(number)), frame])
        assert inlet.poll(20_000)
        got += list(deliveries(inlet, BAGS, garbage, lambda h, _: h.token[1] > 2))
    assert [h.token[1] for h, _ in got] == [4]
    assert garbage.total == 1


def upload(**sizes: int) -> tuple[str, bytes]:
    """An upload of these tensors of bytes, and its SHA-256."""
    frame = bags.encode({name: Tensor("U8", (size,), b"x" * size) for name, size in sizes.items()})
    return hashlib.sha256(frame).hexdigest(), frame


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ({"source": 10, "image1024": 10}, "an upload of 2 tensors, of which 1 are among source, mask, embeds, image64, image256, rng"),
        ({}, "an upload of 0 tensors"),
        ({"rng": 5055}, r"rng: \[5055\]; expected is \[5056\]"),
        ({"embeds": 10}, "embeds: U8; expected is F32, F16, BF16"),
        ({"source": 10, "mask": FILE_BYTES + 1}, f"a mask of {FILE_BYTES + 1} bytes; at most {FILE_BYTES}"),
    ],
)
def test_an_upload_of_what_nobody_brings_is_garbled(sizes: dict[str, int], why: str) -> None:
    with pytest.raises(Garbled, match=why):
        brought(upload(**sizes)[1])


def test_what_an_upload_brings() -> None:
    assert brought(upload(mask=5, rng=5056, source=FILE_BYTES)[1]) == ("source", "mask", "rng")
    with pytest.raises(Garbled):
        brought(b"no bag")


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[tuple[Writer, Bell, Journal, Garbage]]:
    bell, garbage = Bell(), Garbage()
    journal = Journal.open(tmp_path)
    made = Writer(journal, bell, garbage)
    yield made, bell, journal, garbage
    made.stop()
    journal.close()
    bell.close()


def test_uploads_are_stored_when_they_are_what_they_should_be(writer: tuple[Writer, Bell, Journal, Garbage]) -> None:
    """A false one under the right name is not in the way of the true one; and no more than a few wait in memory."""
    write, bell, journal, garbage = writer
    digest, frame = upload(source=1000)
    _, false = upload(source=1001)
    for one in (false, frame, false, frame):
        write.upload(digest, bags.digest(one), one)
    others = [upload(source=size) for size in range(1, 10)]
    for other, of in others:
        write.upload(other, bags.digest(of), of)
    assert write.busy
    assert write.storing(digest)
    assert not write.storing(others[-1][0])  # turned away
    write.start()
    stored = []
    while write.busy:
        zmq.select([bell], [], [], 20)
        bell.hear()
        stored += write.landed()
    assert stored == [Stored(name, len(of), ("source",)) for name, of in ((digest, frame), *others[:2])]
    assert garbage.total == 1
    assert journal.uploads() == {name: len(of) for name, of in ((digest, frame), *others[:2])}
    assert not write.storing(digest)
    write.upload(*others[-1][:1], bags.digest(others[-1][1]), others[-1][1])
    while write.busy:
        zmq.select([bell], [], [], 20)
        bell.hear()
        stored += write.landed()
    assert journal.load_upload(others[-1][0]) == others[-1][1]


def test_a_disk_that_fails_is_told_and_nothing_counts(
    writer: tuple[Writer, Bell, Journal, Garbage], caplog: pytest.LogCaptureFixture
) -> None:
    write, bell, journal, garbage = writer
    digest, frame = upload(source=1000)
    (journal.state / "uploads" / f"{digest}.safetensors").mkdir()
    write.upload(digest, bags.digest(frame), frame)
    write.result("job", (1, 1), frame)
    write.start()
    landed: list[Landed | Stored | Unstored] = []
    while write.busy:
        zmq.select([bell], [], [], 20)
        bell.hear()
        landed += write.landed()
    assert landed == [
        Unstored(digest, "busy", "the mesh cannot store the upload: Is a directory"),
        Landed("job", (1, 1), bags.digest(frame), len(frame)),
    ]
    assert journal.load("job") == frame
    assert garbage.total == 0


def test_an_upload_of_what_nobody_brings_is_told(writer: tuple[Writer, Bell, Journal, Garbage]) -> None:
    write, bell, journal, garbage = writer
    digest, frame = upload(rng=5055)
    write.upload(digest, bags.digest(frame), frame)
    write.start()
    zmq.select([bell], [], [], 20)
    assert write.landed() == [Unstored(digest, "invalid", "rng: [5055]; expected is [5056], one size for each name")]
    assert journal.uploads() == {}
    assert garbage.total == 0


@pytest.mark.parametrize("size", [100, 3_000_000])
def test_a_client_that_does_not_read_gets_only_a_few_pictures(ctx: sockets.Context, held: Held, size: int) -> None:
    """Small ones are counted as well as large ones; when it reads, there is room again."""
    router, url = sockets.control_server(ctx, "tcp://127.0.0.1:0")
    held(router)
    stuck = ctx.socket(zmq.DEALER)
    held(stuck)
    stuck.setsockopt(zmq.RCVHWM, 1)
    stuck.setsockopt(zmq.RCVBUF, 4096)
    stuck.setsockopt(zmq.ROUTING_ID, b"stuck")
    stuck.connect(url)
    reader = held(sockets.control_client(ctx, url, b"reader"))
    for one in (stuck, reader):
        assert one.poll(20_000, zmq.POLLOUT)
        one.send(b"here")
        router.recv_multipart()
    mail = Mail(router)
    sent = 0
    while mail.room(b"stuck", PREVIEWS):
        assert mail.send(b"stuck", Preview("j", "stage_one"), bytes(size))
        sent += 1
        assert sent * (size + 1000) < 100_000_000, "it is sent more and more"
    assert mail.send(b"reader", Accepted("j"))
    assert mail.room(b"reader", PREVIEWS)
    assert mail.send(b"reader", Preview("j", "stage_one"), bytes(size))
    assert reader.poll(20_000)
    assert TO_CLIENT.decode(reader.recv()) == Accepted("j")
    assert [len(part) for part in reader.recv_multipart()][1] == size
    for _ in range(sent):
        assert stuck.poll(20_000)
        assert len(stuck.recv_multipart()[1]) == size
    end = time.monotonic() + 20
    while not mail.room(b"stuck", PREVIEWS):
        assert time.monotonic() < end, "never room again"
    assert not mail.send(b"nobody", Accepted("j"))
    with pytest.raises(Garbled):
        mail.send(b"reader", Accepted("x" * (2 << 20)))


def test_news_wait_for_what_comes_next_or_for_their_moment(ctx: sockets.Context, held: Held) -> None:
    router, url = sockets.control_server(ctx, "tcp://127.0.0.1:0")
    held(router)
    reader = held(sockets.control_client(ctx, url, b"reader"))
    assert reader.poll(20_000, zmq.POLLOUT)
    reader.send(b"here")
    router.recv_multipart()
    mail = Mail(router)
    news = (Started("j", "encoder", "encoder-1"), Progress("j", "encoder", 1, 1))
    for one in news:
        mail.later(5.0, b"reader", one)
    assert mail.due == 5.0 + MOMENT
    assert mail.send(b"reader", Accepted("j"))
    for message in (*news, Accepted("j")):
        assert reader.poll(20_000)
        assert TO_CLIENT.decode(reader.recv()) == message
    mail.later(6.0, b"nobody", Release("j", (1, 1)))
    mail.later(7.0, b"reader", Progress("k", "encoder", 1, 1))
    assert mail.flush() == [b"nobody"]
    assert mail.due is None
    assert reader.poll(20_000)
    assert TO_CLIENT.decode(reader.recv()) == Progress("k", "encoder", 1, 1)
    assert mail.flush() == []


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

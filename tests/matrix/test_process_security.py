"""Rows 54 to 58 on real processes: keys that are revoked or come late, a door without a keeper, a flood of strangers."""

from __future__ import annotations

import resource
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from statistics import median

import psutil
import pytest
import zmq

from ifmesh import Client, Lost, authorized, identity
from ifmesh.authorized import Entry
from ifmesh.protocol import Accepted, Books
from tests.matrix.conftest import Figure
from tests.matrix.gates import Gates
from tests.matrix.plot import BRISK, SMALL, crew, right, small, under_way
from tests.mesh.conftest import Make
from tests.mesh.kit import LIMIT, Speaker
from tests.mesh.people import known, own_words, stranger, table, turned_away

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00%-20b" + bytes(32)  # ZMTP 3.0, with the mechanism
HUGE = b"\x06" + (2**63).to_bytes(8, "big")  # a command of so many bytes
OPENINGS = (
    GREETING % b"NULL" + HUGE + b"\x05READY",
    GREETING % b"CURVE" + HUGE + b"\x05HELLO",
    GREETING % b"CURVE" + b"\x04\xc8\x05HELLO\x01\x00" + bytes(193),  # a HELLO of the right size, in which nothing is right
    GREETING % b"NULL" + b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER" + b"\x00\x02{}",
    b"\xff" * 4096,
    b"GET / HTTP/1.1\r\nHost: mesh\r\n\r\n",
)
IDLE = 500


def test_row_54_the_key_of_a_worker_is_revoked_while_it_works(mesh: Make, gates: Gates, figure: Figure) -> None:
    """It is lost at once and nobody is blamed; its task begins anew on another.  Let in again, it is a worker as before."""
    one = mesh(**BRISK, **gates.settings("stage_one"))
    crew(one, "encoder-0", "guard-0")
    secret = one.invite("rented", "worker:stage_one")
    identity.write(one.folder / "rented.key", secret)
    one.start("rented", "worker", "stage_one", "--name", "rented", "--set", f"mesh.identity={one.folder / 'rented.key'}")
    request = small("gate=stage_one:here")
    with one.speaker() as fan:
        fan.submit("a", request)
        assert under_way(fan, "stage_one") == "rented"
        one.worker("stage_one")
        one.ready(fan, "stage_one-0")
        began = time.monotonic()
        assert authorized.remove(table(one), "rented") == 1
        assert under_way(fan, "stage_one") == "stage_one-0"
        figure("the key of a worker revoked -> its job runs on another", time.monotonic() - began)
        assert "rented" not in {row.service for row in fan.books().services}
        own_words(one, "coordinator", "its key was revoked")
        gates.open("here")
        right(fan, "a", request, stage_one=2)
        story = [text for _, text in fan.books("a").story]
        assert any("rented" in text and "its key was revoked" in text for text in story), story
        assert not any("held against" in text or "blame" in text for text in story), story
        authorized.add(table(one), Entry("rented", "worker:stage_one", secret.keys.public))
        one.ready(fan, "rented")


def test_row_55_keys_that_are_authorised_late(mesh: Make, figure: Figure) -> None:
    """libzmq has given the sockets of a worker and of a client up for ever: they are made anew."""
    one = mesh()
    one.coordinator()
    late, client = stranger(one, "late", "worker:encoder"), stranger(one, "nightowl")
    identity.write(one.folder / "late.key", late)
    one.start("late", "worker", "encoder", "--name", "late", "--set", f"mesh.identity={one.folder / 'late.key'}")
    own_words(one, "late", "this key is not authorised there; trying again")
    with Client(identity=identity.dumps(client), timeout=0.5) as asker, pytest.raises(Lost, match="not authorised there; this is nightowl"):
        asker.status()
    with one.speaker() as fan, Client(identity=identity.dumps(client), timeout=LIMIT) as asker:
        began = time.monotonic()
        for each in (late, client):
            authorized.add(table(one), Entry(each.name, each.role, each.keys.public))
        one.ready(fan, "late")
        figure("the key of a worker authorised -> it is ready", time.monotonic() - began)
        assert asker.status().pages


def test_row_56_the_thread_that_lets_others_in_dies(mesh: Make, figure: Figure) -> None:
    """Again and again: who is in stays and is served, nobody new comes in, and it is said; then they come by themselves."""
    one = mesh(**BRISK)
    dead = one.folder / "dead"
    one.coordinator(program=("tests.matrix.doorless", str(dead)))
    for stage in ("encoder", "guard"):
        one.worker(stage)
    with one.speaker() as fan:
        one.ready(fan, "encoder-0", "guard-0")
        dead.touch()
        one.worker("stage_one")
        own_words(one, "coordinator", "the thread that lets others in has died: starting it again", times=3)
        assert "stage_one" in fan.books().missing
        fan.submit("a", small())
        fan.until(Accepted)
        dead.unlink()
        began = time.monotonic()
        one.ready(fan, "stage_one-0")
        figure("the thread that lets others in lives again -> who waited is in", time.monotonic() - began)
        right(fan, "a", small())
        ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        turned_away(ctx, zmq.DEALER, one.config.control(), stranger(one), known(one, "operator").server)
        ctx.term()


@contextmanager
def flood(doors: list[int]) -> Iterator[None]:
    """Strangers at these ports: five hundred that say nothing, and others that say what is no ZeroMQ, or ends in the worst way."""

    def connected(number: int) -> socket.socket:
        return socket.create_connection(("127.0.0.1", doors[number % len(doors)]), LIMIT)

    over = False

    def rave() -> int:
        count = 0
        while not over:
            with suppress(OSError), connected(count // len(OPENINGS)) as made:
                made.sendall(OPENINGS[count % len(OPENINGS)])
                made.settimeout(0.05)  # it may be hung up on, or left alone
                made.recv(1 << 16)
            count += 1
        return count

    with ExitStack() as idle, ThreadPoolExecutor(2) as pool:
        for number in range(IDLE):
            idle.enter_context(connected(number))
        raving = [pool.submit(rave) for _ in range(2)]
        try:
            yield
        finally:
            over = True
        assert sum(done.result() for done in raving) >= len(OPENINGS)


def latencies(fan: Speaker, name: str, count: int) -> list[float]:
    """Seconds from Submit to Accepted, one after the other."""
    taken = []
    for n in range(count):
        began = time.monotonic()
        fan.submit(f"{name}-{n}", small(seed=n))
        fan.until(Accepted, lambda m, n=n: m.job == f"{name}-{n}")  # type: ignore[misc]
        taken.append(time.monotonic() - began)
    return taken


def test_row_57_a_flood_of_strangers(mesh: Make, figure: Figure) -> None:
    """At all doors of all processes: everybody else is served, the memory stays, and nothing of theirs is decoded."""
    one = mesh(**BRISK)
    processes = crew(one, *(f"{stage}-0" for stage in SMALL))
    ports = [int(end.url.rpartition(":")[2]) for end in one.inlets() if end.url.startswith("tcp:")]
    assert len(ports) == 1 + len(SMALL)
    control = int(one.config.control().rpartition(":")[2])
    with one.speaker() as fan:
        right(fan, "first", small())
        calm = latencies(fan, "calm", 30)
        everybody = [p for process in processes.values() for p in (psutil.Process(process.pid), *process.family)]
        before = {p.pid: p.memory_info().rss for p in everybody}
        with flood([control, *ports]):
            wild = latencies(fan, "wild", 30)
            right(fan, "last", small(seed=99))
        grown = max(p.memory_info().rss - before[p.pid] for p in everybody)
        assert grown < 50e6, f"{grown / 1e6:.0f} MB"
        for what, taken in (("beside nobody", calm), ("beside 500 idle and two raving strangers", wild)):
            figure(f"Submit -> Accepted {what}, the median", median(taken))
            figure(f"Submit -> Accepted {what}, the slowest of 30", max(taken))
    processes["coordinator"].signal(signal.SIGTERM)
    assert processes["coordinator"].code() == 0
    assert "ended, 0 frames of garbage dropped" in processes["coordinator"].log.read_text()
    for stage in SMALL:
        assert "(data)" not in processes[f"{stage}-0"].log.read_text(), "a worker has read something"


def test_row_58_strangers_take_all_descriptors(mesh: Make) -> None:
    """Of 256: nobody new comes in, the old stay, it is said, and nothing ends."""
    one = mesh()
    process = one.coordinator()
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (256, 256))
    port = int(one.config.control().rpartition(":")[2])
    with one.speaker() as fan, ExitStack() as strangers:
        assert isinstance(fan.books(), Books)
        end = time.monotonic() + LIMIT
        while "file descriptors are in use: soon" not in process.log.read_text():
            assert time.monotonic() < end
            strangers.pop_all().close()
            for _ in range(400):
                strangers.enter_context(socket.create_connection(("127.0.0.1", port), LIMIT))
            assert isinstance(fan.books(), Books)
            one.wait_for(lambda: "soon" in process.log.read_text() or psutil.Process(process.pid).num_fds() < 100)
        fan.submit("a", small())
        fan.until(Accepted)
        own_words(one, "coordinator", "newcomers are welcome again")
    with one.speaker() as new:
        assert isinstance(new.books(), Books)
    assert process.popen.poll() is None

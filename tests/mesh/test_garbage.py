"""What strangers send: on every socket, in every shape.  It is counted, logged with its sender and dropped; no job notices."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import get_args

import msgpack  # type: ignore[import-untyped]
import psutil
import pytest
import zmq

from ifmesh import bags, sockets
from ifmesh.credentials import called
from ifmesh.protocol import VERSION, Bye, Endpoint, Header, Kind, Progress
from ifmesh.request import STAGES, Request, Settings
from ifmesh.stage import Tensor
from ifmesh.wire import HEADER
from tests.mesh.conftest import Make
from tests.mesh.kit import LIMIT, Mesh, Speaker, expected, published

FOX = Request("a fox", seed=7)
LONG = replace(FOX, last_stage="stage_one", settings={"stage_one": Settings(steps=60)})
GROWTH = 15e6  # bytes
GREETING = b"\xff" + b"\0" * 8 + b"\x7f\3\0" + b"NULL".ljust(20, b"\0") + b"\0" * 32  # https://rfc.zeromq.org/spec/23/
READY = b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PUSH"
NOISE = random.Random(2).randbytes(5000)
RAW = (
    b"",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    NOISE,
    GREETING[:20],
    GREETING.replace(b"NULL", b"RSVP"),
    GREETING + NOISE,
    GREETING + READY.replace(b"PUSH", b"PULL"),
    GREETING + READY + NOISE,
    GREETING + READY + b"\x02" + (1 << 40).to_bytes(8, "big") + NOISE,  # a frame of a terabyte
    GREETING + READY + b"\x02" + b"\xff" * 8 + NOISE,
    GREETING + READY + b"\x00\xff" + NOISE[:100],  # and never the rest
    GREETING + READY + b"\x01\x01x" * 5000,  # a message whose last frame never comes
)
FRAMES = (
    b"",
    b"\0",
    NOISE[:1000],
    b"\xdf\xff\xff\xff\xff",  # msgpack: a map of four billion
    b"\x93" * 5000,
    b"\xc1",
    msgpack.packb({}),
    msgpack.packb({"v": VERSION, "is": ["Hi"]}),
    msgpack.packb({"v": VERSION, "is": "Result", "job": "j", "digest": "d"}),  # at the wrong door
    msgpack.packb({"v": VERSION, "is": "Submit", "job": "j", "request": {"prompt": 3}}),
    msgpack.packb(
        {"v": VERSION, "is": "Done", "life": "l", "job": "j", "token": [1], "digest": "", "size": -1, "steps": 0, "seconds": 0.0}
    ),
    msgpack.packb({"v": VERSION, "is": "Header", "kind": "bag", "job": "j" * 2000, "stage": "", "token": [1, 1], "digest": ""}),
)
NARROW = bags.encode({"embeds": Tensor("F16", (2, 7, 16), bytes(448)), "rng": Tensor("U8", (5056,), bytes(5056))})


def header(frame: bytes, kind: Kind = "bag", job: str = "strange", token: tuple[int, int] = (1, 10**6)) -> bytes:
    return HEADER.encode(Header(kind, job, "encoder", token, bags.digest(frame)))


def data_garbage() -> list[list[bytes]]:
    """Each a message that no PULL can use; the last ones are whole, but for nobody."""
    empty = bags.encode({})
    pairs = [[junk] for junk in FRAMES] + [[junk, junk] for junk in FRAMES] + [[header(empty), junk] for junk in FRAMES]
    pairs += [[header(empty), empty, b""], [b"x"] * 1000, [header(empty).replace(b"strange", b"\xff" * 7), empty]]
    pairs += [[header(empty, kind), empty] for kind in get_args(Kind)]
    return [*pairs, [header(NOISE), NOISE], [header(NOISE, "result"), NOISE], [header(NARROW), NARROW]]


def raw_socket(url: str) -> socket.socket:
    if url.startswith("ipc://"):
        made = socket.socket(socket.AF_UNIX)
        made.connect(url.removeprefix("ipc://"))
        return made
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), LIMIT)


def push(mesh: Mesh, end: Endpoint, *messages: list[bytes]) -> None:
    """All of these, as a process of the mesh would send them; taken when it returns."""
    with mesh.pushing(end) as out:
        for message in messages:
            assert out.poll(int(LIMIT * 1000), zmq.POLLOUT)
            out.send_multipart(message)


def peak(mesh: Mesh) -> dict[int, int]:
    """The most bytes that each process has ever had in memory, by pid."""
    pids = [one.pid for p in mesh.processes for one in (psutil.Process(p.pid), *p.family)]
    told = {pid: re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()) for pid in pids}
    return {pid: int(found[1]) * 1024 for pid, found in told.items() if found}


def files(pid: int) -> int:
    found: int = psutil.Process(pid).num_fds()
    return found


def begun(speaker: Speaker, job: str) -> None:
    """In mid-step in Stage I, for three seconds more."""
    speaker.submit(job, LONG)
    speaker.until(Progress, lambda m: (m.job, m.stage, m.step > 1) == (job, "stage_one", True))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh in which a job takes as long as one wishes: 50 ms a step of Stage I."""
    with Mesh(tmp_path_factory.mktemp("slow"), {"services.stage_one.options.step_ms": 50}) as mesh:
        mesh.all()
        with mesh.speaker() as fan:  # all links are up before anything is counted
            for last in ("stage_one", "upscaler"):
                fan.submit(last, replace(FOX, last_stage=last))
                fan.finished(last)
                fan.result(last)  # with the first, pyzmq opens files of its own
        yield mesh


def test_strangers_who_do_not_speak_zmtp(slow: Mesh) -> None:
    """Connections that say nothing, nonsense, or half of something, and then more of them: a job under way does not notice."""
    with slow.speaker() as fan, ExitStack() as open_ends:
        begun(fan, "strangers")
        before = peak(slow)
        opened = {pid: files(pid) for pid in before}
        addresses = [*(end.url for end in slow.inlets()), slow.config.control()]
        assert len(addresses) == 2 * (1 + len(STAGES)) + 1
        for url in addresses:
            for said in RAW:
                stranger = open_ends.enter_context(raw_socket(url))
                with suppress(ConnectionError):  # it has heard enough
                    stranger.sendall(said)
        assert fan.finished("strangers").reproducible
        assert published(fan.result("strangers")) == expected(LONG)
        assert {row.state for row in fan.books().services} == {"ready"}
        # Who does not shake hands is hung up on.  Three at each address may stay: what begins without 0xff speaks ZMTP 1.0 to libzmq.
        slow.wait_for(lambda: all(files(pid) <= count + 3 * 3 for pid, count in opened.items()))
    slow.wait_for(lambda: all(files(pid) <= count for pid, count in opened.items()))
    assert max(now - before[pid] for pid, now in peak(slow).items()) < GROWTH


def test_garbage_in_whole_frames(slow: Mesh) -> None:
    """On every PULL and on the ROUTER, a thousand times; too large as well.  It is counted, and logged with who sent it."""
    with slow.speaker() as fan, slow.speaker() as rude:
        begun(fan, "frames")
        before = peak(slow)
        flood = data_garbage() * 10
        for end in slow.inlets():
            push(slow, end, *flood)
            push(slow, end, [bytes(sockets.DATA_LIMIT + 1)])  # nobody takes it: the connection is cut at the header
        for junk in FRAMES * 10:
            rude.say(junk)
            rude.say(junk, junk)
        for name in STAGES:  # in the name of others
            rude.send(Bye(f"{name}-0"))
        fan.finished("frames")
        assert published(fan.result("frames")) == expected(LONG)
        assert {row.state for row in fan.books().services} == {"ready"}
    with slow.speaker() as large:
        large.say(bytes(sockets.CONTROL_LIMIT + 1))
    with slow.speaker() as fan:
        fan.submit("after", FOX)
        fan.finished("after")
        assert published(fan.result("after")) == expected(FOX)
    assert max(now - before[pid] for pid, now in peak(slow).items()) < GROWTH
    over_tcp = "dropped what 127.0.0.1 (data) sent (10 so far)"
    over_ipc = f":{os.getpid()} (data) sent (10 so far)"  # the kernel knows the pid
    slow.wait_for(lambda: all(said in process.log.read_text() for said in (over_tcp, over_ipc) for process in slow.processes))
    assert f"dropped what b'{called(slow.identity(), 'kit-')}" in slow.processes[0].log.read_text()
    assert not [process.log for process in slow.processes if "Traceback" in process.log.read_text()]


def test_a_bag_of_the_wrong_shape_under_the_right_token(mesh: Make) -> None:
    """Somebody knows what will be granted, and is faster than the stage before: the bag is thrown away, and asked for again."""
    one = mesh()
    one.all(("encoder", "stage_one", "guard"))
    with one.speaker() as fan:
        for end in one.inlets():
            push(one, end, *([header(NARROW, job="target", token=(1, number)), NARROW] for number in (1, 2, 3)), [b"the last"])
        for process in one.processes:  # what came before the last frame has been read when that one is complained of, by ipc and tcp
            one.wait_for(lambda log=process.log: log.read_text().count("1 parts instead of") == 2)  # type: ignore[misc]
        fan.submit("target", replace(FOX, last_stage="stage_one"))
        assert fan.finished("target").reproducible
        assert published(fan.result("target")) == expected(replace(FOX, last_stage="stage_one"))
    for process in one.processes[1:]:
        assert "dropped what the sender of job target sent (1 so far)" in process.log.read_text()
    one.processes[0].signal(signal.SIGTERM)
    assert one.processes[0].code() == 0
    assert "ended, 8 frames of garbage dropped" in one.processes[0].log.read_text()  # 6 are bags at the door for results

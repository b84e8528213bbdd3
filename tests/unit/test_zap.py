"""The door itself: real sockets, and a ZAP thread that is asked anything, and dies."""

from __future__ import annotations

import ctypes
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest
import zmq
from zmq.utils import z85

from ifmesh import identity, sockets
from ifmesh.identity import Keys
from ifmesh.line import Line
from ifmesh.sockets import Socket
from ifmesh.zap import Zap
from tests.unit.stand_in import until

SERVER, FRIEND, STRANGER = identity.generate(), identity.generate(), identity.generate()
SOON = 20_000  # ms; a limit, not a pause


class Door:
    """A PULL behind a Zap that lets `friends` in.  Closed from this thread, as the context ends: the ZAP thread closes its own socket."""

    def __init__(self) -> None:
        self.ctx = sockets.context()
        self.friends = {FRIEND.public}
        self.zap = Zap(self.ctx, lambda public: public in self.friends)
        self.pull: Socket | None = None
        self._lines: list[Line] = []

    def open(self) -> str:
        self.pull, (url,) = sockets.inlet(self.ctx, ["tcp://127.0.0.1:0"], SERVER)
        return url

    def line(self, url: str, keys: Keys | None = FRIEND, server: str = SERVER.public) -> Line:
        line = Line(partial(sockets.outlet, self.ctx, url, keys, server if keys else ""), 0.05, 0.5)
        line.dial()
        self._lines.append(line)
        return line

    def close(self) -> None:
        for line in self._lines:
            line.close()
        if self.pull is not None:
            self.pull.close(0)
        self.ctx.term()


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.close()


def up(line: Line) -> bool:
    """Is it connected by now?"""
    line.tend(time.monotonic())
    assert line.socket is not None
    return bool(line.socket.poll(0, zmq.POLLOUT))


def troubled(line: Line) -> bool:
    """Has its handshake failed?"""
    line.tend(0.0)  # it is never time to try again
    return bool(line.trouble)


def came(pull: Socket) -> list[zmq.Frame]:
    """The next message.  libzmq calls a socket readable as soon as the first of many parts is there, and gives it when all are."""
    while pull.poll(SOON):
        with suppress(zmq.Again):
            return sockets.received(pull, 2)
    raise AssertionError("nothing came")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ifmesh-zap"]


def test_a_friend_is_let_in_and_who_sends_is_known(door: Door) -> None:
    door.zap.start()
    line = door.line(door.open())
    until(lambda: up(line))
    assert line.socket is not None
    assert door.pull is not None
    line.socket.send_multipart([b"a", b"b"])
    assert door.pull.poll(SOON)
    assert [sockets.speaker(part) for part in sockets.received(door.pull, 2)] == [FRIEND.public] * 2


@pytest.mark.parametrize("who", ["a stranger", "in the clear", "to another server"])
def test_nobody_else_is(door: Door, who: str) -> None:
    door.zap.start()
    url = door.open()
    line = {
        "a stranger": lambda: door.line(url, STRANGER),
        "in the clear": lambda: door.line(url, None),
        "to another server": lambda: door.line(url, FRIEND, STRANGER.public),
    }[who]()
    until(lambda: troubled(line))
    assert ("not authorised" if who == "a stranger" else "no handshake") in line.trouble
    assert not up(line)


def test_a_link_that_was_refused_comes_back_when_its_key_is_let_in(door: Door) -> None:
    door.zap.start()
    line = door.line(door.open(), STRANGER)
    until(lambda: troubled(line))
    first = line.socket
    door.friends.add(STRANGER.public)
    until(lambda: up(line) and not line.trouble)
    assert line.socket is not first


def test_without_anybody_to_ask_nobody_comes_in(door: Door) -> None:
    """libzmq would let everybody in, were its domain empty, or not enforced."""
    line = door.line(door.open())
    until(lambda: troubled(line))
    assert not up(line)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_died_lets_nobody_in_until_it_lives_again(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    door.zap.start()
    url = door.open()
    old = door.line(url)
    until(lambda: up(old))
    (thread,) = threads()
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)) == 1
    new = door.line(url)  # the one question that it dies of
    thread.join(SOON / 1000)
    assert not thread.is_alive()
    late = door.line(url)
    until(lambda: troubled(late))
    assert not up(late)
    assert up(old), "who is in stays in"
    door.zap.tend(0.0)
    assert "has died: starting it again" in caplog.text
    until(lambda: up(late))
    until(lambda: up(new))
    door.zap.tend(1.0)
    assert len(threads()) == 1


def test_any_request_is_answered_and_only_a_good_one_with_200(door: Door) -> None:
    key = z85.decode(FRIEND.public.encode())
    good = [b"1.0", b"7", b"ifmesh", b"127.0.0.1", b"", b"CURVE", key]
    assert door.zap.answer(good) == [b"1.0", b"7", b"200", b"", FRIEND.public.encode(), b""]
    dice = random.Random(3)
    bad = [good[:n] for n in range(7)] + [[*good, b"more"]]
    bad += [[*good[:n], dice.randbytes(dice.choice((0, 1, 31, 33, 1000))), *good[n + 1 :]] for n in (0, 2, 5, 6) for _ in range(50)]
    bad += [[*good[:2], b"", *good[3:]], [*good[:5], b"NULL"], [*good[:5], b"PLAIN", b"u", b"p"]]
    for asked in bad:
        version, _, status, _, user, _ = door.zap.answer(asked)
        assert (version, status, user) == (b"1.0", b"400", b"")


def test_an_error_of_the_one_who_decides_keeps_out(door: Door) -> None:
    def broken(_: str) -> bool:
        raise KeyError("x")

    zap = Zap(door.ctx, broken)
    assert zap.answer([b"1.0", b"7", b"ifmesh", b"", b"", b"CURVE", bytes(32)])[2] == b"400"


def test_a_message_of_endless_parts_is_read_and_forgotten(door: Door) -> None:
    door.zap.start()
    line = door.line(door.open())
    until(lambda: up(line))
    assert line.socket is not None
    assert door.pull is not None
    for parts in ([b"x"] * 5000, [b"header", b"frame"]):
        assert line.socket.poll(SOON, zmq.POLLOUT)
        line.socket.send_multipart(parts)
    assert len(came(door.pull)) == 3
    assert [part.bytes for part in came(door.pull)] == [b"header", b"frame"]
    with pytest.raises(zmq.Again):
        sockets.received(door.pull, 2)

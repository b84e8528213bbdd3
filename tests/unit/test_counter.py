"""The counter: every client gets what it asked for, no faster than it reads."""

from __future__ import annotations

from collections import Counter as Count

import pytest

from ifmesh.counter import LATEST, MOST, SOONEST, Counter
from ifmesh.mail import RESULTS, Mail
from ifmesh.protocol import Refused, Result
from ifmesh.request import Request

FOX = Request("a fox", 7)


class Slow(Mail):
    """As if each of these clients had read so many of what it was handed."""

    def __init__(self) -> None:
        self.handed: Count[bytes] = Count()
        self.read: Count[bytes] = Count()

    def room(self, peer: bytes, most: int) -> bool:
        return self.handed[peer] - self.read[peer] < most


class Desk:
    """A counter, and what it handed out."""

    def __init__(self) -> None:
        self.mail = Slow()
        self.said: list[tuple[bytes, Result | Refused, bytes | memoryview | None]] = []
        self.counter = Counter(self.mail, self.load, self.say)

    def load(self, job: str) -> bytes | None:
        if job == "unreadable":
            raise OSError("no")
        return None if job == "gone" else job.encode()

    def say(self, peer: bytes, message: Result | Refused, payload: bytes | memoryview | None) -> None:
        self.mail.handed[peer] += 1
        self.said.append((peer, message, payload))

    def handed(self, now: float) -> list[tuple[bytes, str]]:
        self.said.clear()
        self.counter.serve(now)
        return [(peer, message.job) for peer, message, _ in self.said]


def test_each_gets_all_in_order_as_fast_as_it_reads() -> None:
    desk = Desk()
    counter, mail = desk.counter, desk.mail
    for number in range(RESULTS + 2):
        counter.ask(b"a", Result(f"j{number}", "", FOX))
        counter.ask(b"a", Result(f"j{number}", "", FOX))
    counter.ask(b"b", Result("other", "", FOX))
    assert desk.handed(1.0) == [*((b"a", f"j{n}") for n in range(RESULTS)), (b"b", "other")]
    assert counter.due == 1.0 + SOONEST
    assert desk.handed(1.0 + SOONEST) == []
    assert counter.due == 1.0 + SOONEST + 2 * SOONEST
    mail.read[b"a"] += 1
    assert desk.handed(2.0) == [(b"a", f"j{RESULTS}")]
    assert counter.due == 2.0 + SOONEST, "it reads: soon again"
    mail.read[b"a"] += 1
    assert desk.handed(3.0) == [(b"a", f"j{RESULTS + 1}")]
    assert counter.due is None


def test_who_does_not_read_is_looked_at_ever_more_seldom_and_who_is_gone_not_at_all() -> None:
    desk = Desk()
    counter, mail = desk.counter, desk.mail
    mail.handed[b"a"] = RESULTS
    counter.ask(b"a", Result("j", "", FOX))
    now = 0.0
    for _ in range(20):
        assert desk.handed(now) == []
        assert counter.due is not None
        now, pause = counter.due, counter.due - now
    assert pause == LATEST
    counter.gone(b"a")
    assert desk.handed(now) == []
    assert counter.due is None


def test_what_is_no_more_is_told(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    for job in ("there", "gone", "unreadable"):
        desk.counter.ask(b"a", Result(job, "", FOX))
    desk.counter.serve(0.0)
    lost = "the result is no longer on disk"
    assert desk.said == [
        (b"a", Result("there", "", FOX), b"there"),
        (b"a", Refused("gone", "unknown", lost), None),
        (b"a", Refused("unreadable", "unknown", lost), None),
    ]
    assert "the result cannot be read: no" in caplog.text


def test_who_asks_for_too_much_is_in_the_way_of_nobody_else() -> None:
    desk = Desk()
    greedy, other = b"a" * 16 + b".client", b"b" * 16 + b".client"
    desk.mail.handed[greedy] = RESULTS
    for number in range(MOST + 10):
        desk.counter.ask(greedy + b"%d" % (number % 7), Result(f"j{number}", "", FOX))
    desk.counter.ask(other, Result("mine", "", FOX))
    assert (other, "mine") in desk.handed(0.0)


def test_only_so_many_wait() -> None:
    desk = Desk()
    counter, mail = desk.counter, desk.mail
    for number in range(MOST + 10):
        counter.ask(b"%d" % (number % 7), Result(f"j{number}", "", FOX))
    mail.read.update({b"%d" % n: MOST for n in range(7)})
    assert len(desk.handed(0.0)) == MOST

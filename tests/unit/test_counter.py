"""The counter: every client gets what it asked for, no faster than it reads."""

from __future__ import annotations

from collections import Counter as Count

from ifmesh.counter import LATEST, MOST, SOONEST, Counter
from ifmesh.mail import RESULTS, Mail
from ifmesh.protocol import Result
from ifmesh.request import Request

FOX = Request("a fox", 7)


class Slow(Mail):
    """As if each of these clients had read so many of what it was handed."""

    def __init__(self) -> None:
        self.handed: Count[bytes] = Count()
        self.read: Count[bytes] = Count()

    def room(self, peer: bytes, most: int) -> bool:
        return self.handed[peer] - self.read[peer] < most


def handed(counter: Counter, mail: Slow, now: float) -> list[tuple[bytes, str]]:
    out: list[tuple[bytes, str]] = []
    while (one := counter.next(now)) is not None:
        peer, told = one
        mail.handed[peer] += 1
        out.append((peer, told.job))
    return out


def test_each_gets_all_in_order_as_fast_as_it_reads() -> None:
    mail = Slow()
    counter = Counter(mail)
    for number in range(RESULTS + 2):
        counter.ask(b"a", Result(f"j{number}", "", FOX))
        counter.ask(b"a", Result(f"j{number}", "", FOX))
    counter.ask(b"b", Result("other", "", FOX))
    assert handed(counter, mail, 1.0) == [*((b"a", f"j{n}") for n in range(RESULTS)), (b"b", "other")]
    assert counter.due == 1.0 + SOONEST
    assert handed(counter, mail, 1.0 + SOONEST) == []
    assert counter.due == 1.0 + SOONEST + 2 * SOONEST
    mail.read[b"a"] += 1
    assert handed(counter, mail, 2.0) == [(b"a", f"j{RESULTS}")]
    assert counter.due == 2.0 + SOONEST, "it reads: soon again"
    mail.read[b"a"] += 1
    assert handed(counter, mail, 3.0) == [(b"a", f"j{RESULTS + 1}")]
    assert counter.due is None


def test_who_does_not_read_is_looked_at_ever_more_seldom_and_who_is_gone_not_at_all() -> None:
    mail = Slow()
    counter = Counter(mail)
    mail.handed[b"a"] = RESULTS
    counter.ask(b"a", Result("j", "", FOX))
    now = 0.0
    for _ in range(20):
        assert counter.next(now) is None
        assert counter.due is not None
        now, pause = counter.due, counter.due - now
    assert pause == LATEST
    counter.gone(b"a")
    assert counter.next(now) is None
    assert counter.due is None


def test_only_so_many_wait() -> None:
    mail = Slow()
    counter = Counter(mail)
    for number in range(MOST + 10):
        counter.ask(b"%d" % (number % 7), Result(f"j{number}", "", FOX))
    mail.read.update({b"%d" % n: MOST for n in range(7)})
    assert len(handed(counter, mail, 0.0)) == MOST

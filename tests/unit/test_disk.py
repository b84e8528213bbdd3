"""What waits for a disk that fails, with the errors of a real SQLite: full, read-only, held by another."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ifmesh.broker import Broker
from ifmesh.cascade import IF
from ifmesh.commands import Book, Command, Note, Send
from ifmesh.disk import AGAIN, Disk
from ifmesh.errors import Misconfigured
from ifmesh.journal import Journal
from ifmesh.protocol import Accepted, Beat, Cancel, Hello, Hi, Inspect, Refused, Submit, Verdicts, Welcome
from ifmesh.request import Request

FOX = Request("a fox " * 300, 7)
WELCOME = Welcome(("encoder",), 1, 2000, ())
Break = Callable[[Journal], Callable[[], object]]


def full(journal: Journal) -> Callable[[], object]:
    pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
    journal._database.execute(f"PRAGMA max_page_count = {pages}")
    return lambda: journal._database.execute("PRAGMA max_page_count = 1000000")


def read_only(journal: Journal) -> Callable[[], object]:
    journal._database.execute("PRAGMA query_only = ON")
    return lambda: journal._database.execute("PRAGMA query_only = OFF")


def held(journal: Journal) -> Callable[[], object]:
    other = sqlite3.connect(journal.state / "journal.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other.close


BREAKS = {"full": full, "readonly": read_only, "locked": held}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal.open(tmp_path)) as it:
        yield it


def booked(job: str) -> list[Command]:
    return [Note(job, "accepted"), *(Book(f"{job}{n}", FOX) for n in range(20)), Send(b"bob", Accepted(job))]


def known(journal: Journal) -> list[str]:
    return [b.job for b in journal.recover()[0]]


@pytest.mark.parametrize("how", BREAKS)
def test_row_14_what_is_not_on_disk_is_not_told_and_comes_in_order(journal: Journal, how: str, caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk(journal, 0)
    assert disk.through(0.0, booked("a")) == booked("a")
    mend = BREAKS[how](journal)
    assert disk.through(1.0, booked("b")) == []
    assert disk.waiting
    assert f"the disk does not take the journal ({'database' if how == 'locked' else ''}" in disk.refuses
    behind: list[Command] = [Note("", "draining")]
    assert disk.through(1.5, [*behind, Send(b"eve", Accepted("x"))]) == [], "each second, and what comes behind waits, too"
    for second in range(2, 100):
        assert disk.through(float(second) + AGAIN, []) == []
    assert known(journal) == [f"a{n}" for n in range(20)]
    assert len(caplog.messages) == 2, "once a minute"
    mend()
    assert disk.through(100.5, []) == [], "not before its second has passed"
    assert disk.through(102.0, []) == [*booked("b"), *behind]
    assert not disk.waiting
    assert disk.refuses == ""
    assert len(known(journal)) == 40
    assert disk.through(103.0, []) == []


def test_what_comes_behind_does_not_pile_up(journal: Journal) -> None:
    disk = Disk(journal, 0)
    read_only(journal)
    disk.through(0.0, booked("a"))
    for n in range(1000):
        disk.through(0.5, [Send(b"eve", Refused("", "version", str(n)))])
    assert len(disk._waiting) == len(booked("a"))


def test_what_does_not_touch_the_journal_passes_a_failing_disk(journal: Journal) -> None:
    disk = Disk(journal, 0)
    read_only(journal)
    said: list[Command] = [Send(b"bob", Accepted("a")), Note("a", "x")]
    assert disk.through(0.0, said) == said


def test_what_is_answered_meanwhile(journal: Journal) -> None:
    disk = Disk(journal, 0)
    read_only(journal)
    disk.through(0.0, booked("a"))
    why = "the disk does not take the journal (attempt to write a readonly database)"
    assert disk.answer(Beat("w", 7, "ready", ()), False, WELCOME) == Verdicts(7)
    assert disk.answer(Hi(), False, WELCOME) == WELCOME
    assert disk.answer(Submit("b", FOX), False, WELCOME) == Refused("b", "busy", why, 5.0)
    assert disk.answer(Submit("a1", FOX), True, WELCOME) is None, "it may be accepted yet"
    assert disk.answer(Inspect(), False, WELCOME) == Refused("", "busy", why, 5.0)
    assert disk.answer(Cancel("a1"), False, WELCOME) is None


def test_little_room_and_room_again(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk(journal, 1 << 60)
    assert disk.refuses == ""
    for _ in range(3):
        disk.watch()
    assert disk.refuses.startswith("the disk has ")
    assert disk.through(0.0, booked("a")) == booked("a"), "what is under way goes on"
    disk._reserve = 0
    disk.watch()
    assert disk.refuses == ""
    assert len(caplog.messages) == 2


def test_row_13_the_older_of_two_sees_the_newer_without_a_commit_of_its_own(journal: Journal) -> None:
    disk = Disk(journal, 0)
    disk.watch()
    (journal.state / "journal.lock").unlink()
    with closing(Journal.open(journal.state)), pytest.raises(Misconfigured, match="another coordinator has taken this journal over"):
        disk.watch()


def test_a_database_that_is_damaged_is_not_waited_for(journal: Journal) -> None:
    disk = Disk(journal, 0)
    journal.commit([Book(f"j{n}", FOX) for n in range(500)])
    journal._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = journal.state / "journal.db"
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xa5" * 512)
    journal._database.execute("PRAGMA shrink_memory")
    with pytest.raises(Misconfigured, match=r"the journal cannot be read: .*`ifmesh journal restore`"):
        disk.through(0.0, [Book(f"k{n}", FOX) for n in range(500)])


@pytest.mark.parametrize("slept", [True, False])
def test_whoever_could_not_be_heard_while_the_disk_failed_is_not_taken_for_dead(slept: bool) -> None:
    """The disk is back a moment before the worker would have been silent for too long, and its next Beat is still on its way."""
    broker = Broker(IF, 1, ())
    broker.receive(0.0, b"w", Hello("encoder", "life", "encoder-0", 1, "host", "cpu", (), 1, "class"))
    broker.receive(0.1, b"w", Beat("life", 1, "ready", ()))
    if slept:
        broker.slept(4.9)
    broker.tick(5.2)
    assert ("life" in broker.roster.lives) == slept
    broker.tick(10.0)
    assert "life" not in broker.roster.lives

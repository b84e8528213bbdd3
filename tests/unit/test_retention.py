"""What the journal forgets, how durable it is, and how it comes from an older version: all on real files."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgpack  # type: ignore[import-untyped]
import pytest
import zmq

from ifmesh import schema, wire
from ifmesh.bell import Bell
from ifmesh.commands import Blame, Book, Booked, Close, Closed
from ifmesh.journal import FREE, Journal, Runs, Story
from ifmesh.log import Garbage
from ifmesh.protocol import Cancelled, Finished, StageRun
from ifmesh.request import Request
from ifmesh.retention import BATCH, HURRY, Retention
from ifmesh.writer import Writer

FOX = Request("a fox", 7)
RUN = StageRun("encoder", "encoder-0", 7, "cpu", 0.1, 0.2, 1, 0, 1000, 1)
STORY = ((0.0, "accepted"), (1.5, "encoder: assigned"))
DAY = 86400.0


class Clock:
    wall = 1_000_000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.time", lambda: clock.wall)
    monkeypatch.setattr("ifmesh.journal.uptime", lambda: ("", 0.0))  # as if the machine were started between any two moments
    return clock


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal.open(tmp_path / "state")) as it:
        yield it


def finish(journal: Journal, job: str, size: int = 100) -> None:
    digest, _ = journal.store(job, bytes(size))
    journal.commit([Book(job, FOX), Blame(job, 1, "x"), Close(job, Finished(job, digest, size, 7, True, (RUN,)), STORY, (RUN,))])


def stored(journal: Journal) -> list[str]:
    return [job for job, _ in journal.shelf.stored()]


def test_owners_come_back(tmp_path: Path) -> None:
    with closing(Journal.open(tmp_path)) as it:
        it.commit([Book("a", FOX, "alice"), Book("b", FOX, "bob"), Book("n", FOX), Close("b", Cancelled("b"), (), ())])
    with closing(Journal.open(tmp_path)) as it:
        booked, closed = it.recover()
        assert [(b.job, b.owner) for b in booked] == [("a", "alice"), ("n", "")]
        assert closed == [Closed("b", FOX, Cancelled("b"), (), (), "bob")]
        assert it.ending("b") == closed[0]


# ---- time and room


def test_after_their_time_jobs_are_forgotten_the_oldest_first(journal: Journal, clock: Clock) -> None:
    journal.commit([Book("open", FOX)])
    for job in ("c", "a", "b"):
        finish(journal, job)
        clock.wall += 10.0
    clock.wall = 1_000_000.0 + DAY + 15.0
    assert journal.prune(DAY, 1 << 40, 1) == ["c"]
    assert journal.prune(DAY, 1 << 40, 50) == ["a"]
    assert journal.prune(DAY, 1 << 40, 50) == []
    assert journal.ending("c") is None
    assert journal.ending("b") is not None
    assert [b.job for b in journal.recover()[0]] == ["open"], "an open job is never forgotten"
    journal.commit([Book("c", replace(FOX, prompt="an owl"))])  # its id is free again
    assert journal.recover()[0] == [Booked("open", FOX, DAY + 15.0, 0), Booked("c", replace(FOX, prompt="an owl"), 0.0, 0)]


def test_beyond_the_quota_the_oldest_go_and_no_more_than_needed(tmp_path: Path, clock: Clock) -> None:
    with closing(Journal.open(tmp_path)) as it:
        for n in range(10):
            finish(it, f"j{n}", 1000)
        it.commit([Close("j9", Cancelled("j9"), (), ())])  # a second ending counts for nothing, not for its bytes either
        assert it.prune(DAY, 10_000, 50) == []
        assert it.prune(DAY, 7_500, 50) == ["j0", "j1", "j2"]
        assert it.prune(DAY, 7_500, 50) == []
    with closing(Journal.open(tmp_path)) as it:
        assert it.prune(DAY, 7_000, 50) == [], "how much there is, is known after a restart"
        assert it.prune(DAY, 6_999, 50) == ["j3"]


def test_far_beyond_the_quota_nobody_waits_for_the_next_look(journal: Journal) -> None:
    with closing(Bell()) as bell:
        it = Retention(journal, Writer(journal, bell, Garbage()), DAY, 10_000)
        assert it.turn(100.0, ()) == []
        for n in range(10):
            finish(journal, f"j{n}", 1000)
        finish(journal, "small", 500)
        assert it.turn(101.0, ()) == [], "a little more waits"
        finish(journal, "more", 1000)
        assert it.turn(101.0, ()) == ["j0", "j1"]
        finish(journal, "most", 3000)
        assert it.turn(101.0 + HURRY / 2, ()) == [], "not in every turn"
        assert it.turn(101.0 + HURRY, ()) == ["j2", "j3", "j4"]


def test_what_is_rolled_back_counts_for_nothing(journal: Journal) -> None:
    bad = Close("x", Cancelled("\ud800"), (), ())
    with pytest.raises(wire.Garbled):
        journal.commit([Book("a", FOX), Close("a", Finished("a", "ff" * 32, 1000, 7, True, ()), (), ()), bad])
    finish(journal, "b", 10)
    assert journal.prune(DAY, 500, 50) == []


def test_files_go_with_their_jobs_and_so_do_those_without_one(journal: Journal, clock: Clock) -> None:
    """Results of: a finished job whose time has come; one that stays; one cancelled just before its file came; an open one; nobody."""
    finish(journal, "old")
    clock.wall += DAY
    finish(journal, "new")
    for job in ("cancelled", "open", "nobody"):
        journal.store(job, b"x")
    journal.commit([Book("cancelled", FOX), Close("cancelled", Cancelled("cancelled"), (), ()), Book("open", FOX), Book("later", FOX)])
    with closing(Bell()) as bell:
        writer = Writer(journal, bell, Garbage())
        writer.start()
        it = Retention(journal, writer, DAY - 1, 1 << 40)
        it.begin()
        journal.store("later", b"x")
        it.landed("later")
        assert it.turn(100.0, {"later", "open"}) == ["old"]
        assert it.turn(100.0, {"later", "open"}) == [], "not so soon"
        journal.commit([Close("later", Cancelled("later"), (), ())])
        assert it.turn(it.due, {"open"}) == []
        writer.stop()
    assert stored(journal) == ["new", "open"]


def test_many_are_forgotten_in_small_steps(journal: Journal, clock: Clock) -> None:
    journal.commit([Book(f"j{n}", FOX) for n in range(2 * BATCH + 1)])
    journal.commit([Close(f"j{n}", Cancelled(f"j{n}"), STORY, ()) for n in range(2 * BATCH + 1)])
    clock.wall += 2 * DAY
    with closing(Bell()) as bell:
        it, now, steps = Retention(journal, Writer(journal, bell, Garbage()), DAY, 1 << 40), 0.0, []
        for _ in range(4):
            steps.append(len(it.turn(now, ())))
            assert it.due - now == pytest.approx(0.05 if steps[-1] == BATCH else 5.0)
            now = it.due
    assert steps == [BATCH, BATCH, 1, 0]


def test_the_database_and_its_log_do_not_grow_for_ever(journal: Journal, clock: Clock) -> None:
    path = journal.state / "journal.db"
    peaks = []
    long = Request("a fox " * 300, 7)
    for round_ in range(6):
        for n in range(10):
            jobs = [f"r{round_}-{n}-{m}" for m in range(100)]
            journal.commit([c for job in jobs for c in (Book(job, long), Close(job, Cancelled(job), STORY * 20, ()))])
        assert (path.parent / "journal.db-wal").stat().st_size < 2 * schema.WAL_BYTES
        clock.wall += 2 * DAY
        while journal.prune(DAY, 0, 500):
            pass
        peaks.append(path.stat().st_size)
    assert peaks[-1] <= 1.2 * peaks[0]
    for _ in range(50):
        journal.rest()
    assert path.stat().st_size < FREE * 4096 < peaks[-1]
    assert (path.parent / "journal.db-wal").stat().st_size == 0


# ---- durability


def test_lazy_is_on_disk_after_the_next_sync(tmp_path: Path) -> None:
    with closing(Journal.open(tmp_path, "lazy")) as it:
        assert it._database.execute("PRAGMA synchronous").fetchone() == (1,)
        finish(it, "a", 1000)
        it.store_upload("0" * 64, b"x")
        assert len(it.shelf._unsynced) == 2
        it.sync()
        assert it.shelf._unsynced == set()
        it.store("b", b"x")
        it.shelf.discard("b")
        it.sync()
    with closing(Journal.open(tmp_path, "full")) as it:
        assert [c.job for c in it.recover()[1]] == ["a"]
        assert it.load("a") == bytes(1000)


def test_the_writer_syncs_a_lazy_journal_without_a_word_to_the_loop(tmp_path: Path) -> None:
    with closing(Journal.open(tmp_path, "lazy")) as it, closing(Bell()) as bell:
        writer = Writer(it, bell, Garbage())
        writer.result("a", (1, 1), b"frame")
        writer.sync()
        writer.start()
        writer.stop()
        assert it.shelf._unsynced == set()
        assert len(writer.landed()) == 1
        assert zmq.select([bell], [], [], 1)[0]


def test_none_is_gone_at_the_end_but_never_its_epoch_nor_what_was_there(tmp_path: Path) -> None:
    with closing(Journal.open(tmp_path)) as it:
        finish(it, "kept")
    for epoch in (2, 3):
        with closing(Journal.open(tmp_path, "none")) as it:
            assert it.epoch == epoch, "or workers would hold grants newer than ours"
            assert it.recover() == ([], [])
            finish(it, "a")
            assert it.load("a") == bytes(100)
            assert it.load("kept") is None
            assert [c.job for c in it.recover()[1]] == ["a"]
        assert not (tmp_path / "volatile").exists()
    with closing(Journal.open(tmp_path)) as it:
        assert (it.epoch, [c.job for c in it.recover()[1]], stored(it)) == (4, ["kept"], ["kept"])


# ---- the versions before


def old(record: object) -> bytes:
    """As version 3 of the protocol packed it: without the fields that it did not have."""
    data = msgpack.unpackb(wire.pack(record))
    for name in ("deadline_queued", "deadline_running"):
        data.pop(name, None)
    packed: bytes = msgpack.packb({**data, "v": 3})
    return packed


def test_a_journal_of_version_3_is_brought_up_to_date(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as database:
        database.execute("CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL)")
        database.execute(
            "CREATE TABLE requests (number INTEGER PRIMARY KEY, job TEXT NOT NULL UNIQUE, request BLOB NOT NULL, wall REAL NOT NULL)"
        )
        database.execute(
            "CREATE TABLE endings (number INTEGER PRIMARY KEY, job TEXT NOT NULL UNIQUE, ending BLOB NOT NULL, story BLOB NOT NULL, "
            "runs BLOB NOT NULL, wall REAL NOT NULL)"
        )
        database.execute("CREATE TABLE blames (job TEXT PRIMARY KEY, count INTEGER NOT NULL, cause TEXT NOT NULL, wall REAL NOT NULL)")
        database.execute("INSERT INTO meta VALUES (1, 8)")
        database.execute("INSERT INTO blames VALUES ('open', 2, 'SIGSEGV', 1e9)")
        for job in ("open", "ended"):
            database.execute("INSERT INTO requests (job, request, wall) VALUES (?, ?, 1e9)", (job, old(FOX)))
        ending = Finished("ended", hashlib.sha256(b"x").hexdigest(), 1, 7, True, (RUN,))
        row = ("ended", old(ending), old(Story(STORY)), old(Runs((RUN,))))
        database.execute("INSERT INTO endings (job, ending, story, runs, wall) VALUES (?, ?, ?, ?, 1e9)", row)
        database.execute("PRAGMA user_version = 3")
    with closing(Journal.open(tmp_path)) as it:
        booked, closed = it.recover()
        assert it.epoch == 9
        assert [(b.job, b.request, b.owner, b.blame, b.lives) for b in booked] == [("open", FOX, "", 2, ())]
        assert closed == [Closed("ended", FOX, ending, STORY, (RUN,))]
        assert it._database.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        assert it.prune(1e12, 0, 50) == ["ended"], "the sizes of its results are known"


@pytest.mark.parametrize(("version", "spoken"), [(4, 4), (5, 5), (6, 6), (6, 7)])
def test_a_journal_of_an_older_version_is_brought_up_to_date(tmp_path: Path, version: int, spoken: int) -> None:
    """spoken: the version of the protocol that packed its records."""
    ending = Finished("ended", hashlib.sha256(b"x").hexdigest(), 1, 7, True, (RUN,))
    with closing(Journal.open(tmp_path)) as it:
        it.commit([Book("open", FOX), Book("ended", FOX), Close("ended", ending, STORY, (RUN,))])
    with closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as database:
        for table, columns in {"requests": ("request",), "endings": ("ending", "story", "runs")}.items():
            for column in columns:
                for number, stored in database.execute(f"SELECT number, {column} FROM {table}").fetchall():
                    packed = msgpack.packb({**msgpack.unpackb(stored[schema.SEAL :]), "v": spoken})
                    database.execute(f"UPDATE {table} SET {column} = ? WHERE number = ?", (schema._sealed(packed), number))
        database.execute(f"PRAGMA user_version = {version}")
    with closing(Journal.open(tmp_path)) as it:
        booked, closed = it.recover()
        assert ([b.job for b in booked], closed) == (["open"], [Closed("ended", FOX, ending, STORY, (RUN,))])
    with closing(Journal.open(tmp_path)) as it:
        assert it.recover()[1] == closed

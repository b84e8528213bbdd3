"""What survives the coordinator: requests, endings, holds and blame in SQLite (WAL), results and uploads as files.

One coordinator at a time: an flock keeps a second one out, and each start raises the epoch, which every commit checks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ifmesh import schema, wire
from ifmesh.commands import Blame, Book, Booked, Close, Closed, Command, Hold, Policy
from ifmesh.errors import Misconfigured
from ifmesh.protocol import StageRun
from ifmesh.request import Request
from ifmesh.schema import OPEN
from ifmesh.shelf import Shelf, Volatile, fsync

REMEMBER = Policy().remember  # endings given back after a restart, the newest
PAGES = 256  # of the file, given back to the disk at a time
FREE = 4 * PAGES  # unused pages that are worth it: the next rows use them anyway

_CLOSED = "SELECT e.job, r.request, e.ending, e.story, e.runs, r.owner FROM endings e JOIN requests r ON r.job = e.job"


@dataclass(frozen=True, slots=True)
class Story:
    """As stored.  lines: (seconds since acceptance, what happened)."""

    lines: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True)
class Runs:
    """As stored."""

    runs: tuple[StageRun, ...]


class Journal:
    """The coordinator's memory.  What stores, loads, discards or syncs touches files only, so any thread may call it; the rest is for
    one thread at a time.

    A full, read-only or failing disk raises Unwritable or OSError, and nothing of that batch is written: nobody may be told of it.
    Damage, and another coordinator on this journal, are Misconfigured.
    """

    def __init__(self, state: Path, database: sqlite3.Connection, lock: int, epoch: int, durability: str = "full") -> None:
        self.state, self.epoch, self.durability = state, epoch, durability
        self.shelf = Volatile() if durability == "none" else Shelf(state, synced=durability == "full")
        self._database, self._lock = database, lock
        self.bytes = 0
        """Of all results whose endings are here."""
        self._wrote = self._tired = self._dirty = False  # since somebody last looked; since it last rested; since the last sync

    @classmethod
    def open(cls, state: Path, durability: str = "full") -> Journal:
        """Take the journal in this folder, made when it is not there, and raise its epoch.

        durability: "full": a commit is on disk; "lazy": after the next `sync`; "none": in memory, gone at the end; only the epoch is
        kept.  Misconfigured: another coordinator has it, it is damaged, it is of another version, or the folder cannot be used.
        Unwritable: the disk is full, or fails.
        """
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = locked(state)
        except OSError as error:
            raise _unusable(state, error) from None
        try:
            database, epoch = schema.opened(state / schema.FILE, "NORMAL" if durability == "lazy" else "FULL")
            if durability == "none":
                database.close()
                database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
                schema.made(database, epoch)
            it = cls(state, database, lock, epoch, durability)
            it._begin()
        except OSError as error:
            os.close(lock)
            raise _unusable(state, error) from None
        except BaseException:
            os.close(lock)
            raise
        return it

    def close(self) -> None:
        self._database.close()
        os.close(self._lock)

    # ---- requests and endings

    def commit(self, commands: Iterable[Command]) -> None:
        """Every Book, Close, Hold and Blame, in one transaction.  A second ending of a job is not written."""
        wanted = [c for c in commands if isinstance(c, Book | Close | Hold | Blame)]
        if not wanted:
            return
        wall = time.time()
        with self._transaction():
            grown = sum(self._write(command, wall) for command in wanted)
        self.bytes += grown

    def held_by_us(self) -> None:
        """Misconfigured: another coordinator has taken this journal over.  Unwritable: it cannot be read now."""
        with self._understood():
            if self._database.execute("SELECT epoch FROM meta").fetchone() != (self.epoch,):
                raise Misconfigured(f"{self.state}: another coordinator has taken this journal over; this one must end")

    def recover(self, remember: int = REMEMBER) -> tuple[list[Booked], list[Closed]]:
        """Accepted jobs without an ending, in the order of acceptance; and the newest endings, oldest first."""
        now = time.time(), *uptime()
        with self._understood():
            rows = self._database.execute(
                "SELECT r.job, r.request, r.wall, r.boot, r.uptime, coalesce(b.count, 0), r.owner, coalesce(b.lives, '') "
                f"FROM requests r LEFT JOIN blames b ON b.job = r.job WHERE {OPEN} ORDER BY r.number"
            ).fetchall()
            ended = self._database.execute(f"{_CLOSED} ORDER BY e.number DESC LIMIT ?", (remember,)).fetchall()
            booked = [
                Booked(job, schema.unseal(Request, request), _age(now, (wall, boot, up)), blame, owner, tuple(lives.split()))
                for job, request, wall, boot, up, blame, owner, lives in rows
            ]
            return booked, [closed(row) for row in reversed(ended)]

    def ending(self, job: str) -> Closed | None:
        """How the job ended, if it has."""
        with self._understood():
            row = self._database.execute(f"{_CLOSED} WHERE e.job = ?", (job,)).fetchone()
            return None if row is None else closed(row)

    # ---- what is over

    def prune(self, keep: float, most: int, batch: int) -> list[str]:
        """Forget the jobs that ended more than `keep` seconds ago, and the oldest endings while all results together have more than
        `most` bytes; at most so many at once, the oldest first.  Their ids: their results can go."""
        with self._understood():
            rows = self._database.execute("SELECT job, wall, size FROM endings ORDER BY number LIMIT ?", (batch,)).fetchall()
        before, left, gone = time.time() - keep, self.bytes, []
        for job, wall, size in rows:
            if wall >= before and left <= most:
                break
            left -= size
            gone.append((job,))
        if not gone:
            return []
        with self._transaction():
            for table in ("endings", "requests", "blames"):
                self._database.executemany(f"DELETE FROM {table} WHERE job = ?", gone)
        self.bytes = left
        return [job for (job,) in gone]

    def unclaimed(self, jobs: Iterable[str]) -> list[str]:
        """Those of these jobs whose result nobody will ask for: they are not open, and did not finish."""
        claims = f"SELECT 1 FROM endings WHERE job = ?1 AND size > 0 UNION ALL SELECT 1 FROM requests r WHERE r.job = ?1 AND {OPEN}"
        with self._understood():
            return [job for job in jobs if self._database.execute(claims, (job,)).fetchone() is None]

    def rest(self) -> None:
        """Asked from time to time.  When nothing was written since the last time, the log of SQLite goes into the database, and what is
        free of that goes back to the disk, a little at a time."""
        if self._wrote or not self._tired:
            self._wrote = False
            return
        with self._understood():
            free = self._database.execute("PRAGMA freelist_count").fetchone()[0]
            if free > FREE:
                self._database.executescript(f"PRAGMA incremental_vacuum({PAGES})")  # `execute` would end after one page
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._tired = free > FREE

    # ---- uploads

    def uploads(self) -> dict[str, int]:
        """The digests and sizes (bytes) of all uploads on disk."""
        return dict(self.shelf.stored_uploads())

    def held(self) -> list[Hold]:
        """The uploads that are held still, by the wall clock, and for how long from now on."""
        now = time.time()
        with self._understood():
            rows = self._database.execute("SELECT digest, names, seconds, wall FROM holds ORDER BY digest").fetchall()
        left = [Hold(digest, tuple(names.split(",")), seconds - max(0.0, now - wall)) for digest, names, seconds, wall in rows]
        return [hold for hold in left if hold.seconds > 0]

    # ---- files, from any thread

    def store(self, job: str, frame: bytes | memoryview) -> tuple[str, int]:
        """See `Shelf.store`; and so the others."""
        return self.shelf.store(job, frame)

    def load(self, job: str) -> bytes | memoryview | None:
        return self.shelf.load(job)

    def store_upload(self, digest: str, frame: bytes | memoryview) -> None:
        self.shelf.store_upload(digest, frame)

    def load_upload(self, digest: str) -> bytes | memoryview | None:
        return self.shelf.load_upload(digest)

    def discard_upload(self, digest: str) -> None:
        self.shelf.discard_upload(digest)

    def sync(self) -> None:
        """Lazy: all that was committed and stored is on disk when this returns.  OSError: it may not be."""
        if self.durability != "lazy":
            return
        self.shelf.sync()  # first: an ending is worth nothing without its result
        if self._dirty:
            self._dirty = False
            try:
                fsync(self.state / f"{schema.FILE}-wal")
            except OSError:
                self._dirty = True
                raise

    # ---- inside

    def _begin(self) -> None:
        """What is known of the files before the first commit."""
        self.shelf.make()
        with self._understood():
            self.bytes = self._database.execute("SELECT coalesce(sum(size), 0) FROM endings").fetchone()[0]

    @contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except schema.Broken as error:
            raise schema.understood(self.state / schema.FILE, error) from error
        except wire.Garbled as error:
            raise schema.damaged(self.state / schema.FILE, str(error)) from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing, and only while this journal is ours."""
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self.held_by_us()
            yield
            self._database.execute("COMMIT")
        except BaseException as error:
            try:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
            except sqlite3.Error:  # the first error says more
                pass
            if isinstance(error, schema.Broken):
                raise schema.understood(self.state / schema.FILE, error) from error
            raise
        self._wrote = self._tired = self._dirty = True

    def _write(self, command: Book | Close | Hold | Blame, wall: float) -> int:
        """The bytes of a result that it adds."""
        match command:
            case Book(job, request, owner):
                self._put("requests (job, request, wall, owner, boot, uptime)", job, schema.seal(request), wall, owner, *uptime())
            case Close(job, ending, story, runs):
                size = schema.size_of(ending)
                told = job, schema.seal(ending), schema.seal(Story(story)), schema.seal(Runs(runs)), wall, size
                return size if self._put("endings (job, ending, story, runs, wall, size)", *told) else 0
            case Hold(digest, names, seconds):
                self._database.execute("DELETE FROM holds WHERE wall + seconds < ?", (wall,))
                self._database.execute("INSERT OR REPLACE INTO holds VALUES (?, ?, ?, ?)", (digest, ",".join(names), seconds, wall))
            case Blame(job, count, cause, life):
                self._database.execute(
                    "INSERT INTO blames (job, count, cause, wall, lives) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET "
                    "count = ?2, cause = ?3, wall = ?4, lives = trim(lives || ' ' || ?5)",
                    (job, count, cause, wall, life),
                )
        return 0

    def _put(self, table: str, *values: Any) -> bool:
        """A new row; False: the job has one."""
        marks = ", ".join("?" * len(values))
        return self._database.execute(f"INSERT INTO {table} VALUES ({marks}) ON CONFLICT DO NOTHING", values).rowcount == 1


def uptime() -> tuple[str, float]:
    """This start of the machine, and the seconds since then, asleep or not: a clock that nobody sets.  ("", 0): there is none."""
    return (boot, time.clock_gettime(time.CLOCK_BOOTTIME)) if (boot := _boot()) else ("", 0.0)


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _age(now: tuple[float, str, float], then: tuple[float, str, float]) -> float:
    """Seconds since then; by the wall clock only where the machine was started between.  Each: wall clock, and `uptime`."""
    wall, boot, up = (now[0] - then[0], now[1], now[2] - then[2])
    return max(0.0, up if boot and boot == then[1] else wall)


def locked(state: Path) -> int:
    """The lock, with our pid in it for whoever comes second.  It ends with the process, however that ends.

    Misconfigured: somebody has it.  OSError: the folder cannot be used.
    """
    lock = os.open(state / "journal.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        told = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        whose = f"pid {told}" if told.isdecimal() else "another process"
        raise Misconfigured(f"{state}: a coordinator runs here already ({whose}): stop it, or choose another mesh.state") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def closed(row: tuple[str, bytes, bytes, bytes, bytes, str]) -> Closed:
    """Of job, request, ending, story, runs and owner as stored.  Garbled."""
    job, request, ending, story, runs, owner = row
    told = schema.unseal(Story, story).lines, schema.unseal(Runs, runs).runs
    return Closed(job, schema.unseal(Request, request), schema.ending(ending), *told, owner)


def _unusable(state: Path, error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return schema.Unwritable(error.strerror)
    return Misconfigured(f"{state}: cannot be used as state folder: {error.strerror}: choose another, mesh.state")

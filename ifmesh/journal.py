"""What survives the coordinator: requests, endings, holds and blame in SQLite (WAL, every commit on disk), results and uploads as files.

One coordinator at a time: an flock keeps a second one out, and each start raises the epoch, which every commit checks.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ifmesh import wire
from ifmesh.commands import Blame, Book, Booked, Close, Closed, Command, Hold
from ifmesh.errors import Misconfigured
from ifmesh.protocol import Ended, StageRun
from ifmesh.request import Request

SCHEMA = 3
REMEMBER = 10000  # endings given back after a restart, the newest

_JOB = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TABLES = (
    "CREATE TABLE IF NOT EXISTS meta (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS requests (number INTEGER PRIMARY KEY, job TEXT NOT NULL UNIQUE, request BLOB NOT NULL, wall REAL NOT NULL)",
    # One row for each job, and no row is ever replaced: that is the compare-and-set by which a job ends once.
    "CREATE TABLE IF NOT EXISTS endings (number INTEGER PRIMARY KEY, job TEXT NOT NULL UNIQUE, ending BLOB NOT NULL, story BLOB NOT NULL, "
    "runs BLOB NOT NULL, wall REAL NOT NULL)",
    "CREATE TABLE IF NOT EXISTS holds (digest TEXT PRIMARY KEY, names TEXT NOT NULL, seconds REAL NOT NULL, wall REAL NOT NULL)",
    "CREATE TABLE IF NOT EXISTS blames (job TEXT PRIMARY KEY, count INTEGER NOT NULL, cause TEXT NOT NULL, wall REAL NOT NULL)",
)
_CLOSED = "SELECT e.job, r.request, e.ending, e.story, e.runs FROM endings e JOIN requests r ON r.job = e.job"


@dataclass(frozen=True, slots=True)
class Story:
    """As stored.  lines: (seconds since acceptance, what happened)."""

    lines: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True)
class Runs:
    """As stored."""

    runs: tuple[StageRun, ...]


class Journal:
    """The coordinator's memory.  What stores, loads or discards touches files only, so any thread may call it; the rest is for one
    thread at a time.

    A full or failing disk raises sqlite3.Error or OSError, and nothing of that batch is written: nobody may be told of it.
    """

    def __init__(self, state: Path, database: sqlite3.Connection, lock: int, epoch: int) -> None:
        self.state, self.epoch = state, epoch
        self._database, self._lock = database, lock

    @classmethod
    def open(cls, state: Path) -> Journal:
        """Take the journal in this folder, made when it is not there, and raise its epoch.

        Misconfigured: another coordinator has it, it is damaged, it is of another version, or the folder cannot be used.
        """
        folders = state / "results", state / "uploads"
        try:
            for folder in folders:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _locked(state / "journal.lock")
        except OSError as error:
            raise Misconfigured(f"{state}: cannot be used as state folder: {error.strerror}: choose another, mesh.state") from None
        try:
            for left in (part for folder in folders for part in folder.glob(".*.part")):  # of a write that a death cut short
                left.unlink(missing_ok=True)
            database, epoch = _database(state / "journal.db")
        except BaseException:
            os.close(lock)
            raise
        return cls(state, database, lock, epoch)

    def close(self) -> None:
        self._database.close()
        os.close(self._lock)

    # ---- requests and endings

    def commit(self, commands: Iterable[Command]) -> None:
        """Every Book, Close, Hold and Blame, in one transaction, on disk when this returns.  A second ending of a job is not written."""
        wanted = [c for c in commands if isinstance(c, Book | Close | Hold | Blame)]
        if not wanted:
            return
        wall = time.time()
        self._database.execute("BEGIN IMMEDIATE")
        try:
            if self._database.execute("SELECT epoch FROM meta").fetchone() != (self.epoch,):
                raise Misconfigured(f"{self.state}: another coordinator has taken this journal over; this one must end")
            for command in wanted:
                self._write(command, wall)
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def recover(self, remember: int = REMEMBER) -> tuple[list[Booked], list[Closed]]:
        """Accepted jobs without an ending, in the order of acceptance; and the newest endings, oldest first."""
        now = time.time()
        rows = self._database.execute(
            "SELECT r.job, r.request, r.wall, coalesce(b.count, 0) FROM requests r LEFT JOIN blames b ON b.job = r.job "
            "WHERE NOT EXISTS (SELECT 1 FROM endings e WHERE e.job = r.job) ORDER BY r.number"
        ).fetchall()
        ended = self._database.execute(f"{_CLOSED} ORDER BY e.number DESC LIMIT ?", (remember,)).fetchall()
        try:
            booked = [Booked(job, wire.unpack(Request, request), max(0.0, now - wall), blame) for job, request, wall, blame in rows]
            return booked, [_closed(row) for row in reversed(ended)]
        except wire.Garbled as error:
            raise _damaged(self.state / "journal.db", str(error)) from None

    def ending(self, job: str) -> Closed | None:
        """How the job ended, if it has.  Misconfigured: the record cannot be read."""
        row = self._database.execute(f"{_CLOSED} WHERE e.job = ?", (job,)).fetchone()
        try:
            return None if row is None else _closed(row)
        except wire.Garbled as error:
            raise _damaged(self.state / "journal.db", str(error)) from None

    # ---- results

    def store(self, job: str, frame: bytes | memoryview) -> tuple[str, int]:
        """Put the published frame on disk, whole or not at all; its SHA-256 (hex) and size.  Again is harmless: the same job, the
        same bytes.  ValueError: a job id that is none.  OSError: the disk."""
        if not _JOB.fullmatch(job):
            raise ValueError("a job id has 1 to 64 letters, digits, - or _")
        _put(self._result(job), frame)
        return hashlib.sha256(frame).hexdigest(), memoryview(frame).nbytes

    def load(self, job: str) -> bytes | None:
        """The published frame; None: there is none."""
        if not _JOB.fullmatch(job):
            return None
        try:
            return self._result(job).read_bytes()
        except FileNotFoundError:
            return None

    # ---- uploads

    def store_upload(self, digest: str, frame: bytes | memoryview) -> None:
        """Put what a client brought on disk, whole or not at all, under its SHA-256 (hex), which the caller has checked.

        ValueError: a digest that is none.  OSError: the disk.
        """
        if not _SHA256.fullmatch(digest):
            raise ValueError("an upload's digest has 64 hex digits")
        _put(self._upload(digest), frame)

    def load_upload(self, digest: str) -> bytes | None:
        """The uploaded frame; None: there is none."""
        if not _SHA256.fullmatch(digest):
            return None
        try:
            return self._upload(digest).read_bytes()
        except FileNotFoundError:
            return None

    def discard_upload(self, digest: str) -> None:
        """Remove it, if it is there."""
        if _SHA256.fullmatch(digest):
            self._upload(digest).unlink(missing_ok=True)

    def uploads(self) -> dict[str, int]:
        """The digests and sizes (bytes) of all uploads on disk."""
        files = (self.state / "uploads").glob("*.safetensors")
        return {path.stem: path.stat().st_size for path in sorted(files) if _SHA256.fullmatch(path.stem)}

    def held(self) -> list[Hold]:
        """The uploads that are held still, by the wall clock, and for how long from now on."""
        now = time.time()
        rows = self._database.execute("SELECT digest, names, seconds, wall FROM holds ORDER BY digest").fetchall()
        left = [Hold(digest, tuple(names.split(",")), seconds - max(0.0, now - wall)) for digest, names, seconds, wall in rows]
        return [hold for hold in left if hold.seconds > 0]

    # ---- inside

    def _result(self, job: str) -> Path:
        return self.state / "results" / f"{job}.safetensors"

    def _upload(self, digest: str) -> Path:
        return self.state / "uploads" / f"{digest}.safetensors"

    def _write(self, command: Book | Close | Hold | Blame, wall: float) -> None:
        match command:
            case Book(job, request):
                row = (job, wire.pack(request), wall)
                self._database.execute("INSERT INTO requests (job, request, wall) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row)
            case Close(job, ending, story, runs):
                told = (job, wire.pack(ending), wire.pack(Story(story)), wire.pack(Runs(runs)), wall)
                self._database.execute(
                    "INSERT INTO endings (job, ending, story, runs, wall) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", told
                )
            case Hold(digest, names, seconds):
                self._database.execute("DELETE FROM holds WHERE wall + seconds < ?", (wall,))
                self._database.execute("INSERT OR REPLACE INTO holds VALUES (?, ?, ?, ?)", (digest, ",".join(names), seconds, wall))
            case Blame(job, count, cause):
                self._database.execute(
                    "INSERT OR REPLACE INTO blames (job, count, cause, wall) VALUES (?, ?, ?, ?)", (job, count, cause, wall)
                )


def _put(path: Path, frame: bytes | memoryview) -> None:
    """Under this name, whole or not at all, and on disk when this returns."""
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(frame)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # else the name may be lost although the bytes are there
    finally:
        os.close(folder)


def _locked(path: Path) -> int:
    """The lock, with our pid in it for whoever comes second.  It ends with the process, however that ends."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        told = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        whose = f"pid {told}" if told.isdecimal() else "another process"
        raise Misconfigured(f"{path.parent}: a coordinator runs here already ({whose}): stop it, or choose another mesh.state") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _database(path: Path) -> tuple[sqlite3.Connection, int]:
    try:
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise _damaged(path, str(error)) from None
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if (found := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise _damaged(path, str(found).splitlines()[0])
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA):
            raise Misconfigured(f"{path}: a journal of version {version}; this ifmesh has {SCHEMA}: choose another mesh.state")
        database.execute("BEGIN IMMEDIATE")
        for table in _TABLES:
            database.execute(table)
        database.execute(f"PRAGMA user_version = {SCHEMA}")
        database.execute("INSERT INTO meta VALUES (1, 1) ON CONFLICT DO UPDATE SET epoch = epoch + 1")
        epoch = database.execute("SELECT epoch FROM meta").fetchone()[0]
        database.execute("COMMIT")
        return database, epoch
    except sqlite3.Error as error:
        database.close()
        raise _damaged(path, str(error)) from None
    except BaseException:
        database.close()
        raise


def _damaged(path: Path, how: str) -> Misconfigured:
    return Misconfigured(f"{path}: the journal cannot be read: {how}: move it away to begin anew, or choose another mesh.state")


def _closed(row: tuple[str, bytes, bytes, bytes, bytes]) -> Closed:
    job, request, ending, story, runs = row
    ended: Ended = wire.unpack(Ended, ending)
    return Closed(job, wire.unpack(Request, request), ended, wire.unpack(Story, story).lines, wire.unpack(Runs, runs).runs)

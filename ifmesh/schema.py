"""The tables of the journal: how they are opened, brought up to date, and what SQLite's errors mean.

Nothing in this process may open journal.db or its -shm by itself: closing them would take SQLite's locks away (POSIX).
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, overload

from xxhash import xxh3_64_digest

from ifmesh import wire
from ifmesh.errors import Misconfigured
from ifmesh.protocol import Ended, Finished

T = TypeVar("T")

SCHEMA = 8
OLDER = (3, 4, 5, 6)
"""Versions that are brought up to date; the records of each are of the version of the protocol with the same number, or one that followed
it before the next of these."""
SEAL = 8  # bytes of checksum before each record
FILE = "journal.db"
WAIT = 0.2  # seconds for somebody else's lock, a `journal check`; the coordinator's loop stands still meanwhile
WAL_BYTES = 8 << 20  # what the write-ahead log keeps of the disk once all of it is in the database

TABLES = (
    "CREATE TABLE IF NOT EXISTS meta (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL)",
    # wall, and boot with uptime: when it was accepted, by a clock that may jump, and by one that does not but begins anew with the machine
    "CREATE TABLE IF NOT EXISTS requests (number INTEGER PRIMARY KEY, job TEXT NOT NULL UNIQUE, request BLOB NOT NULL, wall REAL NOT NULL, "
    "owner TEXT NOT NULL DEFAULT '', boot TEXT NOT NULL DEFAULT '', uptime REAL NOT NULL DEFAULT 0)",
    # One row for each job, and no row is ever replaced: that is the compare-and-set by which a job ends once.  size: bytes of its result.
    "CREATE TABLE IF NOT EXISTS endings (number INTEGER PRIMARY KEY, job TEXT NOT NULL UNIQUE, ending BLOB NOT NULL, story BLOB NOT NULL, "
    "runs BLOB NOT NULL, wall REAL NOT NULL, size INTEGER NOT NULL DEFAULT 0)",
    "CREATE TABLE IF NOT EXISTS holds (digest TEXT PRIMARY KEY, names TEXT NOT NULL, seconds REAL NOT NULL, wall REAL NOT NULL)",
    # lives: those whose deaths were counted, with a space between: each counts once
    "CREATE TABLE IF NOT EXISTS blames (job TEXT PRIMARY KEY, count INTEGER NOT NULL, cause TEXT NOT NULL, wall REAL NOT NULL, "
    "lives TEXT NOT NULL DEFAULT '')",
)
NAMES = ("requests", "endings", "holds", "blames")
OPEN = "NOT EXISTS (SELECT 1 FROM endings e WHERE e.job = r.job)"
"""Of requests r: accepted, and not ended."""

_LATER = {  # errors of a disk that may be mended while we wait
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOMEM,
}
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
Broken = (sqlite3.Error, UnicodeDecodeError)
"""What SQLite raises, and Python in the place of an error whose text quotes damaged bytes."""


class Unwritable(Exception):
    """The disk does not take it, or give it back, now: full, read-only, failing.  Nothing of it was written; later it may be."""


def understood(path: Path, error: sqlite3.Error | UnicodeDecodeError) -> Exception:
    """What this error means: Unwritable, Misconfigured (the journal is damaged), or the error itself: our bug."""
    if isinstance(error, UnicodeDecodeError):
        return damaged(path, "what it holds is no text")
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _LATER:
        return Unwritable(str(error))
    return damaged(path, str(error)) if code in _DAMAGE else error


def damaged(path: Path, how: str) -> Misconfigured:
    remedy = "`ifmesh journal check` names the damage, `ifmesh journal restore` saves what can be read"
    return Misconfigured(f"{path}: the journal cannot be read: {how}: {remedy}; or choose another mesh.state")


def opened(path: Path, synchronous: str) -> tuple[sqlite3.Connection, int]:
    """The database, made or brought up to date where needed, with its epoch raised; and that epoch.

    synchronous: "FULL": each commit is on disk; "NORMAL": it is after an fsync of the -wal file.  Misconfigured: it is damaged, or of
    another version.  Unwritable: the disk does not take it now.
    """
    try:
        database = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
    except Broken as error:
        raise understood(path, error) from None
    try:
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # heeded by a new file only
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA synchronous = {synchronous}")
        database.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        if (found := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise damaged(path, str(found).splitlines()[0])
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, *OLDER, SCHEMA):
            raise Misconfigured(f"{path}: a journal of version {version}; this ifmesh has {SCHEMA}: choose another mesh.state")
        database.execute("BEGIN IMMEDIATE")
        if version == 3:
            _from_3(database)
        if version in OLDER:
            _renew(database, checked=version > 3)
        epoch = made(database)
        database.execute("COMMIT")
        if version == 3:
            database.execute("VACUUM")  # with it the auto_vacuum above counts
        return database, epoch
    except Broken as error:
        database.close()
        raise understood(path, error) from None
    except wire.Garbled as error:
        database.close()
        raise damaged(path, str(error)) from None
    except BaseException:
        database.close()
        raise


def made(database: sqlite3.Connection, epoch: int = 1) -> int:
    """All tables are there, and the epoch is raised; or it is this one, if there was none.  The epoch."""
    for table in TABLES:
        database.execute(table)
    database.execute(f"PRAGMA user_version = {SCHEMA}")
    database.execute("INSERT INTO meta VALUES (1, ?) ON CONFLICT DO UPDATE SET epoch = epoch + 1", (epoch,))
    raised: int = database.execute("SELECT epoch FROM meta").fetchone()[0]
    return raised


def seal(record: object) -> bytes:
    """As it is stored: SQLite does not see a bit that has flipped within a row."""
    return _sealed(wire.pack(record))


@overload
def unseal(cls: type[T], stored: bytes) -> T: ...
@overload
def unseal(cls: UnionType, stored: bytes) -> Any: ...
def unseal(cls: type[T] | UnionType, stored: bytes) -> Any:
    """What `seal` sealed: `cls`, or one of a union.  Garbled: it is not as it was stored, or of another protocol version."""
    if not isinstance(stored, bytes) or _sealed(stored[SEAL:]) != stored:
        raise wire.Garbled("its checksum is wrong")
    return wire.unpack(cls, stored[SEAL:])


def _sealed(frame: bytes) -> bytes:
    return xxh3_64_digest(frame) + frame


def ending(record: bytes) -> Ended:
    """Garbled: it is none."""
    ended: Ended = unseal(Ended, record)
    return ended


def size_of(ended: Ended) -> int:
    """Bytes of its result on disk."""
    return ended.size if isinstance(ended, Finished) else 0


def _from_3(database: sqlite3.Connection) -> None:
    """Owners and sizes."""
    for column in ("owner TEXT NOT NULL DEFAULT ''", "boot TEXT NOT NULL DEFAULT ''", "uptime REAL NOT NULL DEFAULT 0"):
        database.execute(f"ALTER TABLE requests ADD COLUMN {column}")
    database.execute("ALTER TABLE blames ADD COLUMN lives TEXT NOT NULL DEFAULT ''")
    database.execute("ALTER TABLE endings ADD COLUMN size INTEGER NOT NULL DEFAULT 0")


def _renew(database: sqlite3.Connection, checked: bool) -> None:
    """Every record as this version of the protocol writes it: since then it has gained fields at most, and each has a default.

    checked: records have checksums.
    """
    for number, record in database.execute("SELECT number, request FROM requests").fetchall():
        database.execute("UPDATE requests SET request = ? WHERE number = ?", (_sealed(_renewed(record, checked)), number))
    for number, *records in database.execute("SELECT number, ending, story, runs FROM endings").fetchall():
        renewed = [_sealed(_renewed(record, checked)) for record in records]
        row = (*renewed, size_of(ending(renewed[0])), number)
        database.execute("UPDATE endings SET ending = ?, story = ?, runs = ?, size = ? WHERE number = ?", row)


def _renewed(stored: bytes, checked: bool) -> bytes:
    """Garbled: it is not as it was stored."""
    if not checked:
        return wire.renewed(stored, OLDER[0])
    if _sealed(stored[SEAL:]) != stored:
        raise wire.Garbled("its checksum is wrong")
    return wire.renewed(stored[SEAL:], OLDER[0])

"""Is a journal sound?  Looks, and changes nothing; a coordinator may run meanwhile."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ifmesh import bags, schema, wire
from ifmesh.errors import Misconfigured
from ifmesh.journal import Runs, Story
from ifmesh.protocol import Finished
from ifmesh.request import Request
from ifmesh.shelf import Shelf

PAGE = 200  # rows in one transaction: a long one would let the log of a running coordinator grow

Told = Callable[[int, int], None]
"""So many results of so many are looked through."""


@dataclass(slots=True)
class Audit:
    """What was found.  Counts of rows; sizes in bytes.  orphans: results that belong to no job: swept at the next start.

    damages: each in words; none: the journal is sound.
    """

    state: str
    schema: int = 0
    epoch: int = 0
    open: int = 0
    ended: int = 0
    finished: int = 0
    uploads: int = 0
    database_bytes: int = 0
    log_bytes: int = 0
    results_bytes: int = 0
    orphans: list[str] = field(default_factory=list)
    damages: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.damages


def audit(state: Path, told: Told = lambda done, of: None) -> Audit:
    """Look through all of it.  Misconfigured: there is no journal here, or it cannot be read at all (rights)."""
    path, it = state / schema.FILE, Audit(str(state))
    alone = not logged(path)
    if not path.exists():
        raise Misconfigured(f"{state}: no journal here: name the folder with --state")
    it.database_bytes, it.log_bytes = path.stat().st_size, _size(path.with_name(f"{path.name}-wal"))
    shelf = Shelf(state)
    try:
        with closing(connected(path)) as database:
            _rows(it, database, told, shelf)
            _files(it, database, shelf)
    except schema.Broken as error:
        it.damages.append(f"the database: {error}")
    except PermissionError as error:
        raise Misconfigured(f"{error.filename}: {error.strerror}: look as the user whose mesh it is") from None
    return audit(state, told) if alone and logged(path) else it  # a coordinator has come meanwhile


def connected(path: Path) -> sqlite3.Connection:
    """To read.  Where nobody has it open, as its missing log tells, as a file that nobody writes: else SQLite would leave files of ours
    beside it, in the way of whose mesh it is.  sqlite3.Error."""
    how = "mode=ro" if logged(path) else "immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None)


def logged(path: Path) -> bool:
    """Has somebody opened it, who is still there, or was killed?"""
    return path.with_name(f"{path.name}-wal").exists()


def _rows(it: Audit, database: sqlite3.Connection, told: Told, shelf: Shelf) -> None:
    it.damages += [str(line) for (line,) in database.execute("PRAGMA integrity_check(20)") if line != "ok"]
    it.schema = database.execute("PRAGMA user_version").fetchone()[0]
    if it.schema != schema.SCHEMA:
        it.damages.append(f"a journal of version {it.schema}; this ifmesh has {schema.SCHEMA}: its coordinator brings 3 to 6 up to date")
        return
    row = database.execute("SELECT epoch FROM meta").fetchone()
    if row is None:
        it.damages.append("no epoch")
    it.epoch = row[0] if row else 0
    it.open = database.execute(f"SELECT count(*) FROM requests r WHERE {schema.OPEN}").fetchone()[0]
    it.finished = database.execute("SELECT count(*) FROM endings WHERE size > 0").fetchone()[0]
    for job, request in _pages(database, "requests", "job, request"):
        with _named(it, f"{job}: its request"):
            schema.unseal(Request, request)
    looked = 0
    for job, ending, story, runs, size in _pages(database, "endings", "job, ending, story, runs, size"):
        it.ended += 1
        with _named(it, f"{job}: its ending"):
            schema.unseal(Story, story)
            schema.unseal(Runs, runs)
            ended = schema.ending(ending)
            if schema.size_of(ended) != size:
                it.damages.append(f"{job}: its ending speaks of {schema.size_of(ended)} bytes, its row of {size}")
            if isinstance(ended, Finished):
                wrong = _wrong(shelf.result(job), ended)
                if wrong and _still(database, job):
                    it.damages.append(f"{job}: its result {wrong}")
                looked += 1
                told(looked, it.finished)
    without = "SELECT job FROM endings WHERE job NOT IN (SELECT job FROM requests)"
    it.damages += [f"{job}: it has an ending, and no request" for (job,) in database.execute(without)]


def _files(it: Audit, database: sqlite3.Connection, shelf: Shelf) -> None:
    claims = f"SELECT 1 FROM endings WHERE job = ?1 AND size > 0 UNION ALL SELECT 1 FROM requests r WHERE r.job = ?1 AND {schema.OPEN}"
    with suppress(FileNotFoundError):
        for job, size in shelf.stored():
            it.results_bytes += size
            if database.execute(claims, (job,)).fetchone() is None and shelf.result(job).exists():
                it.orphans.append(job)
    with suppress(FileNotFoundError):
        it.uploads = sum(1 for _ in shelf.stored_uploads())


def _pages(database: sqlite3.Connection, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
    asked, last = f"SELECT {columns}, number FROM {table} WHERE number > ? ORDER BY number LIMIT {PAGE}", 0
    while rows := database.execute(asked, (last,)).fetchall():
        yield from (row[:-1] for row in rows)
        last = rows[-1][-1]


@contextmanager
def _named(it: Audit, what: str) -> Iterator[None]:
    """A record that does not decode is a damage."""
    try:
        yield
    except wire.Garbled as error:
        it.damages.append(f"{what} cannot be read: {error}")


def _wrong(path: Path, finished: Finished) -> str:
    """How this file is not the published one; "": it is."""
    try:
        if (size := path.stat().st_size) != finished.size:
            return f"has {size} bytes instead of {finished.size}"
        whole = bags.intact(path.read_bytes(), finished.digest)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if whole else "holds other bytes than were published"


def _still(database: sqlite3.Connection, job: str) -> bool:
    """It was not forgotten meanwhile."""
    return database.execute("SELECT 1 FROM endings WHERE job = ?", (job,)).fetchone() is not None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

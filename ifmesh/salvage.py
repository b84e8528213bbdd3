"""What can still be read of a damaged journal, in a fresh one.  The old one is kept beside it, under a new name."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ifmesh import schema, wire
from ifmesh.audit import connected
from ifmesh.errors import Misconfigured
from ifmesh.journal import closed, locked
from ifmesh.request import Request
from ifmesh.shelf import fsync

GAP = 1_000_000  # numbers in a row that are tried one by one
COLUMNS = {
    "requests": "number, job, request, wall, owner, boot, uptime",
    "endings": "number, job, ending, story, runs, wall, size",
    "holds": "rowid, digest, names, seconds, wall",
    "blames": "rowid, job, count, cause, wall, lives",
}


@dataclass(slots=True)
class Salvage:
    """kept: where the old journal is now.  saved: rows, by table.  lost: what is known to be missing, in words."""

    kept: str = ""
    saved: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def restore(state: Path) -> Salvage:
    """Copy what can be read, then put it in the old one's place.  Misconfigured: no journal, a coordinator runs, another version."""
    path, fresh = state / schema.FILE, state / f"{schema.FILE}.part"
    if not path.exists():
        raise Misconfigured(f"{state}: no journal here: name the folder with --state")
    it = Salvage()
    lock = locked(state)
    try:
        fresh.unlink(missing_ok=True)
        with closing(sqlite3.connect(fresh, isolation_level=None)) as new:
            new.execute("PRAGMA auto_vacuum = INCREMENTAL")
            new.execute("BEGIN")
            schema.made(new)
            _copy(it, path, new)
            _mend(it, new)
            new.execute("COMMIT")
        fsync(fresh)
        it.kept = str(_swap(path, fresh))
    finally:
        fresh.unlink(missing_ok=True)
        os.close(lock)
    return it


def _copy(it: Salvage, path: Path, new: sqlite3.Connection) -> None:
    epoch = int(time.time())  # beyond any count of starts: no grant of the old journal is newer
    try:
        with closing(connected(path)) as old:
            old.text_factory = lambda raw: raw.decode(errors="replace")
            old.execute("SELECT count(*) FROM sqlite_master").fetchone()
            version = _one(old, "PRAGMA user_version")
            if isinstance(version, int) and version not in (0, schema.SCHEMA):
                raise Misconfigured(f"{path}: a journal of version {version}; this ifmesh restores {schema.SCHEMA}")
            known = _one(old, "SELECT epoch FROM meta")
            if isinstance(known, int):
                epoch = known
            else:
                it.lost.append(f"the epoch: {epoch} takes its place")
            for table in schema.NAMES:
                it.saved[table] = _table(it, old, new, table)
    except schema.Broken as error:  # not even a database
        it.lost.append(f"all of it: {error}")
    new.execute("UPDATE meta SET epoch = ?", (epoch,))


def _table(it: Salvage, old: sqlite3.Connection, new: sqlite3.Connection, table: str) -> int:
    columns = COLUMNS[table]
    marks = ", ".join("?" * len(columns.split(",")))
    saved = 0
    numbers = _numbers(old, table)
    for number in numbers:
        try:
            row = old.execute(f"SELECT {columns} FROM {table} NOT INDEXED WHERE rowid = ?", (number,)).fetchone()
            if row is not None:
                new.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", row)
                saved += 1
        except schema.Broken as error:
            it.lost.append(f"{table}: row {number}{_whose(old, table, number)}: {error}")
    if not numbers and _one(old, f"SELECT count(*) FROM {table} NOT INDEXED") != 0:
        it.lost.append(f"{table}: all of it")
    return saved


def _numbers(old: sqlite3.Connection, table: str) -> range:
    """From the first to the last number that can be found, in the table or its index, from either end."""
    found: set[int] = set()
    for by in ("", "NOT INDEXED"):
        for way in ("ASC", "DESC"):
            with suppress(*schema.Broken):
                found.update(n for (n,) in old.execute(f"SELECT rowid FROM {table} {by} ORDER BY rowid {way}") if isinstance(n, int))
    if not found:
        return range(0)
    return range(max(min(found), max(found) - GAP), max(found) + 1)


def _mend(it: Salvage, new: sqlite3.Connection) -> None:
    """What is there, but makes no sense: records that do not decode, and endings without a request."""
    for number, job, request in new.execute("SELECT number, job, request FROM requests").fetchall():
        try:
            schema.unseal(Request, request)
        except wire.Garbled as error:
            new.execute("DELETE FROM requests WHERE number = ?", (number,))
            it.lost.append(f"{job}: its request: {error}")
            it.saved["requests"] -= 1
    rows = new.execute("SELECT e.number, e.job, r.request, e.ending, e.story, e.runs FROM endings e LEFT JOIN requests r ON r.job = e.job")
    for number, job, request, *records in rows.fetchall():
        try:
            if request is None:
                raise wire.Garbled("its request is lost")
            closed((job, request, *records, ""))
        except wire.Garbled as error:
            new.execute("DELETE FROM endings WHERE number = ?", (number,))
            again = "" if request is None else "; it runs again"
            it.lost.append(f"{job}: its ending: {error}{again}")
            it.saved["endings"] -= 1


def _swap(path: Path, fresh: Path) -> Path:
    """The old one under its new name, with its log; then the fresh one in its place, at once."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    kept = next(p for n in range(1000) if not (p := path.with_name(f"{path.name}.damaged-{stamp}{f'-{n}' if n else ''}")).exists())
    os.link(path, kept)
    for tail in ("-wal", "-shm"):  # never beside the fresh one: SQLite would take it for its own
        with suppress(FileNotFoundError):
            path.with_name(path.name + tail).rename(kept.with_name(kept.name + tail))
    fresh.replace(path)
    fsync(path.parent)
    return kept


def _whose(old: sqlite3.Connection, table: str, number: int) -> str:
    """The job of a row that cannot be read, if the index knows it."""
    column = "digest" if table == "holds" else "job"
    with suppress(*schema.Broken):
        for (name,) in old.execute(f"SELECT {column} FROM {table} INDEXED BY sqlite_autoindex_{table}_1 WHERE +rowid = ?", (number,)):
            return f" ({name})"
    return ""


def _one(old: sqlite3.Connection, query: str) -> object:
    """None: it cannot be read."""
    with suppress(*schema.Broken):
        row = old.execute(query).fetchone()
        return row[0] if row else None
    return None

"""Whom the coordinator of a state folder lets in: its table STATE/keys/authorized, and the keys of its own processes beside it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ifmesh import identity
from ifmesh.errors import Misconfigured
from ifmesh.identity import COORDINATOR, JOINED, Identity
from ifmesh.request import STAGES
from ifmesh.table import HEAD, Entry, Table

__all__ = ["Authorized", "Entry", "add", "expire", "invite", "make_folder", "prepare", "read", "remove", "renew", "rotate"]

FILE = "authorized"
OWN = {"operator": "operator", **{f"worker-{stage}": f"worker:{stage}" for stage in STAGES}}
"""The names that `prepare` makes keys for, each in a file NAME.key, and their roles."""

_MOST = 4 << 20  # bytes of the table
_YOUNG = 100_000_000  # ns; what has changed so shortly before it is read may change again without the file's times showing it


class Authorized:
    """The table as it is now.  Empty until the first `refresh`."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.number = 0
        """1 for the first table, one more with each change."""
        self._clock = clock
        self._seen: tuple[int, ...] | None = None
        self._wrong = ""
        self._all: tuple[Entry, ...] = ()
        self._valid: dict[str, Entry] = {}

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Those that were valid at the last `refresh`."""
        return tuple(self._valid.values())

    def find(self, public: str, wall: float) -> Entry | None:
        """Whose key this is; None: nobody's, or no longer at this time."""
        entry = self._valid.get(public)
        return entry if entry is not None and entry.valid(wall) else None

    def refresh(self) -> bool:
        """Look at the file again, if it has changed, and at the time.  True when the table is another, also because a key ran out.

        Misconfigured, once for each time that the file is spoilt: it is not there, others may write it, or a line is wrong.  Then the
        table stays what it was, but for what runs out.
        """
        wrong, had = self._read(), self.number
        now = self._clock()
        valid = {entry.public: entry for entry in self._all if entry.valid(now)}
        if valid != self._valid or not had:
            self._valid = valid
            self.number += 1
        fresh, self._wrong = wrong != self._wrong, wrong
        if wrong and fresh:
            raise Misconfigured(wrong)
        return self.number != had

    def _read(self) -> str:
        """What is wrong with the file; "": nothing."""
        seen = _times(self.path)
        if seen == self._seen:
            return self._wrong
        settled = not seen or time.time_ns() - seen[0] > _YOUNG
        self._seen = seen if settled else None
        try:
            self._all = read(self.path).entries
        except Misconfigured as error:
            return str(error)
        return ""


def add(path: Path, entry: Entry) -> None:
    """Let one more in, under a name that no valid key has.  Misconfigured: it has, or the entry or the table is wrong."""
    with _changed(path) as table:
        table.drop(entry.name, lambda old: not old.valid(time.time()))
        if table.of(entry.name):
            raise Misconfigured(f"{entry.name}: there is a key of this name: take another name, or `ifmesh keys rotate {entry.name}`")
        table.put(entry)


def rotate(path: Path, entry: Entry, until: float) -> None:
    """Let a new key in under its name; those that the name has end then, if not earlier.  Misconfigured, as `add`."""
    with _changed(path) as table:
        table.drop(entry.name, lambda old: not old.valid(time.time()))
        table.expire(entry.name, until, lambda old: old.valid(until))
        table.put(entry)


def remove(path: Path, name: str) -> int:
    """Let nobody of this name in any more; how many keys it had."""
    with _changed(path) as table:
        return table.drop(name)


def expire(path: Path, name: str, until: float) -> int:
    """The keys of this name are valid until then; how many it has."""
    with _changed(path) as table:
        return table.expire(name, until)


def invite(state: Path, name: str, role: str, url: str = "", until: float | None = None) -> Identity:
    """A new key, let in: all that somebody of this role needs to connect to the mesh of the state folder.

    url: where its coordinator is found.  until: as in Entry.  Misconfigured: the name is taken or is no name, or the table is damaged.
    """
    server = prepare(state)
    if name in OWN or name == COORDINATOR:
        raise Misconfigured(f"{name}: the mesh's own name: take another")
    made = Identity(name, role, identity.generate(), server.keys.public, url)
    identity.dumps(made)
    add(state / "keys" / FILE, Entry(name, role, made.keys.public, until))
    return made


def renew(state: Path, name: str, until: float, url: str = "") -> Identity:
    """A new key for a name; the old ones are valid until then.  One of the mesh's own is in its file when this returns.

    Misconfigured: there is no such name, or the table is damaged.
    """
    folder, server = state / "keys", prepare(state)
    roles = OWN | {entry.name: entry.role for entry in read(folder / FILE).entries}
    if name not in roles:
        raise Misconfigured(f"{name}: no such key: `ifmesh keys list`, or `ifmesh invite {name}`")
    made = Identity(name, roles[name], identity.generate(), server.keys.public, url)
    rotate(folder / FILE, Entry(name, made.role, made.keys.public), until)
    if name in OWN:
        made = replace(made, coordinator=identity.read(folder / f"{name}.key").coordinator)
        identity.write(folder / f"{name}.key", made)
    return made


def prepare(state: Path, url: str = "") -> Identity:
    """The coordinator's identity.  Where there is none yet, makes the mesh's own keys: its own, the operator's, one for each stage.

    Idempotent, and safe when two do it at once.  What was made before is not let in again: revoked is revoked.  url: where those who get
    a new one find the coordinator; "": as the state folder says.  Misconfigured: a file is damaged or open to others, or the state folder
    is that of a client of another mesh (`ifmesh join`).
    """
    folder = state / "keys"
    make_folder(folder)
    if (folder / JOINED).exists():
        remedy = f"take another state folder (--state), or leave that mesh: rm {folder / JOINED}"
        raise Misconfigured(f"{state}: this state folder has joined another mesh: {remedy}")
    with _lock(folder):
        own = _kept(folder / f"{COORDINATOR}.key")
        if own is None:
            keys = identity.generate()
            own = Identity(COORDINATOR, COORDINATOR, keys, keys.public, url)
            identity.write(folder / f"{COORDINATOR}.key", own)
        _provide(folder, own.keys.public, url)
    return own


def read(path: Path) -> Table:
    """The table of a file.  Misconfigured: there is none, others may change it, or a line is wrong."""
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(_MOST + 1)
    except OSError as error:
        raise Misconfigured(f"{path}: {error.strerror or error}") from None
    if mode & 0o022:
        raise Misconfigured(f"{path}: others may change it (mode {mode:04o}): chmod 600 {path}")
    if len(text) > _MOST:
        raise Misconfigured(f"{path}: more than {_MOST} bytes")
    try:
        return Table(text)
    except Misconfigured as error:
        raise Misconfigured(f"{path}: {error}") from None


def make_folder(folder: Path) -> None:
    """A folder that is ours alone.  Misconfigured: it is somebody else's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Misconfigured(f"{folder}: no folder, or somebody else's: move it away")
    if found.st_mode & 0o077:
        folder.chmod(0o700)


# ---- inside


def _provide(folder: Path, server: str, url: str) -> None:
    """The files of the mesh's own processes and their lines.  The lines come first: whoever has a file was let in once."""
    path = folder / FILE
    fresh = not path.exists()
    table = Table(HEAD) if fresh else read(path)
    changed, write = fresh, []
    for name, role in OWN.items():
        kept = _kept(folder / f"{name}.key")
        found = replace(kept, server=server) if kept else Identity(name, role, identity.generate(), server, url)
        if fresh or not kept:
            table.drop(name)
            table.put(Entry(name, role, found.keys.public))
            changed = True
        if found != kept:  # it is new, or the coordinator has a new key
            write.append(found)
    if changed:
        identity.put(path, table.text())
    for each in write:
        identity.write(folder / f"{each.name}.key", each)


@contextlib.contextmanager
def _changed(path: Path) -> Iterator[Table]:
    """The table, changed by one at a time, and written at the end unless something is raised."""
    make_folder(path.parent)
    with _lock(path.parent):
        table = read(path) if path.exists() else Table(HEAD)
        before = table.lines
        yield table
        if table.lines != before:
            identity.put(path, table.text())


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Of a file of its own: the table is replaced when it is written."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _kept(path: Path) -> Identity | None:
    return identity.read(path) if path.exists() else None


def _times(path: Path) -> tuple[int, ...]:
    """What changes with the file; (): it is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_mode)

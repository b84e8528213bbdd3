"""The text of the table of authorised keys.

A line for each key: NAME ROLE PUBLIC-KEY [UNTIL], where UNTIL is a time in UTC, as in 2027-01-31T12:00:00Z; after it, or on a line of its
own, a comment that begins with #.  A name has one role; during a rotation it has two keys.  There is no secret in it, and errors show
nothing of it all the same: somebody may have put one there by mistake.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from ifmesh.errors import Misconfigured
from ifmesh.identity import ROLES, check_name, is_key

HEAD = b"""\
# Who may speak with this mesh: NAME ROLE PUBLIC-KEY [UNTIL, as in 2027-01-31T12:00:00Z].  A running coordinator sees every change.
# `ifmesh invite` and `ifmesh keys` write here; so may you.  A line that is taken out ends what it allowed at once.
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key.  until: seconds since 1970 (UTC) from which on it counts for nothing; None: no end."""

    name: str
    role: str
    public: str
    until: float | None = None

    def valid(self, wall: float) -> bool:
        return self.until is None or wall < self.until


MOST_WORKERS = 2000
"""Keys of workers: each worker is told all of them in one message (`protocol.Trusted`: 256 KiB)."""

Line = tuple[str, Entry | None]
"""As it stands there, and what it says; None: nothing."""


class Table:
    """The lines of a table, to be changed; comments stay where they are.  Misconfigured names the line that is wrong."""

    def __init__(self, text: bytes) -> None:
        self.lines = _parsed(text)

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(entry for _, entry in self.lines if entry is not None)

    def of(self, name: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.name == name]

    def text(self) -> str:
        return "".join(f"{line}\n" for line, _ in self.lines)

    def put(self, entry: Entry) -> None:
        """One more, at the end.  Misconfigured: it is there already, or is none."""
        lines = [*self.lines, _line(entry)]
        _check_unique(lines)
        self.lines = lines

    def drop(self, name: str, which: Callable[[Entry], bool] = lambda _: True) -> int:
        """Take the keys of this name out, or those of them which...; how many there were."""
        before = len(self.lines)
        self.lines = [(line, entry) for line, entry in self.lines if entry is None or entry.name != name or not which(entry)]
        return before - len(self.lines)

    def expire(self, name: str, until: float, which: Callable[[Entry], bool] = lambda _: True) -> int:
        """The keys of this name, or those of them which ..., are valid until then; how many there are."""
        chosen = {entry for entry in self.of(name) if which(entry)}
        self.lines = [(line, entry) if entry not in chosen else _line(replace(entry, until=until)) for line, entry in self.lines]
        return len(chosen)


def written(until: float) -> str:
    """A time as the table has it.  Misconfigured: none before the year 10000."""
    try:
        if not math.isfinite(until):
            raise ValueError
        return datetime.fromtimestamp(until, UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        raise Misconfigured("until: no time before the year 10000") from None


# ---- inside


def _parsed(text: bytes) -> list[Line]:
    lines: list[Line] = []
    for number, raw in enumerate(text.removesuffix(b"\n").split(b"\n"), 1):
        try:
            line = raw.removesuffix(b"\r").decode()
            lines.append((line, _entry(line)))
        except UnicodeDecodeError:
            raise Misconfigured(f"line {number}: not UTF-8") from None
        except Misconfigured as error:
            raise Misconfigured(f"line {number}: {error}") from None
    _check_unique(lines)
    return lines


def _check_unique(lines: Sequence[Line]) -> None:
    """One key, one line; one name, one role."""
    keys: dict[str, int] = {}
    roles: dict[str, str] = {}
    workers = 0
    for number, (_, entry) in enumerate(lines, 1):
        if entry is None:
            continue
        if (first := keys.setdefault(entry.public, number)) != number:
            raise Misconfigured(f"line {number}: this key is in line {first} already: take one of them out")
        if (role := roles.setdefault(entry.name, entry.role)) != entry.role:
            raise Misconfigured(f"line {number}: {entry.name} is {role} in another line: one name, one role")
        workers += entry.role.startswith("worker:")
        if workers > MOST_WORKERS:
            raise Misconfigured(f"line {number}: more than {MOST_WORKERS} keys of workers: let workers of a stage share one")


def _entry(line: str) -> Entry | None:
    words = line.split()
    if not words or words[0].startswith("#"):
        return None
    if len(words) < 3:
        raise Misconfigured(f"NAME ROLE PUBLIC-KEY [UNTIL], but it has {len(words)} words")
    name, role, public, *rest = words
    check_name(name)
    if role not in ROLES:
        raise Misconfigured(f"no such role; there are: {', '.join(ROLES)}")
    if not is_key(public):
        raise Misconfigured("no public key: 40 characters of Z85, as `ifmesh keys list --json` shows them")
    said = rest[0] if rest and not rest[0].startswith("#") else ""
    if said and len(rest) > 1 and not rest[1].startswith("#"):
        raise Misconfigured("too many words; a comment begins with #")
    return Entry(name, role, public, _time(said) if said else None)


def _time(said: str) -> float:
    """A time without a zone is UTC."""
    try:
        found = datetime.fromisoformat(said)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        raise Misconfigured("no time, as in 2027-01-31T12:00:00Z") from None


def _line(entry: Entry) -> Line:
    """Misconfigured: it would be read as something else."""
    line = " ".join((entry.name, entry.role, entry.public, *(() if entry.until is None else (written(entry.until),))))
    again = _entry(line)
    if again is None or (again.name, again.role, again.public) != (entry.name, entry.role, entry.public):
        raise Misconfigured("entry: a name, a role or a key that holds what it may not")
    return line, again

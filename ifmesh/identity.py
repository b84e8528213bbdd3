"""Who a process is: a key pair with a name and a role, and the key of the coordinator whom it trusts.

As text it is an invite, one line to paste: "ifmesh1." and then base64url of a JSON list and a checksum.  A file with this line, which
nobody else may read, is an identity file.  Errors never hold the text: it is a secret.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

from ifmesh.errors import Misconfigured
from ifmesh.request import STAGES

ROLES = ("client", *(f"worker:{stage}" for stage in STAGES), "supervisor", "gateway", "operator")
"""Whom a coordinator lets in.  What each may say is in `roles`."""
COORDINATOR = "coordinator"
"""The role of the coordinator itself."""
JOINED = "joined.key"
"""Of the mesh that a state folder has joined as a client, in its folder keys."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")

_MARK = "ifmesh1."
_CHECK = 8  # bytes of SHA-256: they find what a bad copy has spoilt, and keep nobody from making invites
_LONGEST = 4096  # characters
_URL = re.compile(r"(tcp|ipc)://[!-~]{1,500}")
_Z85 = {letter: i for i, letter in enumerate("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#")}
_AROUND = "\"'`\ufeff\u200b"  # what clings to a line that was copied from a mail or a page


@dataclass(frozen=True, slots=True)
class Keys:
    """A CURVE key pair, each half 40 characters of Z85."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Identity:
    """name, role: as in the coordinator's table.  server: the coordinator's public key.  coordinator: its URL; "": the state folder's."""

    name: str
    role: str
    keys: Keys
    server: str
    coordinator: str = ""


def generate() -> Keys:
    """A new pair."""
    import zmq

    public, secret = zmq.curve_keypair()
    return Keys(public.decode(), secret.decode())


def is_key(text: str) -> bool:
    """Is this half of a CURVE pair in Z85: 40 characters, 5 for each 4 bytes?"""
    if len(text) != 40 or not set(text) <= _Z85.keys():
        return False
    numbers = [_Z85[letter] for letter in text]
    return all(sum(n * 85 ** (4 - i) for i, n in enumerate(numbers[at : at + 5])) < 1 << 32 for at in range(0, 40, 5))


def tag(public: str) -> str:
    """16 hex digits that stand for a key where people look: in lists, and at the start of its holders' routing ids."""
    return hashlib.sha256(public.encode()).hexdigest()[:16]


def dumps(identity: Identity) -> str:
    """The invite: one line of printable ASCII, without a space.  Misconfigured: it could not be read again."""
    told = [identity.name, identity.role, identity.keys.secret, identity.server, identity.coordinator]
    _built(told)
    body = json.dumps(told, separators=(",", ":")).encode()
    return _MARK + _coded(body + _checksum(body))


def loads(text: str) -> Identity:
    """The identity of an invite, however it was wrapped when it was pasted.  Misconfigured tells what is wrong, never the text."""
    text = "".join(text.split()).strip(_AROUND)
    if len(text) > _LONGEST:
        raise Misconfigured(f"invite: {len(text)} characters; at most {_LONGEST}")
    if not text.startswith(_MARK):
        other = re.match(r"ifmesh\d+\.", text)
        raise Misconfigured(
            "invite: of another version of ifmesh: ask for one made by this version" if other else f"invite: it begins with {_MARK}"
        )
    spoilt = Misconfigured("invite: damaged, a character is missing or wrong: copy the whole line")
    try:
        whole = base64.urlsafe_b64decode(text[len(_MARK) :] + "=" * (-(len(text) - len(_MARK)) % 4))
    except (binascii.Error, ValueError):
        raise spoilt from None
    body, check = whole[:-_CHECK], whole[-_CHECK:]
    if check != _checksum(body) or _coded(whole) != text[len(_MARK) :]:  # the last: base64 has letters whose last bits nobody reads
        raise spoilt
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise spoilt from None
    return _built(told)


def read(path: Path) -> Identity:
    """The identity in a file.  Misconfigured: there is none, others may read it, or it is damaged."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), encoding="utf-8", errors="replace") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise Misconfigured(f"{path}: not a file")
            if found.st_mode & 0o077:
                mode = f"{stat.S_IMODE(found.st_mode):04o}"
                raise Misconfigured(f"{path}: it holds a secret, but others may read or write it (mode {mode}): chmod 600 {path}")
            text = file.read(2 * _LONGEST)
    except OSError as error:
        raise Misconfigured(f"{path}: {error.strerror or error}") from None
    try:
        return loads(text)
    except Misconfigured as error:
        raise Misconfigured(f"{path}: {error}") from None


def write(path: Path, identity: Identity) -> None:
    """The file, readable for its owner alone; whole, or not at all, even if the power fails.  OSError: it cannot be written."""
    put(path, dumps(identity) + "\n")


def put(path: Path, text: str) -> None:
    """Make or replace a file that is its owner's alone (0600): whole on the disk, or not at all."""
    part = path.with_name(f".{path.name}.{token_hex(6)}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)  # whatever the umask is
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    with _folder(path.parent) as folder:
        os.fsync(folder)


# ---- inside


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        os.close(folder)


def _built(told: object) -> Identity:
    import zmq

    if not (isinstance(told, list) and len(told) == 5 and all(isinstance(part, str) for part in told)):
        raise Misconfigured("invite: not what this version of ifmesh writes: ask for a new one")
    name, role, secret, server, url = told
    check_name(name)
    if role not in (*ROLES, COORDINATOR):
        raise Misconfigured(f"invite: no such role; there are: {', '.join(ROLES)}")
    if not is_key(secret) or not is_key(server):
        raise Misconfigured("invite: no key where one should be: ask for a new one")
    if url and not _URL.fullmatch(url):
        raise Misconfigured("invite: no address of a coordinator, as in tcp://10.0.0.7:7640")
    return Identity(name, role, Keys(zmq.curve_public(secret.encode()).decode(), secret), server, url)


def check_name(name: str) -> None:
    """Misconfigured: no name for a key."""
    if not NAME.fullmatch(name):
        raise Misconfigured("name: 1 to 64 letters, digits, '_', '-' or '.'; the first a letter, a digit or '_'")


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(_MARK.encode() + body).digest()[:_CHECK]


def _coded(whole: bytes) -> str:
    return base64.urlsafe_b64encode(whole).decode().rstrip("=")

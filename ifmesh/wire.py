"""Message <-> msgpack frame, validated at the door.

A frame is one map {"v": VERSION, "is": "Submit", ...fields}.  Decoding is total: any bytes give a message or Garbled, whose text never
holds what was sent.  Encoding is as strict: what we could not read ourselves is not sent.
"""

from __future__ import annotations

from types import UnionType
from typing import Any, Generic, TypeVar, get_args, overload

import msgpack  # type: ignore[import-untyped]

from ifmesh import protocol, typed
from ifmesh.protocol import VERSION, Header, ToClient, ToCoordinator, ToParent, ToWorker

M = TypeVar("M")
T = TypeVar("T")
Frame = bytes | memoryview

# msgpack alone lets 8 MB of empty maps become 8 million dicts: 4 s and 578 MB.
_LIMITS: dict[str, int] = {
    "max_str_len": 65536,
    "max_bin_len": 65536,
    "max_array_len": typed.MOST_ENTRIES,
    "max_map_len": typed.MOST_KEYS,
    "max_ext_len": 0,
}
_SAFE = min(typed.MOST_ENTRIES, typed.MOST_KEYS * 2)  # bytes: in a smaller frame nothing can exceed a limit
_RECORD = 16 << 20  # bytes of one record in the journal


class Garbled(Exception):
    """Bytes that are not what they should be.  The text tells what is wrong, never what was sent."""


class VersionMismatch(Garbled):
    """The other side speaks another version of the protocol.  Both are in the text."""

    def __init__(self, ours: int, theirs: int) -> None:
        self.ours, self.theirs = ours, theirs
        super().__init__(f"protocol version {theirs}, but this side speaks version {ours}: run the same ifmesh on both sides")


class Door(Generic[M]):
    """One direction.  name: for errors; messages: a union, or one class; limit: bytes of a frame."""

    def __init__(self, name: str, messages: object, limit: int) -> None:
        self.name, self.limit = name, limit
        self._classes: dict[str, type] = {cls.__name__: cls for cls in get_args(messages) or (messages,)}

    def encode(self, message: M) -> bytes:
        """Garbled: it does not belong here, is too large, or holds what has no place on the wire (NaN, half a surrogate pair)."""
        kind = type(message)
        if self._classes.get(kind.__name__) is not kind:
            raise Garbled(f"{kind.__name__} is no message {self.name}")
        try:
            frame: bytes = msgpack.packb({"v": VERSION, "is": kind.__name__, **typed.plain(message)})
        except Exception as error:  # msgpack raises whatever it likes
            raise Garbled(f"{kind.__name__} {self.name}: cannot be encoded: {type(error).__name__}") from None
        if len(frame) > self.limit:
            raise Garbled(f"{kind.__name__} {self.name}: {len(frame)} bytes; at most {self.limit}")
        if len(frame) > _SAFE:
            self.decode(frame)
        return frame

    def decode(self, frame: Frame) -> M:
        """Garbled, or VersionMismatch, and nothing else."""
        if len(frame) > self.limit:
            raise Garbled(f"{len(frame)} bytes {self.name}; at most {self.limit}")
        data = _unpacked(frame)
        if not isinstance(data, dict):
            raise Garbled("no map")
        theirs, name = data.get("v"), data.get("is")
        if type(theirs) is not int:
            raise Garbled("no protocol version")
        if theirs != VERSION:
            raise VersionMismatch(VERSION, theirs)
        cls = self._classes.get(name) if isinstance(name, str) else None
        if cls is None:
            known = isinstance(name, str) and name in _NAMES  # any other name is a stranger's text
            raise Garbled(f"{name} is no message {self.name}" if known else f"no message {self.name}")
        try:
            message: M = typed.build(cls, data)
        except typed.Mismatch as wrong:
            raise Garbled(f"{cls.__name__}: {wrong.place}: {wrong.remedy}") from None
        return message


def pack(record: object) -> bytes:
    """A dataclass as one frame, for the journal."""
    return Door[object]("in the journal", type(record), _RECORD).encode(record)


@overload
def unpack(cls: type[T], frame: Frame) -> T: ...
@overload
def unpack(cls: UnionType, frame: Frame) -> Any: ...
def unpack(cls: type[T] | UnionType, frame: Frame) -> Any:
    """What `pack` packed: `cls`, or one of a union.  Garbled, or VersionMismatch."""
    return Door[Any]("in the journal", cls, _RECORD).decode(frame)


def renewed(frame: Frame, oldest: int) -> bytes:
    """A record of the journal that an older version packed, but none before the oldest, as this one packs it.  Only for classes that have
    since gained nothing but fields with defaults.  Garbled: it is no such record."""
    data = _unpacked(frame)
    if not isinstance(data, dict) or data.get("v") not in range(oldest, VERSION):
        raise Garbled(f"no record of protocol version {oldest} to {VERSION - 1}")
    again: bytes = msgpack.packb({**data, "v": VERSION})
    return again


def _unpacked(frame: Frame) -> object:
    try:
        return msgpack.unpackb(frame, strict_map_key=True, **_LIMITS)
    except Exception as error:  # ValueError, UnicodeDecodeError, ExtraData, FormatError, StackError ...
        raise Garbled(f"not msgpack: {type(error).__name__}") from None


_NAMES = frozenset(name for name, value in vars(protocol).items() if isinstance(value, type))

TO_COORDINATOR: Door[ToCoordinator] = Door("to the coordinator", ToCoordinator, 256 << 10)
TO_WORKER: Door[ToWorker] = Door("to a worker", ToWorker, 256 << 10)
TO_CLIENT: Door[ToClient] = Door("to a client", ToClient, 1 << 20)  # Books hold a page of rows, and stories
TO_PARENT: Door[ToParent] = Door("to a worker's parent", ToParent, 64 << 10)
HEADER: Door[Header] = Door("before a bag", Header, 1 << 10)

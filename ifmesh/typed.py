"""Plain data to frozen dataclasses by their type hints, and back: total, strict, and bounded.

What a field may be: int, float, str, bool, bytes, Path, None, Literal, Enum, tuples, dict[str, T], unions of these, other dataclasses.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from functools import cache
from itertools import repeat
from operator import attrgetter
from pathlib import Path
from reprlib import Repr
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
MOST_ENTRIES = 4096  # of a tuple
MOST_KEYS = 256  # of a dict

_Build = Callable[[Any, bool], Any]
"""(plain value, are unknown fields an error) -> the value as its type hint says; raises _Wrong."""


class Mismatch(Exception):
    """The data is not what the type says.

    where: the dotted name of what is wrong.  value: as given.  remedy: what would be right.  place: `where` without any key that
    the data chose: fit for a log that must not hold what a stranger sent.
    """

    def __init__(self, where: str, value: object, remedy: str, place: str = "") -> None:
        self.where, self.value, self.remedy, self.place = where, value, remedy, place or where
        super().__init__(f"{where}: {remedy}" if value is None else f"{where}: {_SHORT.repr(value)}: {remedy}")


def build(cls: type[T], data: object, where: str = "", unknown: Literal["ignore", "error"] = "ignore") -> T:
    """`cls` from a mapping of its fields.  unknown: what fields are that it does not have.  Raises nothing but Mismatch."""
    try:
        hint: Any = cls
        made: T = _builder(hint)(data, unknown == "error")
        return made
    except _Wrong as wrong:
        named, safe = _joined(where, wrong.path), _joined(where, ["*" if isinstance(p, _Key) else p for p in wrong.path])
        raise Mismatch(named or cls.__name__, wrong.value, wrong.remedy, safe or cls.__name__) from None


def plain(value: object) -> Any:
    """A dataclass as plain data: dicts, lists and scalars.  Mismatch: a number that is not finite, or a type with no plain form."""
    kind: Any = type(value)
    return value if kind in _SCALARS else _plainer(kind)(value)


# ---- inside

_SCALARS = frozenset({str, int, bool, bytes, type(None)})


@cache
def _plainer(kind: Any) -> Callable[[Any], Any]:
    """What makes plain data of this type's values."""
    if issubclass(kind, float):
        return _finite
    if issubclass(kind, tuple | list):
        return lambda value: [v if type(v) in _SCALARS else plain(v) for v in value]
    if issubclass(kind, Mapping):
        return lambda value: {k: plain(v) for k, v in value.items()}
    if is_dataclass(kind):
        return _plain_fields(tuple(f.name for f in fields(kind)))
    if issubclass(kind, Enum):
        return attrgetter("value")
    if issubclass(kind, Path):
        return str
    return _formless


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise Mismatch("value", value, "a finite number")
    return value


def _plain_fields(names: tuple[str, ...]) -> Callable[[Any], Any]:
    def plainly(value: Any) -> dict[str, Any]:
        data = {name: getattr(value, name) for name in names}
        for name, v in data.items():
            if type(v) not in _SCALARS:
                data[name] = plain(v)
        return data

    return plainly


def _formless(value: object) -> Any:
    raise Mismatch("value", type(value).__name__, "has no plain form")


class _Wrong(Exception):
    """A Mismatch on its way out; path: from the inside to the outside."""

    def __init__(self, value: object, remedy: str, *path: str | int | _Key) -> None:
        self.value, self.remedy = value, remedy
        self.path = list(path)


@dataclass(frozen=True, slots=True)
class _Key:
    """A step of a path that the data chose, not we."""

    text: str


class _Short(Repr):
    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 256 else "a huge number"  # repr of one beyond 4300 digits raises

    def repr_str(self, x: str, level: int) -> str:
        return repr(x if len(x) <= 60 else x[:57] + "...")


_SHORT = _Short()


def _joined(where: str, path: list[str | int | _Key]) -> str:
    for part in reversed(path):
        if isinstance(part, int):
            where += f"[{part}]"
        else:
            text = part.text if isinstance(part, _Key) else part
            where += f".{text}" if where else text
    return where


@cache
def _builder(hint: Any) -> _Build:
    """The way to build what the type hint says; made once for each hint."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if origin in (Union, types.UnionType):
        return _union(args)
    if origin is Literal:
        return _literal(args)
    if origin is tuple:
        return _tuple(args[0]) if len(args) == 2 and args[1] is Ellipsis else _fixed(args)
    if isinstance(origin, type) and issubclass(origin, Mapping) and len(args) == 2 and args[0] is str:
        return _dict(args[1])
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return _dataclass(hint)
    raise TypeError(f"no way to build {hint!r} from plain data")  # our own bug, at the first use of the class


def _dataclass(cls: type) -> _Build:
    hints = get_type_hints(cls)
    parts = [(f.name, _builder(hints[f.name]), f.default is MISSING and f.default_factory is MISSING) for f in fields(cls) if f.init]
    names = frozenset(name for name, _, _ in parts)

    def make(data: Any, strict: bool) -> Any:
        if not isinstance(data, Mapping):
            raise _Wrong(data, f"named fields: {', '.join(sorted(names)) or 'none'}")
        if strict:
            _known(data, names)
        found: dict[str, Any] = {}
        name = ""
        try:
            for name, part, required in parts:
                if name in data:
                    found[name] = part(data[name], strict)
                elif required:
                    raise _Wrong(None, "missing")
        except _Wrong as wrong:
            wrong.path.append(name)
            raise
        return cls(**found)

    return make


def _known(data: Mapping[Any, Any], names: frozenset[str]) -> None:
    for key in data:
        if key in names:
            continue
        text = key if isinstance(key, str) else _SHORT.repr(key)
        near = _near(text, names)
        remedy = f"unknown; did you mean {near[0]}?" if near else f"unknown; one of {', '.join(sorted(names)) or 'none'}"
        raise _Wrong(data[key], remedy, _Key(text))


def _near(text: str, names: Iterable[str]) -> list[str]:
    return get_close_matches(text, names, n=1, cutoff=0.5) if len(text) <= 64 else []  # difflib is quadratic


def _int(data: Any, strict: bool) -> int:
    if type(data) is int and -(2**63) <= data < 2**64:
        return data
    if not isinstance(data, int) or isinstance(data, bool):
        raise _Wrong(data, "a whole number")
    if not -(2**63) <= data < 2**64:
        raise _Wrong(f"a number of {data.bit_length()} bits", "a whole number of at most 64 bits")
    return int(data)


def _float(data: Any, strict: bool) -> float:
    if isinstance(data, float) and math.isfinite(data):
        return data
    if not isinstance(data, int) or isinstance(data, bool):
        raise _Wrong(data, "a finite number")
    return float(_int(data, strict))


def _exactly(kind: type, remedy: str) -> _Build:
    def make(data: Any, strict: bool) -> Any:
        if not isinstance(data, kind):
            raise _Wrong(data, remedy)
        return data

    return make


def _path(data: Any, strict: bool) -> Path:
    if not isinstance(data, str | Path):
        raise _Wrong(data, "a path")
    return Path(data)


_SIMPLE: dict[Any, _Build] = {
    int: _int,
    float: _float,
    str: _exactly(str, "text"),
    bool: _exactly(bool, "true or false"),
    bytes: _exactly(bytes, "bytes"),
    type(None): _exactly(type(None), "nothing"),
    Path: _path,
}


def _union(args: tuple[Any, ...]) -> _Build:
    makers = [_builder(a) for a in args if a is not type(None)]
    optional = len(makers) < len(args)

    def make(data: Any, strict: bool) -> Any:
        if data is None and optional:
            return None
        if len(makers) == 1:
            return makers[0](data, strict)
        remedies: list[str] = []
        for maker in makers:
            try:
                return maker(data, strict)
            except _Wrong as wrong:
                remedies.append(wrong.remedy)
        raise _Wrong(data, " or ".join(remedies))

    return make


def _literal(choices: tuple[Any, ...]) -> _Build:
    kinds = {type(c) for c in choices}

    def make(data: Any, strict: bool) -> Any:
        if type(data) not in kinds or data not in choices:
            near = _near(data, [c for c in choices if isinstance(c, str)]) if isinstance(data, str) and strict else []
            raise _Wrong(data, f"one of {', '.join(map(str, choices))}" + (f"; did you mean {near[0]}?" if near else ""))
        return data

    return make


def _tuple(hint: Any) -> _Build:
    part = _builder(hint)

    def make(data: Any, strict: bool) -> tuple[Any, ...]:
        _listed(data)
        if len(data) > MOST_ENTRIES:
            raise _Wrong(f"{len(data)} entries", f"at most {MOST_ENTRIES} entries")
        return _entries(repeat(part), data, strict)

    return make


def _fixed(hints: tuple[Any, ...]) -> _Build:
    parts = [_builder(h) for h in hints]

    def make(data: Any, strict: bool) -> tuple[Any, ...]:
        _listed(data)
        if len(data) != len(parts):
            raise _Wrong(data, f"exactly {len(parts)} entries")
        return _entries(parts, data, strict)

    return make


def _listed(data: Any) -> None:
    if not isinstance(data, list | tuple):
        raise _Wrong(data, "a list")


def _entries(parts: Iterable[_Build], data: Sequence[Any], strict: bool) -> tuple[Any, ...]:
    made: list[Any] = []
    try:
        for part, value in zip(parts, data, strict=False):  # there may be more parts
            made.append(part(value, strict))
    except _Wrong as wrong:
        wrong.path.append(len(made))
        raise
    return tuple(made)


def _dict(hint: Any) -> _Build:
    part = _builder(hint)

    def make(data: Any, strict: bool) -> dict[str, Any]:
        if not isinstance(data, Mapping):
            raise _Wrong(data, "named values")
        if len(data) > MOST_KEYS:
            raise _Wrong(f"{len(data)} names", f"at most {MOST_KEYS} names")
        found: dict[str, Any] = {}
        for key, value in data.items():
            if not isinstance(key, str):
                raise _Wrong(key, "names that are text")
            try:
                found[key] = part(value, strict)
            except _Wrong as wrong:
                wrong.path.append(_Key(key))
                raise
        return found

    return make


def _enum(cls: type[Enum]) -> _Build:
    literal = _literal(tuple(member.value for member in cls))

    def make(data: Any, strict: bool) -> Enum:
        return data if isinstance(data, cls) else cls(literal(data, strict))

    return make

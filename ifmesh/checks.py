"""What every part of the configuration is held to.  Each raises Misconfigured, which names the key, the value and what would be right."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar
from urllib.parse import urlsplit

from ifmesh import typed
from ifmesh.errors import Misconfigured

UNITS = {"": 1} | {f"{kilo}{i}": (1024 if i else 1000) ** n for n, kilo in enumerate("kMGT", 1) for i in ("", "i")}
DEVICES = "auto, cpu, cuda or cuda:N"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")

T = TypeVar("T")


def built(cls: type[T], table: Mapping[str, object], where: str) -> T:
    """A frozen dataclass of a table; every key is one of its fields."""
    try:
        return typed.build(cls, table, where, unknown="error")
    except typed.Mismatch as error:
        raise Misconfigured(str(error)) from None


def bounded(key: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise Misconfigured(f"{key}: {value!r}: from {least:.16g} to {most:.16g}")


def device(key: str, value: str, named: bool = False) -> None:
    """named: one of them, with its number: what shares its memory is told by the name."""
    kind, _, number = value.partition(":")
    if named and value != "cpu" and not (kind == "cuda" and number.isdecimal()):
        raise Misconfigured(f'{key}: {value!r}: cpu or cuda:N, as in [memory] "cuda:0" = "14GB"')
    if kind not in ("auto", "cpu", "cuda") or (value != kind and not (kind == "cuda" and number.isdecimal())):
        raise Misconfigured(f"{key}: {value!r}: {DEVICES}")


def size(key: str, value: object) -> int:
    """Bytes, of a number or of "14GB", "14.5GB", "900MB", "13GiB" ..."""
    said = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]i?)?B?\s*", str(value)) if type(value) in (int, str) else None
    number = float(said[1]) * UNITS[said[2] or ""] if said else 0.0
    if not 1 <= number <= 1 << 60:
        raise Misconfigured(f'{key}: {value!r}: a size in bytes, as in "14GB", "900MB" or "13GiB"')
    return int(number)


def url(key: str, value: str, listens: bool = False, loopback: bool = False) -> None:
    """tcp://HOST:PORT.  Without keys nothing leaves the machine: a listener on another address refuses to start."""
    try:
        parts = urlsplit(value)
        fine = parts.scheme == "tcp" and parts.hostname and parts.port is not None and not (parts.path or parts.query or parts.fragment)
    except ValueError:  # a port that is none
        fine = False
    if not fine and not (value.startswith("ipc://") and not listens):
        raise Misconfigured(f"{key}: {value!r}: tcp://HOST:PORT, as in tcp://127.0.0.1:7640")
    if loopback and parts.hostname not in LOOPBACK:
        raise Misconfigured(f"{key}: {value!r}: without keys (mesh.curve = false) it listens on loopback only: tcp://127.0.0.1:PORT")


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?", or nothing when nothing is near."""
    near = get_close_matches(name, [k for k in known if k], n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""

"""What is told of one hop."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """hop: which; said: how it is; remedy: what to do, where it is not well."""

    hop: str
    ok: bool
    said: str
    remedy: str = ""


def well(hop: str, said: str) -> Finding:
    return Finding(hop, True, said)


def broken(hop: str, said: str, remedy: str) -> Finding:
    return Finding(hop, False, said, remedy)

"""What the simulated stages compute: a hash of (input, stage, request), so that a wrong hand-over shows in the published bytes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from hashlib import blake2b, sha256

from ifmesh.cascade import DRAWN, IF, Cascade
from ifmesh.protocol import Request

EMPTY = b"the empty bag"
"""The first bag of a job that brings nothing."""


def cascade(patience: float) -> Cascade:
    """The IF cascade, less patient."""
    return Cascade(tuple(replace(spec, patience=patience) for spec in IF.stages))


def luggage(names: tuple[str, ...], number: int) -> bytes:
    """The frame of an upload."""
    return f"{','.join(names)}: {number}".encode()


def names(frame: bytes) -> tuple[str, ...]:
    """Of the tensors in an upload."""
    return tuple(frame.partition(b":")[0].decode().split(","))


def output(stage: str, request: Request, frame: bytes) -> bytes:
    """What this stage makes of this bag."""
    return blake2b(f"{stage}|{request.prompt}|{request.seed}|".encode() + frame, digest_size=20).digest()


def alone(name: str, frame: bytes) -> bytes:
    """The bag with this one of its tensors."""
    return blake2b(f"{name} of ".encode() + frame, digest_size=12).digest()


def digest(frame: bytes | memoryview) -> str:
    return blake2b(frame, digest_size=16).hexdigest()


def sha(frame: bytes) -> str:
    return sha256(frame).hexdigest()


@cache
def _made(prompt: str, seed: int, route: tuple[str, ...], frame: bytes) -> bytes:
    for stage in route:
        frame = output(stage, Request(prompt, seed), frame)
    return frame


def published(request: Request, first: bytes = EMPTY) -> bytes:
    """The only right result.  first: what it brings."""
    return _made(request.prompt, request.seed, IF.route(request), first)


def previewed(request: Request, stage: str, first: bytes = EMPTY) -> bytes:
    """The only right preview of what this stage has drawn."""
    route = IF.route(request)
    drawn = _made(request.prompt, request.seed, route[: route.index(stage) + 1], first)
    return output("guard", Request("preview", 0), alone(DRAWN[stage].name, drawn))

"""What the simulated stages compute: a hash of (input, stage, request), so that a wrong hand-over shows in the published bytes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from hashlib import blake2b, sha256

from ifmesh.cascade import BROUGHT, DRAWN, IF, Cascade, kept
from ifmesh.request import Request

EMPTY = b"the empty bag"
"""The first bag of a job that brings nothing."""

PICTURES = 20
"""Bytes of what a stage makes."""


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
    """What this stage makes of this bag.  The guard's bag holds, behind the pictures, what is to be kept."""
    made = blake2b(f"{stage}|{request.prompt}|{request.seed}|".encode() + frame, digest_size=PICTURES).digest()
    return made + onwards(request, frame) if stage == "guard" else made


def steps(stage: str, request: Request) -> int:
    """How many this stage takes of it."""
    return 1 + blake2b(f"{stage}|{request.prompt}|{request.seed}".encode(), digest_size=1).digest()[0] % 6


def checkpoint(stage: str, request: Request, frame: bytes, numeric: str, step: int) -> bytes:
    """All that it takes to go on after this step."""
    return f"{step}|{numeric}|".encode() + blake2b(f"{stage}|{request.prompt}|{request.seed}|".encode() + frame, digest_size=12).digest()


def onwards(request: Request, frame: bytes) -> bytes:
    """The frame of the upload that is made of this bag; b"": nothing is to be kept.  How long it is kept makes no difference."""
    blobs = {blob.name for blob in kept(request)}
    return f"{','.join(name for name in BROUGHT if name in blobs)}: {digest(frame)[:8]}".encode() if blobs else b""


def apart(frame: bytes) -> tuple[bytes, bytes]:
    """A result: the pictures, and what is to be kept."""
    return frame[:PICTURES], frame[PICTURES:]


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


def left(request: Request, first: bytes = EMPTY) -> bytes:
    """The only right upload to be kept beside it; b"": none."""
    return onwards(request, _made(request.prompt, request.seed, IF.route(request)[:-1], first))


def previewed(request: Request, stage: str, first: bytes = EMPTY) -> bytes:
    """The only right preview of what this stage has drawn."""
    route = IF.route(request)
    drawn = _made(request.prompt, request.seed, route[: route.index(stage) + 1], first)
    return output("guard", Request("preview", 0), alone(DRAWN[stage].name, drawn))

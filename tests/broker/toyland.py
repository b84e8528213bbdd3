"""What the simulated stages compute: a hash of (input, stage, request), so that a wrong hand-over shows in the published bytes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from hashlib import blake2b, sha256

from ifmesh.cascade import IF, Cascade
from ifmesh.protocol import Request

EMPTY = b"the empty bag"
"""The first bag of every job."""


def cascade(patience: float) -> Cascade:
    """The IF cascade, less patient."""
    return Cascade(tuple(replace(spec, patience=patience) for spec in IF.stages))


def output(stage: str, request: Request, frame: bytes) -> bytes:
    """What this stage makes of this bag."""
    return blake2b(f"{stage}|{request.prompt}|{request.seed}|".encode() + frame, digest_size=20).digest()


def digest(frame: bytes | memoryview) -> str:
    return blake2b(frame, digest_size=16).hexdigest()


def sha(frame: bytes) -> str:
    return sha256(frame).hexdigest()


@cache
def _published(prompt: str, seed: int, route: tuple[str, ...]) -> bytes:
    frame = EMPTY
    for stage in route:
        frame = output(stage, Request(prompt, seed), frame)
    return frame


def published(request: Request) -> bytes:
    """The only right result."""
    return _published(request.prompt, request.seed, IF.route(request))

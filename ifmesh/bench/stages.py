"""Stages that do nothing, or nothing but wait or compute, and give tensors of the true sizes: what is left is what the mesh costs.

Options (the stage's section of ifmesh.toml): `sleep_ms` and `busy_ms` (of every job, in one step, waiting or with the processor), and
`tiny` (tensors of some bytes, as if nothing had to be carried).  What is given is the same for every job, and made once.
"""

from __future__ import annotations

import math
import struct
import time
import zlib
from collections.abc import Collection, Iterable

from ifmesh.cascade import EMBEDS, FLAGGED, IF, IMAGE64, IMAGE256, IMAGE1024, PICTURE, RNG, TOKENS, Blob
from ifmesh.request import Request
from ifmesh.stage import Advance, Bag, Setup, Tensor

WIDTHS = {"F16": 2, "U8": 1, "I64": 8}
WHOLE: dict[str, tuple[str, tuple[int, ...]]] = {
    EMBEDS.name: ("F16", (2, 77, 4096)),  # negative and prompt: 1,261,568 bytes
    TOKENS.name: ("I64", (2, 3)),
    RNG.name: ("U8", (5056,)),
    IMAGE64.name: ("F16", (3, 64, 64)),  # 24,576
    IMAGE256.name: ("F16", (3, 256, 256)),  # 393,216
    IMAGE1024.name: ("U8", (3, 1024, 1024)),  # 3,145,728
    FLAGGED.name: ("U8", (1,)),
}
"""dtype and shape of every tensor that a generated picture of 1024 px has flow, with a negative prompt, in fp16."""
SIDES = {PICTURE["stage_one"].name: 64, PICTURE["stage_two"].name: 256, PICTURE["upscaler"].name: 1024}


def given(blob: Blob, tiny: bool = False) -> Tensor:
    """A tensor of that name, of its true size, or tiny: as small as its shape may be.  A picture is a file that could not be smaller."""
    if blob.name in SIDES:
        file = _png(1 if tiny else SIDES[blob.name])
        return Tensor("U8", (len(file),), file)
    dtype, shape = WHOLE[blob.name]
    if tiny:
        shape = tuple(size if isinstance(size, int) else 2 if size == "texts" else 1 for size in blob.shape)
    return Tensor(dtype, shape, bytes(math.prod(shape) * WIDTHS[dtype]))


def bag(stage: str, request: Request, tiny: bool = False) -> Bag:
    """What leaves a stage of that name: what it gives, and what rides along."""
    return {blob.name: given(blob, tiny) for blob in IF.carries(request, stage)}


class Still:
    """One job at a time; one step."""

    name = ""
    slots = 1

    def load(self, setup: Setup) -> str:
        options = setup.options or {}
        self._sleep, self._busy = float(options.get("sleep_ms", 0)) / 1000, float(options.get("busy_ms", 0)) / 1000
        self._tiny = bool(options.get("tiny", False))
        self._made: dict[str, Tensor] = {}
        self._jobs: dict[str, Request] = {}
        return "still/1"

    def admit(self, job: str, request: Request, bag: Bag, saved: Bag | None = None) -> int:
        self._jobs[job] = request
        return 1

    def step(self, paused: Collection[str] = ()) -> Iterable[Advance]:
        for job, request in [(job, request) for job, request in self._jobs.items() if job not in paused]:
            if self._sleep:
                time.sleep(self._sleep)
            if self._busy:
                end = time.thread_time() + self._busy
                while time.thread_time() < end:
                    pass
            del self._jobs[job]
            yield Advance(job, 1, 1, {blob.name: self._given(blob) for blob in IF[self.name].gives(request)})

    def save(self, job: str) -> Bag | None:
        return None

    def drop(self, job: str) -> None:
        self._jobs.pop(job, None)

    def _given(self, blob: Blob) -> Tensor:
        if blob.name not in self._made:
            self._made[blob.name] = given(blob, self._tiny)
        return self._made[blob.name]


class Encoder(Still):
    name = "encoder"


class StageOne(Still):
    name = "stage_one"


class StageTwo(Still):
    name = "stage_two"


class Upscaler(Still):
    name = "upscaler"


class Guard(Still):
    name = "guard"


def _png(side: int) -> bytes:
    """Black, RGB, stored: as many bytes as of a picture that does not compress."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(side * (1 + 3 * side)), 0)),
        (b"IEND", b""),
    )
    parts = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

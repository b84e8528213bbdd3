"""Stages without weights: the same names, tensors and sizes as the real cascade in fp16, in a millisecond, without torch.

For trying a mesh, for its tests and for breaking it on purpose.  What a stage gives is a pure function of the request and of the
bag that came in (a hash of both picks the colours of a small tiled pattern), so a bag that went astray shows in the pixels.  Sizes
follow the source's header, and not its EXIF orientation; a source without a header counts as 64 x 64.

Options (the stage's section of ifmesh.toml): `steps` (default 5), `step_ms` (milliseconds per step, default 0), `mode`, `slots` and
`rows` (how many jobs step together, and what the numeric class says of it; see `modes`), `log_steps` (a line in the log for each step,
before it is told), `trouble` (one of the words below but bad: every job of this worker gets it), `load_ms` and `unload_ms`
(milliseconds that it takes to load, and to give the memory back) and `weight` (bytes of memory that it says it takes, in swap).

A prompt may ask for trouble in the second step, with the stage's name: `toy:raise=stage_one` raises an error, `toy:oom=...` runs out of
memory, `toy:abort=...` aborts the process, `toy:hang=...` never returns, `toy:spin=...` neither, busy, and `toy:wedge=...` neither,
holding the GIL as a hung driver does.  `toy:bad=...` calls the request wrong when it comes, and `toy:flag` makes the guard blank the
pictures.  To the toy encoder a word is a token, and one with "zzz" in it is unknown.

A checkpoint holds what the stage draws from, so a foreign one shows in the pixels, too.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
import weakref
import zlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b, shake_128

import xxhash

from ifmesh import formats, geometry, modes, rules
from ifmesh.cascade import DRAWN, EMBEDS, FLAGGED, IF, IMAGE64, IMAGE256, IMAGE1024, PICTURE, RNG, SOURCE, TOKENS, Blob
from ifmesh.errors import BadRequest, Misconfigured
from ifmesh.log import logger
from ifmesh.request import Request
from ifmesh.stage import DONE, Advance, Bag, Foreign, Setup, Tensor, counted, steps_done

SEED = Blob("seed", (32,), "U8")  # in a checkpoint: what is drawn from
TILE = 16
CHANNELS = 4096
TROUBLES = ("raise", "oom", "abort", "hang", "spin", "wedge")
FITTED = {"stage_one": 64, "stage_two": 256}  # pixels of the shorter side where a source is drawn over
HALVES = tuple(struct.pack("<e", level / 127.5 - 1) for level in range(256))
"""A grey level 0..255 as the F16 within -1..1 that stands for it."""
LEVELS = {struct.unpack("<H", half)[0]: level for level, half in enumerate(HALVES)}


@dataclass(slots=True)
class Work:
    """source: 32 bytes that it is drawn from."""

    request: Request
    bag: Bag
    steps: int
    source: bytes
    step: int = 0


class Toy:
    """What all toy stages do: count steps, make trouble when asked to, and give `draw` at the end."""

    name = ""

    def __init__(self) -> None:
        self.slots = 1
        self._steps, self._pause = 5, 0.0
        self._log_steps, self._fault = False, ""
        self._work: dict[str, Work] = {}

    def weighs(self, setup: Setup) -> int:
        """It has no weights, but may say that it has."""
        return int((setup.options or {}).get("weight", 0))

    def load(self, setup: Setup) -> str:
        options = setup.options or {}
        time.sleep(float(options.get("load_ms", 0)) / 1000)
        if unload := float(options.get("unload_ms", 0)) / 1000:
            weakref.finalize(self, time.sleep, unload).atexit = False
        self.slots = modes.slots(options)
        self._steps = int(options.get("steps", 5))
        self._pause = float(options.get("step_ms", 0)) / 1000
        self._log_steps, self._fault = bool(options.get("log_steps")), str(options.get("trouble", ""))
        if self._fault and self._fault not in TROUBLES:
            raise Misconfigured(f"services.{self.name}.options.trouble: {self._fault!r}: one of {', '.join(TROUBLES)}")
        return "toy/1" + modes.numeric("pooled" if options.get("mode") == "pooled" else "exact", int(options.get("rows", 0)))

    def admit(self, job: str, request: Request, bag: Bag, saved: Bag | None = None) -> int:
        if f"toy:bad={self.name}" in request.prompt:
            raise BadRequest("prompt", request.prompt, f"asks {self.name} to call it wrong: leave that word out")
        if SOURCE in IF[self.name].needs(request):
            _check_source(self.name, request, bag)
        settings = request.settings.get(self.name)
        steps = (settings.steps or len(rules.listed(settings) or ()) or self._steps) if settings else self._steps
        if saved is None:
            self._work[job] = Work(request, bag, steps, _mix(self.name, request, bag))
        else:
            self._work[job] = Work(request, bag, steps, _source_of(saved), steps_done(saved, steps))
        return steps

    def step(self, paused: Collection[str] = ()) -> Iterable[Advance]:
        if self._pause:
            time.sleep(self._pause)
        for job, work in list(self._work.items()):
            if job in paused:
                continue
            work.step += 1
            if self._log_steps:
                logger.info("step %d of %d in %s", work.step, work.steps, self.name, extra={"job": job})
            if work.step == min(2, work.steps):
                self._trouble(work.request.prompt)
            if work.step < work.steps:
                yield Advance(job, work.step, work.steps)
            else:
                del self._work[job]
                yield Advance(job, work.step, work.steps, self.draw(work))

    def save(self, job: str) -> Bag | None:
        work = self._work.get(job)
        return {DONE: counted(work.step), SEED.name: Tensor("U8", (32,), work.source)} if work is not None and work.step else None

    def drop(self, job: str) -> None:
        self._work.pop(job, None)

    def draw(self, work: Work) -> Bag:
        """The stage's output; see `ifmesh.cascade` for what each gives."""
        raise NotImplementedError

    def _trouble(self, prompt: str) -> None:
        asked = next((trouble for trouble in TROUBLES if f"toy:{trouble}={self.name}" in prompt), self._fault)
        match asked:
            case "raise":
                raise RuntimeError(f"the prompt asked {self.name} to raise this")
            case "oom":
                raise MemoryError(f"the prompt asked {self.name} for more than there is")
            case "abort":
                os.abort()
            case "wedge":
                ctypes.PyDLL(None).sleep(3600)
        while asked in ("hang", "spin"):
            if asked == "hang":
                time.sleep(3600)


class Encoder(Toy):
    name = "encoder"

    def draw(self, work: Work) -> Bag:
        request, source = work.request, work.source
        row = b"".join(HALVES[level] for level in shake_128(source).digest(64)) * (CHANNELS // 64)
        texts = [request.negative, request.prompt, *([request.style] if request.style else [])]
        out = {
            EMBEDS.name: Tensor("F16", (len(texts), 77, CHANNELS), row * (len(texts) * 77)),
            TOKENS.name: Tensor("I64", (len(texts), 3), b"".join(map(_counted, texts))),
            RNG.name: _rng(source),
        }
        return {blob.name: out[blob.name] for blob in IF[self.name].gives(request)}


class StageOne(Toy):
    name = "stage_one"

    def draw(self, work: Work) -> Bag:
        return {IMAGE64.name: _halves(work.source, *_sides(self.name, work.request, work.bag)), RNG.name: _rng(work.source)}


class StageTwo(Toy):
    name = "stage_two"

    def draw(self, work: Work) -> Bag:
        return {IMAGE256.name: _halves(work.source, *_sides(self.name, work.request, work.bag)), RNG.name: _rng(work.source)}


class Upscaler(Toy):
    name = "upscaler"

    def draw(self, work: Work) -> Bag:
        height, width = _sides(self.name, work.request, work.bag)
        data = b"".join(_planes(work.source, height, width, bytes))
        return {IMAGE1024.name: Tensor("U8", (3, height, width), data), RNG.name: _rng(work.source)}


class Guard(Toy):
    name = "guard"

    def draw(self, work: Work) -> Bag:
        request, bag = work.request, work.bag
        flag = "toy:flag" in request.prompt
        out = {FLAGGED.name: Tensor("U8", (1,), bytes([flag]))}
        for stage, blob in DRAWN.items():
            if blob.name in bag:
                png = _png(bag[blob.name], blank=flag)
                out[PICTURE[stage].name] = Tensor("U8", (len(png),), png)
        return out | {blob.name: bag[blob.name] for blob in IF[self.name].gives(request) if blob.name in bag}


def _mix(stage: str, request: Request, bag: Bag) -> bytes:
    """32 bytes that depend on the stage, on the request and on every byte that the stage needs; the rest of the bag rides along."""
    asked = (stage, request.prompt, request.negative, request.style, request.seed, request.settings.get(stage))
    mixed = blake2b(repr(asked).encode(), digest_size=32)
    own = {RNG.name} if request.seeding == "per_stage" else set[str]()  # then each stage makes its own
    for name in sorted({blob.name for blob in IF[stage].needs(request)} & bag.keys() - own):
        tensor = bag[name]
        mixed.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        mixed.update(xxhash.xxh3_128_digest(tensor.data))
    return mixed.digest()


def _source_of(saved: Bag) -> bytes:
    """Of a checkpoint.  Foreign: it holds none."""
    source = saved.get(SEED.name)
    if saved.keys() != {DONE, SEED.name} or source is None or (source.dtype, tuple(source.shape)) != (SEED.dtype, SEED.shape):
        raise Foreign(f"it holds exactly {DONE} and {SEED.name}, {SEED.dtype} {list(SEED.shape)}")
    return bytes(source.data)


def _counted(text: str) -> bytes:
    """A row of TOKENS: how many with the end token, how many of them are read, how many are unknown."""
    words = text.split()
    tokens = len(words) + 1
    return struct.pack("<3q", tokens, min(77, tokens), sum("zzz" in word for word in words))


def _rng(source: bytes) -> Tensor:
    return Tensor("U8", (5056,), shake_128(b"rng" + source).digest(5056))


def _sides(stage: str, request: Request, bag: Bag) -> tuple[int, int]:
    """(height, width) in pixels: of the source, or four times what the stage before has drawn."""
    if request.task in rules.SKETCHED and stage in FITTED:
        width, height = geometry.fitted(*_source(bag), FITTED[stage])
        return height, width
    if SOURCE in IF[stage].needs(request):  # to be made larger
        width, height = geometry.gridded(*_source(bag))
    elif stage == "stage_one":
        return request.height or geometry.BASE, request.width or geometry.BASE
    else:
        _, height, width = bag[(IMAGE64 if stage == "stage_two" else IMAGE256).name].shape
    return 4 * height, 4 * width


def _source(bag: Bag) -> tuple[int, int]:
    """(width, height) in pixels."""
    try:
        return formats.size(bytes(bag[SOURCE.name].data))
    except ValueError:
        return geometry.BASE, geometry.BASE


def _check_source(stage: str, request: Request, bag: Bag) -> None:
    """As the real stages do: what would become too large is refused."""
    size = _source(bag)
    shown = "{} x {}".format(*size)
    if max(size) > geometry.ASPECT * min(size):
        raise BadRequest(SOURCE.name, shown, f"the longer side is more than {geometry.ASPECT} times the shorter: crop it")
    if request.task == "upscale" and max(size) > geometry.MOST[stage]:
        raise BadRequest(SOURCE.name, shown, f"at most {geometry.MOST[stage]} pixels a side: make it smaller")


def _halves(source: bytes, height: int, width: int) -> Tensor:
    """[3, height, width] F16 within -1..1."""
    as_halves = partial(map, HALVES.__getitem__)
    return Tensor("F16", (3, height, width), b"".join(_planes(source, height, width, lambda row: b"".join(as_halves(row)))))


def _planes(source: bytes, height: int, width: int, convert: Callable[[bytes], bytes]) -> Iterable[bytes]:
    """Three planes (R, G, B) of a tiled 16 x 16 pattern in four colours; convert: from a row of levels to its bytes."""
    drawn = shake_128(source).digest(12 + 64)
    palette, cells = drawn[:12], drawn[12:]
    for channel in range(3):
        tile = []
        for y in range(TILE):
            colours = [palette[3 * (cells[y // 2 * 8 + x // 2] & 3) + channel] for x in range(TILE)]
            tile.append(convert(bytes((colours * (width // TILE + 1))[:width])))
        yield b"".join((tile * (height // TILE + 1))[:height])


def _png(image: Tensor, blank: bool) -> bytes:
    """image: [3, h, w], F16 within -1..1 or U8 -> a PNG file, 8 bits RGB.  Equal rows are converted once."""
    _, height, width = image.shape
    data = memoryview(image.data).cast("B")
    row = width * (2 if image.dtype == "F16" else 1)
    known: dict[bytes, bytes] = {}
    lines = []
    for y in range(height):
        planes = b"".join(data[(c * height + y) * row : (c * height + y + 1) * row] for c in range(3))
        if planes not in known:
            levels = bytes(map(_level, memoryview(planes).cast("H"))) if image.dtype == "F16" else planes
            line = bytearray(1 + 3 * width)  # a PNG line begins with its filter, 0: none
            for c in range(3):
                line[1 + c :: 3] = levels[c * width : (c + 1) * width]
            known[planes] = bytes(len(line)) if blank else bytes(line)
        lines.append(known[planes])
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(lines), 1)),
        (b"IEND", b""),
    )
    parts = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _level(half: int) -> int:
    """An F16 by its 16 bits to the nearest grey level."""
    known = LEVELS.get(half)
    if known is not None:
        return known
    value = struct.unpack("<e", struct.pack("<H", half))[0]
    return round(min(255.0, max(0.0, (value + 1) * 127.5))) if value == value else 0

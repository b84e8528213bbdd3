"""What flows between the stages, declared once: blobs, stages, the cascade.

A job is a bag of named tensors that travels down the cascade.  A stage declares what it needs and what it gives; what a later
stage still needs rides along; the rest is dropped at the door.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ifmesh import rules
from ifmesh.errors import BadRequest
from ifmesh.protocol import STAGES, Request


@dataclass(frozen=True, slots=True)
class Blob:
    """One named tensor in a bag.

    shape: sizes, or names of sizes that the model decides ("h": one name, one size within a bag).  dtype: safetensors' name, or ""
    for "the dtype of the stage that made it" (F32, F16 or BF16).  range: of its values, for the reader.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = ""
    range: tuple[float, float] | None = None


EMBEDS = Blob("embeds", (2, 77, "channels"))  # rows: negative, prompt; as diffusers' encode_prompt gives them
RNG = Blob("rng", (5056,), "U8")  # the state of the request's CPU torch.Generator, as the stage before left it
IMAGE64 = Blob("image64", (3, "h", "w"), range=(-1, 1))  # Stage I.  The names say the true geometry: 64 -> 256 -> 1024
IMAGE256 = Blob("image256", (3, "h4", "w4"), range=(-1, 1))  # Stage II
IMAGE1024 = Blob("image1024", (3, "h16", "w16"), "U8", range=(0, 255))  # the upscaler's RGB, as output_type="pil" rounds it
TOKENS = Blob("tokens", (2, 3), "I64")  # rows: negative, prompt; of the text: its tokens, those that the encoder reads, the unknown ones
SOURCE = Blob("source", ("source_bytes",), "U8")  # a whole picture file, as the client sent it
MASK = Blob("mask", ("mask_bytes",), "U8")  # the same; white: repaint
FLAGGED = Blob("flagged", (1,), "U8")  # 1: the safety checker blanked a picture of this result

BROUGHT = {blob.name: blob for blob in (SOURCE, MASK, EMBEDS, RNG)}  # what a client may upload into the first bag
DRAWN = {"stage_one": IMAGE64, "stage_two": IMAGE256, "upscaler": IMAGE1024}
PNG = {stage: Blob(f"png_{stage}", ("bytes_" + stage,), "U8") for stage in DRAWN}  # the guard's: whole PNG files


@dataclass(frozen=True, slots=True)
class StageSpec:
    """A stage as the mesh sees it.  patience: seconds without a step after which a running worker counts as stalled."""

    name: str
    needs: Callable[[Request], tuple[Blob, ...]]
    gives: Callable[[Request], tuple[Blob, ...]]
    patience: float = 60.0


def _drawn(request: Request) -> tuple[str, ...]:
    """The stages whose pictures the guard publishes: the last one, and those before it when asked for."""
    last = STAGES.index(request.last_stage)
    drawn = tuple(s for s in DRAWN if STAGES.index(request.first_stage) <= STAGES.index(s) <= last)
    return drawn if request.stages else drawn[-1:]


@dataclass(frozen=True, slots=True)
class Cascade:
    """The stages in order.  Everything about the flow of blobs follows from their declarations."""

    stages: tuple[StageSpec, ...]

    def __getitem__(self, name: str) -> StageSpec:
        return next(s for s in self.stages if s.name == name)

    def route(self, request: Request) -> tuple[str, ...]:
        """The stages this request goes through: from its first to its last, and, where that draws, the guard."""
        names = [s.name for s in self.stages]
        route = names[names.index(request.first_stage) : names.index(request.last_stage) + 1]
        return (*route, "guard") if request.last_stage in DRAWN else tuple(route)  # embeddings are no picture

    def carries(self, request: Request, stage: str) -> tuple[Blob, ...]:
        """What the bag holds when `stage` is done: all that later stages need, and earlier ones have given or the client brought."""
        route = self.route(request)
        upto = route.index(stage) + 1
        given = {name: BROUGHT[name] for name in request.brings} | {b.name: b for name in route[:upto] for b in self[name].gives(request)}
        later = {b.name for name in route[upto:] for b in self[name].needs(request)}
        if upto == len(route):
            return self[stage].gives(request)
        return tuple(b for name, b in sorted(given.items()) if name in later)

    def enters(self, request: Request, stage: str) -> tuple[Blob, ...]:
        """What the bag that arrives at `stage` holds; at the first, what the client brought."""
        route = self.route(request)
        before = route.index(stage) - 1
        return self.carries(request, route[before]) if before >= 0 else tuple(BROUGHT[name] for name in request.brings)

    def check(self, request: Request) -> None:
        """BadRequest, naming field, value and remedy, when no mesh of this cascade could ever serve the request."""
        rules.check_fields(request)
        given = set(request.brings)
        for name in self.route(request):
            if missing := [b.name for b in self[name].needs(request) if b.name not in given]:
                raise BadRequest("first_stage", request.first_stage, f"{name} needs {', '.join(missing)}, which nothing before it gives")
            given |= {b.name for b in self[name].gives(request)}


def _rng(request: Request, stage: str) -> tuple[Blob, ...]:
    """The generator's state, unless nobody before has made one: then the stage makes it from the seed."""
    return () if stage == request.first_stage and RNG.name not in request.brings else (RNG,)


def _read(request: Request) -> tuple[Blob, ...]:
    """What is known of the texts, if the encoder reads any."""
    return (TOKENS,) if request.first_stage == "encoder" else ()


def _source(request: Request) -> tuple[Blob, ...]:
    return tuple(blob for blob in (SOURCE, MASK) if blob.name in request.brings)


def _encoded(request: Request) -> tuple[Blob, ...]:
    return (EMBEDS, TOKENS) if request.task == "encode" or RNG.name in request.brings else (EMBEDS, TOKENS, RNG)


IF = Cascade(
    (
        StageSpec("encoder", lambda r: (), _encoded),
        StageSpec("stage_one", lambda r: (EMBEDS, *_rng(r, "stage_one"), *_source(r)), lambda r: (IMAGE64, RNG)),
        StageSpec("stage_two", lambda r: (EMBEDS, IMAGE64, *_rng(r, "stage_two"), *_source(r)), lambda r: (IMAGE256, RNG)),
        # The upscaler's prompt comes with the Request: CLIP, not T5.
        StageSpec("upscaler", lambda r: (IMAGE256, *_rng(r, "upscaler")), lambda r: (IMAGE1024, RNG)),
        StageSpec(
            "guard",
            lambda r: (*(DRAWN[s] for s in _drawn(r)), *_read(r)),
            lambda r: (*(PNG[s] for s in _drawn(r)), FLAGGED, *_read(r)),
        ),
    )
)

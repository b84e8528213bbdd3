"""What flows between the stages, declared once: blobs, stages, the cascade.

A job is a bag of named tensors that travels down the cascade.  A stage declares what it needs and what it gives; what a later
stage still needs rides along; the rest is dropped at the door.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ifmesh import rules
from ifmesh.errors import BadRequest
from ifmesh.request import STAGES, Request


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


EMBEDS = Blob("embeds", ("texts", 77, "channels"))  # rows: negative, prompt (, style); as diffusers' encode_prompt gives them
RNG = Blob("rng", (5056,), "U8")  # the state of the request's CPU torch.Generator, as the stage before left it
IMAGE64 = Blob("image64", (3, "h", "w"), range=(-1, 1))  # Stage I.  The names say the true geometry: 64 -> 256 -> 1024
IMAGE256 = Blob("image256", (3, "h4", "w4"), range=(-1, 1))  # Stage II
IMAGE1024 = Blob("image1024", (3, "h16", "w16"), "U8", range=(0, 255))  # the upscaler's RGB, as output_type="pil" rounds it
TOKENS = Blob("tokens", ("texts", 3), "I64")  # the same rows; of each text: its tokens, those that the encoder reads, the unknown ones
SOURCE = Blob("source", ("source_bytes",), "U8")  # a whole picture file, as the client sent it
MASK = Blob("mask", ("mask_bytes",), "U8")  # the same; white: repaint
FLAGGED = Blob("flagged", (1,), "U8")  # 1: the safety checker blanked a picture of this result

BROUGHT = {blob.name: blob for blob in (SOURCE, MASK, EMBEDS, IMAGE64, IMAGE256, RNG)}  # what a client may bring into the first bag
DRAWN = {"stage_one": IMAGE64, "stage_two": IMAGE256, "upscaler": IMAGE1024}
PICTURE = {stage: Blob(f"picture_{stage}", ("bytes_" + stage,), "U8") for stage in DRAWN}  # the guard's: whole files, as Request.format


@dataclass(frozen=True, slots=True)
class StageSpec:
    """A stage as the mesh sees it.

    patience: seconds without a step after which a running worker counts as stalled; for the largest picture on two cores of a CPU.
    """

    name: str
    needs: Callable[[Request], tuple[Blob, ...]]
    gives: Callable[[Request], tuple[Blob, ...]]
    patience: float = 60.0


def _drawn(request: Request) -> tuple[str, ...]:
    """The stages whose pictures the guard publishes: the last one, and those before it when asked for."""
    drawn = tuple(stage for stage in DRAWN if stage in _way(request))
    return drawn if request.stages else drawn[-1:]


def _way(request: Request) -> tuple[str, ...]:
    """From its first stage to its last.  A picture that is only to be made larger is not drawn by Stage I."""
    way = STAGES[STAGES.index(request.first_stage) : STAGES.index(request.last_stage) + 1]
    return tuple(stage for stage in way if request.task != "upscale" or stage != "stage_one")


@dataclass(frozen=True, slots=True)
class Cascade:
    """The stages in order.  Everything about the flow of blobs follows from their declarations."""

    stages: tuple[StageSpec, ...]

    def __getitem__(self, name: str) -> StageSpec:
        return next(s for s in self.stages if s.name == name)

    def route(self, request: Request) -> tuple[str, ...]:
        """The stages this request goes through: from its first to its last, and, where that draws, the guard."""
        return (*_way(request), "guard") if request.last_stage in DRAWN else _way(request)  # embeddings are no picture

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


def _stage_one(request: Request) -> tuple[Blob, ...]:
    return (EMBEDS, *_rng(request, "stage_one"), *_source(request))


def _stage_two(request: Request) -> tuple[Blob, ...]:
    low = (SOURCE,) if request.task == "upscale" else (IMAGE64, *_source(request))
    return (EMBEDS, *low, *_rng(request, "stage_two"))


def _upscaler(request: Request) -> tuple[Blob, ...]:
    """Its prompt comes with the Request: CLIP, not T5."""
    alone = request.task == "upscale" and request.first_stage == "upscaler"
    return (SOURCE if alone else IMAGE256, *_rng(request, "upscaler"))


def kept(request: Request) -> tuple[Blob, ...]:
    """What is kept beside the result for a job that goes on where this one ends: what the next stage needs.  () when nothing is.

    Without the generator's state where every stage makes its own.
    """
    onwards = {"stage_one": _stage_two, "stage_two": _upscaler}.get(request.last_stage)
    chained = request.seeding == "chained"
    return tuple(blob for blob in onwards(request) if blob is not RNG or chained) if onwards and request.keep else ()


IF = Cascade(
    (
        StageSpec("encoder", lambda r: (), _encoded),
        StageSpec("stage_one", _stage_one, lambda r: (IMAGE64, RNG)),
        StageSpec("stage_two", _stage_two, lambda r: (IMAGE256, RNG), patience=120.0),
        StageSpec("upscaler", _upscaler, lambda r: (IMAGE1024, RNG), patience=300.0),
        StageSpec(
            "guard",
            lambda r: (*(DRAWN[s] for s in _drawn(r)), *_read(r), *kept(r)),
            lambda r: (*(PICTURE[s] for s in _drawn(r)), FLAGGED, *_read(r), *kept(r)),
        ),
    )
)

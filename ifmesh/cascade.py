"""What flows between the stages, declared once: blobs, stages, the cascade.

A job is a bag of named tensors that travels down the cascade.  A stage declares what it needs and what it gives; what a later
stage still needs rides along; the rest is dropped at the door.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ifmesh.errors import BadRequest
from ifmesh.protocol import STAGES, TASKS, Request, Settings

PROMPT_CHARACTERS = 2000
PROMPT_BYTES = 4096


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
FLAGGED = Blob("flagged", (1,), "U8")  # 1: the safety checker blanked a picture of this result

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
        """The stages this request goes through: from its first to its last, and the guard."""
        names = [s.name for s in self.stages]
        route = names[names.index(request.first_stage) : names.index(request.last_stage) + 1]
        return tuple(route) if route[-1] == "guard" else (*route, "guard")

    def carries(self, request: Request, stage: str) -> tuple[Blob, ...]:
        """What the bag holds when `stage` is done: all that later stages need and earlier ones have given."""
        route = self.route(request)
        upto = route.index(stage) + 1
        given = {b.name: b for name in route[:upto] for b in self[name].gives(request)}
        later = {b.name for name in route[upto:] for b in self[name].needs(request)}
        if upto == len(route):
            return self[stage].gives(request)
        return tuple(b for name, b in sorted(given.items()) if name in later)

    def enters(self, request: Request, stage: str) -> tuple[Blob, ...]:
        """What the bag that arrives at `stage` holds; () at the first."""
        route = self.route(request)
        before = route.index(stage) - 1
        return self.carries(request, route[before]) if before >= 0 else ()

    def check(self, request: Request) -> None:
        """BadRequest, naming field, value and remedy, when no mesh of this cascade could ever serve the request."""
        _check_fields(request)
        for stage, settings in request.settings.items():
            if stage not in DRAWN:
                raise BadRequest("settings", stage, f"settings belong to one of {', '.join(DRAWN)}")
            _check_settings(stage, settings)
        given: set[str] = set()
        for name in self.route(request):
            if missing := [b.name for b in self[name].needs(request) if b.name not in given]:
                raise BadRequest("first_stage", request.first_stage, f"{name} needs {', '.join(missing)}, which nothing before it gives")
            given |= {b.name for b in self[name].gives(request)}


IF = Cascade(
    (
        StageSpec("encoder", lambda r: (), lambda r: (EMBEDS, RNG)),
        StageSpec("stage_one", lambda r: (EMBEDS, RNG), lambda r: (IMAGE64, RNG)),
        StageSpec("stage_two", lambda r: (EMBEDS, IMAGE64, RNG), lambda r: (IMAGE256, RNG)),
        StageSpec("upscaler", lambda r: (IMAGE256, RNG), lambda r: (IMAGE1024, RNG)),  # the prompt comes with the Request: CLIP, not T5
        StageSpec("guard", lambda r: tuple(DRAWN[s] for s in _drawn(r)), lambda r: (*(PNG[s] for s in _drawn(r)), FLAGGED)),
    )
)


def _check_fields(request: Request) -> None:
    if request.task not in TASKS:
        raise BadRequest("task", request.task, f"one of {', '.join(TASKS)}")
    if request.task != "generate":
        raise BadRequest("task", request.task, "this version of ifmesh draws 'generate' only")
    if not request.prompt.strip():
        raise BadRequest("prompt", request.prompt, "say what to draw: the prompt is empty")
    for field, text in (("prompt", request.prompt), ("negative", request.negative)):
        if len(text) > PROMPT_CHARACTERS:
            raise BadRequest(field, text, f"{len(text)} characters; at most {PROMPT_CHARACTERS} (the encoder reads 77 tokens)")
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise BadRequest(field, text, "holds half a surrogate pair: send valid Unicode") from None
        if size > PROMPT_BYTES:
            raise BadRequest(field, text, f"{size} bytes of UTF-8; at most {PROMPT_BYTES}")
        if any(ord(c) < 32 and c not in "\t\n\r" for c in text):
            raise BadRequest(field, text, "holds control characters: send plain text")
    if not 0 <= request.seed < 2**63:
        raise BadRequest("seed", request.seed, "from 0 to 2**63 - 1")
    for field, stage in (("first_stage", request.first_stage), ("last_stage", request.last_stage)):
        if stage not in STAGES:
            raise BadRequest(field, stage, f"one of {', '.join(STAGES)}")
    if request.last_stage not in DRAWN:
        raise BadRequest("last_stage", request.last_stage, f"one of {', '.join(DRAWN)}: a stage that draws")
    if STAGES.index(request.first_stage) > STAGES.index(request.last_stage):
        raise BadRequest("first_stage", request.first_stage, f"must not come after last_stage {request.last_stage!r}")
    for field, pixels in (("width", request.width), ("height", request.height)):
        if pixels is not None and (pixels % 8 or not 8 <= pixels <= 256):
            raise BadRequest(field, pixels, "base pixels (Stage I): a multiple of 8 from 8 to 256, or leave it out")
    if not -100 <= request.priority <= 100:
        raise BadRequest("priority", request.priority, "from -100 to 100; higher goes first")
    if request.deadline is not None and not 0 < request.deadline <= 604800:
        raise BadRequest("deadline", request.deadline, "seconds from acceptance: above 0, at most 604800 (a week)")
    if not 0 <= request.keep <= 86400:
        raise BadRequest("keep", request.keep, "seconds: from 0 to 86400 (a day)")
    if request.continues:
        raise BadRequest("continues", request.continues, "this version of ifmesh does not continue kept bags yet: leave it out")


def _check_settings(stage: str, s: Settings) -> None:
    if s.steps is not None and not 1 <= s.steps <= 1000:
        raise BadRequest(f"settings.{stage}.steps", s.steps, "from 1 to 1000")
    if s.timesteps is not None:
        if s.steps is not None:
            raise BadRequest(f"settings.{stage}.steps", s.steps, "give steps or timesteps, not both")
        if stage == "upscaler":
            raise BadRequest("settings.upscaler.timesteps", s.timesteps, "the upscaler takes steps only, as its pipeline does")
        falling = all(a > b for a, b in zip(s.timesteps, s.timesteps[1:], strict=False))
        if not s.timesteps or not falling or s.timesteps[0] > 999 or s.timesteps[-1] < 0:
            raise BadRequest(f"settings.{stage}.timesteps", s.timesteps, "a strictly falling list within 999..0")
    if s.guidance is not None and not 0 <= s.guidance <= 100:
        raise BadRequest(f"settings.{stage}.guidance", s.guidance, "from 0 to 100; 1 or less means no guidance")
    most = {"stage_one": -1, "stage_two": 999, "upscaler": 350}[stage]
    if s.noise_level is not None and not 0 <= s.noise_level <= most:
        raise BadRequest(
            f"settings.{stage}.noise_level", s.noise_level, f"from 0 to {most}" if most >= 0 else "Stage I has none: leave it out"
        )
    if s.strength is not None:
        raise BadRequest(f"settings.{stage}.strength", s.strength, "belongs to vary and inpaint: leave it out")

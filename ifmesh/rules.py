"""What a request may say: the rule of every field.  Pure; the coordinator and the client ask alike."""

from __future__ import annotations

import math
import re

from ifmesh import respacing, samplers
from ifmesh.errors import BadRequest
from ifmesh.request import STAGES, TASKS, Request, Settings

PROMPT_CHARACTERS = 2000
PROMPT_BYTES = 4096
SIDE = 256  # base pixels at most
DRAW = ("stage_one", "stage_two", "upscaler")
NEEDS = {"generate": (), "vary": ("source",), "inpaint": ("source", "mask"), "upscale": ("source",), "encode": ()}  # must be brought
MAY = {"upscale": ("embeds", "rng"), "encode": ()}  # and may be; the other tasks: whatever enters where they begin
ORDER = ("source", "mask", "embeds", "image64", "image256", "rng")
ENTERS = {"embeds": ("stage_one", "stage_two"), "image64": ("stage_two",), "image256": ("upscaler",)}  # as first stage
WORDS = {"seeding": ("chained", "per_stage"), "format": ("png", "webp", "jpeg")}  # what these fields may say
SKETCHED = ("vary", "inpaint")  # the tasks that draw over a source
NEVER = {"upscale": ("stage_one",), "encode": DRAW}  # what a task never goes through; the other tasks: all, from their first stage on
STRENGTH = STYLED = ("stage_one", "stage_two")  # the stages that start from a source; those that read the encoder's texts


def steps_left(steps: int, strength: float) -> int:
    """How many of `steps` run at this strength; the first of them are left out.  Formula: diffusers' get_timesteps."""
    return min(int(steps * strength), steps)


def least_strength(steps: int) -> float:
    """The smallest strength, to four decimals, that leaves a step of so many."""
    return math.ceil(10000 / steps) / 10000


def listed(s: Settings) -> tuple[int, ...] | None:
    """The list of timesteps, however it is given; None: it is not, steps decide.  ValueError: no such schedule, and what would work."""
    return s.timesteps if s.schedule is None else respacing.timesteps(s.schedule)


def check_fields(request: Request) -> None:
    """BadRequest, naming field, value and remedy."""
    if request.task not in TASKS:
        raise BadRequest("task", request.task, f"one of {', '.join(TASKS)}")
    for field, words in WORDS.items():
        if (said := getattr(request, field)) not in words:
            raise BadRequest(field, said, f"one of {', '.join(words)}")
    _check_texts(request)
    _check_numbers(request)
    _check_way(request)
    _check_upload(request)
    for stage, settings in request.settings.items():
        if stage not in DRAW:
            raise BadRequest("settings", stage, f"settings belong to one of {', '.join(DRAW)}")
        _check_settings(stage, settings)
        if settings.strength is not None:
            _check_strength(request.task, stage, settings)
        if settings.positive_mixer is not None:
            _check_mixer(request, stage, settings.positive_mixer)
        _check_passed(request, stage, settings)


def _check_texts(request: Request) -> None:
    if not request.prompt.strip():
        what = "the picture shows" if request.task == "upscale" else "to draw"
        raise BadRequest("prompt", request.prompt, f"say what {what}: the prompt is empty")
    for field, text in (("prompt", request.prompt), ("negative", request.negative), ("style", request.style)):
        if len(text) > PROMPT_CHARACTERS:
            raise BadRequest(field, text, f"{len(text)} characters; at most {PROMPT_CHARACTERS} (the encoder reads 77 tokens)")
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise BadRequest(field, text, "holds half a surrogate pair: send valid Unicode") from None
        if size > PROMPT_BYTES:
            raise BadRequest(field, text, f"{size} bytes of UTF-8; at most {PROMPT_BYTES}")
        if any((ord(c) < 32 and c not in "\t\n\r") or 127 <= ord(c) < 160 for c in text):  # U+009B commands terminals as ESC [ does
            raise BadRequest(field, text, "holds control characters: send plain text")


def _check_numbers(request: Request) -> None:
    if not 0 <= request.seed < 2**63:
        raise BadRequest("seed", request.seed, "from 0 to 2**63 - 1")
    for field, pixels in (("width", request.width), ("height", request.height)):
        if pixels is not None and request.task != "generate":
            raise BadRequest(field, pixels, f"{request.task} follows its source: leave it out" if NEEDS[request.task] else "leave it out")
        if pixels is not None and (pixels % 8 or not 8 <= pixels <= SIDE):
            raise BadRequest(field, pixels, f"base pixels (Stage I): a multiple of 8 from 8 to {SIDE}, or leave it out")
    if not -100 <= request.priority <= 100:
        raise BadRequest("priority", request.priority, "from -100 to 100; higher goes first")
    for field, since, seconds in (
        ("deadline", "acceptance", request.deadline),
        ("deadline_queued", "acceptance", request.deadline_queued),
        ("deadline_running", "its beginning", request.deadline_running),
    ):
        if seconds is not None and not 0 < seconds <= 604800:
            raise BadRequest(field, seconds, f"seconds from {since}: above 0, at most 604800 (a week)")
    if not 0 <= request.keep <= 86400:
        raise BadRequest("keep", request.keep, "seconds: from 0 to 86400 (a day)")
    if request.keep and request.last_stage not in DRAW[:-1]:
        raise BadRequest("keep", request.keep, f"nothing comes after {request.last_stage}: leave it out, or stop earlier")


def _check_way(request: Request) -> None:
    for field, stage in (("first_stage", request.first_stage), ("last_stage", request.last_stage)):
        if stage not in STAGES:
            raise BadRequest(field, stage, f"one of {', '.join(STAGES)}")
    allowed = DRAW if request.task != "encode" else ("encoder",)
    if request.last_stage not in allowed:
        raise BadRequest("last_stage", request.last_stage, f"for {request.task}: one of {', '.join(allowed)}")
    if STAGES.index(request.first_stage) > STAGES.index(request.last_stage):
        raise BadRequest("first_stage", request.first_stage, f"must not come after last_stage {request.last_stage!r}")
    if request.task in SKETCHED and request.first_stage == "upscaler":
        raise BadRequest("first_stage", request.first_stage, f"{request.task} ends before: go on with generate")
    if request.task == "upscale" and (request.first_stage == "stage_one" or request.last_stage == "stage_one"):
        raise BadRequest(
            "first_stage", request.first_stage, "Stage I makes nothing larger: encoder (or stage_two with embeds), or upscaler"
        )
    if request.style and (request.task == "encode" or request.first_stage == "upscaler"):
        raise BadRequest("style", request.style, "belongs to Stage I and II: leave it out")


def _check_upload(request: Request) -> None:
    ordered = tuple(name for name in ORDER if name in request.brings)
    if ordered != request.brings:
        raise BadRequest("brings", request.brings, f"each at most once, in this order: {', '.join(ORDER)}")
    needs = NEEDS[request.task]
    may = (*needs, *MAY.get(request.task, (*ENTERS, "rng")))
    if missing := [name for name in needs if name not in request.brings]:
        raise BadRequest(missing[0], None, f"{request.task} needs one: upload it")
    if extra := [name for name in request.brings if name not in may]:
        raise BadRequest("brings", extra[0], f"not for {request.task}: leave it out")
    if late := [name for name in request.brings if request.first_stage not in ENTERS.get(name, (request.first_stage,))]:
        where = " or ".join(ENTERS[late[0]])
        raise BadRequest("first_stage", request.first_stage, f"{where}: what brings {late[0]} begins there")
    if "rng" in request.brings and request.seeding == "per_stage":
        raise BadRequest("seeding", request.seeding, "a generator state goes through all stages: 'chained', or give a seed instead")
    if bool(request.brings) != bool(request.upload) or not re.fullmatch(r"([0-9a-f]{64})?", request.upload):
        raise BadRequest("upload", request.upload, "the SHA-256, in hex, of what the request brings; empty if it brings nothing")


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
    if s.schedule is not None:
        _check_schedule(stage, s)
    if s.scheduler is not None:
        samplers.check(stage, s.scheduler, listed=s.timesteps is not None or s.schedule is not None)
    if s.guidance is not None and not 0 <= s.guidance <= 100:
        raise BadRequest(f"settings.{stage}.guidance", s.guidance, "from 0 to 100; 1 or less means no guidance")
    most = {"stage_one": -1, "stage_two": 999, "upscaler": 350}[stage]
    if s.noise_level is not None and not 0 <= s.noise_level <= most:
        raise BadRequest(
            f"settings.{stage}.noise_level", s.noise_level, f"from 0 to {most}" if most >= 0 else "Stage I has none: leave it out"
        )
    _check_thresholds(stage, s)


def _check_passed(request: Request, stage: str, s: Settings) -> None:
    """Not those after last_stage: they are for whoever goes on from there."""
    never = stage in NEVER.get(request.task, ())
    if never or STAGES.index(stage) < STAGES.index(request.first_stage):
        remedy = f"{request.task} does not go through {stage}" if never else f"drawing begins with {request.first_stage}"
        for name in Settings.__dataclass_fields__:
            if (value := getattr(s, name)) is not None:
                raise BadRequest(f"settings.{stage}.{name}", value, f"{remedy}: leave it out")


def _check_schedule(stage: str, s: Settings) -> None:
    field = f"settings.{stage}.schedule"
    if other := next((name for name in ("steps", "timesteps") if getattr(s, name) is not None), ""):
        raise BadRequest(field, s.schedule, f"give schedule or {other}, not both")
    if stage == "upscaler":
        raise BadRequest(field, s.schedule, "the upscaler takes steps only, as its pipeline does")
    try:
        listed(s)
    except ValueError as error:
        raise BadRequest(field, s.schedule, str(error)) from None


def _check_thresholds(stage: str, s: Settings) -> None:
    for name, value, least, most, remedy in (
        ("threshold_ratio", s.threshold_ratio, 0.0, 1.0, "a quantile: above 0, at most 1; published: 0.95"),
        ("threshold_max", s.threshold_max, 1.0, 100.0, "from 1 (cut at -1 and 1) to 100; published: 1.5 in Stage I, 1 in Stage II"),
    ):
        if value is None:
            continue
        if stage == "upscaler":
            raise BadRequest(f"settings.{stage}.{name}", value, "the upscaler draws latents, which are not thresholded: leave it out")
        if not (least <= value <= most and value > 0):
            raise BadRequest(f"settings.{stage}.{name}", value, remedy)


def _check_mixer(request: Request, stage: str, mixer: float) -> None:
    field = f"settings.{stage}.positive_mixer"
    if stage not in STYLED or not request.style:
        raise BadRequest(field, mixer, f"belongs to {' and '.join(STYLED)} of a request with a style: leave it out")
    if not 0 <= mixer <= 1:
        raise BadRequest(field, mixer, "from 0 (the prompt alone) to 1 (the style alone); published: 0.25 in Stage I, 0.5 in Stage II")


def _check_strength(task: str, stage: str, s: Settings) -> None:
    field, strength = f"settings.{stage}.strength", s.strength
    assert strength is not None
    if stage not in STRENGTH:
        raise BadRequest(field, strength, f"belongs to {' and '.join(STRENGTH)}: leave it out")
    if task not in SKETCHED:
        raise BadRequest(field, strength, "belongs to vary and inpaint: leave it out")
    if not 0 < strength <= 1:
        raise BadRequest(field, strength, "above 0, at most 1; 1 keeps nothing of the source")
    own = listed(s)
    steps = s.steps if own is None else len(own)
    if steps is not None:
        check_steps_left(stage, steps, strength)


def check_steps_left(stage: str, steps: int, strength: float) -> None:
    """BadRequest when so many steps at this strength leave none."""
    if steps_left(steps, strength) < 1:
        raise BadRequest(
            f"settings.{stage}.strength", strength, f"leaves no step of {steps}: at least {least_strength(steps)}, or more steps"
        )

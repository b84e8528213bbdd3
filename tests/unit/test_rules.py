"""Every refusal of a request with its words: the field, the value as given, and what would work."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from ifmesh import rules
from ifmesh.errors import BadRequest
from ifmesh.request import Request, Settings
from ifmesh.respacing import FORMS

SHA = "5e" * 32
GENERATE = Request("a fox", 7)
VARY = Request("a fox", 7, "vary", brings=("source",), upload=SHA)
INPAINT = Request("a fox", 7, "inpaint", brings=("source", "mask"), upload=SHA)
UPSCALE = Request("a fox", 7, "upscale", brings=("source",), upload=SHA)
ALONE = Request("a fox", 7, "upscale", first_stage="upscaler", brings=("source",), upload=SHA)
ENCODE = Request("a fox", 7, "encode", last_stage="encoder")
ALL = {"generate": GENERATE, "vary": VARY, "inpaint": INPAINT, "upscale": UPSCALE, "alone": ALONE, "encode": ENCODE}

Fields = dict[str, Any]


def at(stage: str, **given: Any) -> Fields:
    return {"settings": {stage: Settings(**given)}}


def brings(*names: str) -> Fields:
    return {"brings": names, "upload": SHA}


def refused(request: Request) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        rules.check_fields(request)
    return caught.value


def case(given: object) -> str:
    return (f"{given.task} from {given.first_stage}" if isinstance(given, Request) else str(given))[:60]


# ---- what passes

FOR_ALL: list[Fields] = [
    {},
    {"prompt": "x" * 2000},
    {"prompt": "line one\nline two\ttab\r"},
    {"prompt": "\N{GRINNING FACE}" * 1000},
    {"negative": ""},
    {"negative": "x" * 2000},
    {"seed": 0},
    {"seed": 2**63 - 1},
    {"priority": -100},
    {"priority": 100},
    {"deadline": 0.001},
    {"deadline": 604800},
    {"format": "webp"},
    {"seeding": "per_stage"},
    {"stages": False},
    {"tied": True},
]
FOR_DRAWING: list[Fields] = [
    {"last_stage": "stage_one"},
    {"last_stage": "stage_one", "keep": 86400},
    {"last_stage": "stage_two"},
    {"last_stage": "stage_two", "keep": 0.001},
    {"style": "in oil"},
    {"style": "x" * 2000, **at("stage_one", positive_mixer=0)},
    {"style": "in oil", "settings": {s: Settings(positive_mixer=1) for s in ("stage_one", "stage_two")}},
    at("stage_one", timesteps=(999, 500, 0), guidance=0),
    at("stage_two", timesteps=(1,)),
    at("stage_two", steps=1000, noise_level=999),
    at("stage_two", noise_level=0),
    at("upscaler", steps=1, noise_level=350, guidance=100),
    at("stage_one", schedule="fast27", scheduler="dpm++", threshold_ratio=1, threshold_max=1),
    at("stage_two", schedule="10, 10,0,3", scheduler="dpm++-single", threshold_ratio=1e-9, threshold_max=100),
    at("stage_two", schedule="ddim50", scheduler="ddpm"),
    at("stage_one", steps=9, scheduler="ddim"),
    *(at("upscaler", scheduler=name) for name in ("ddpm", "dpm++", "dpm++-single", "ddim")),
    {"settings": {}},
    at("stage_one"),
]
FOR_GENERATE: list[Fields] = [
    {"width": 96, "height": 8},
    {"width": 256, "height": 256},
    {"last_stage": "stage_one", "settings": {s: Settings(steps=5) for s in rules.DRAW}},
    {"first_stage": "stage_one", **brings("embeds")},
    {"first_stage": "stage_one", **brings("embeds", "rng")},
    brings("rng"),
    {"first_stage": "stage_two", **brings("embeds", "image64")},
    {"first_stage": "stage_two", "style": "in oil", **brings("embeds", "image64", "rng"), **at("stage_two", positive_mixer=0.5)},
    {"first_stage": "stage_two", "last_stage": "stage_two", "keep": 9, "seeding": "per_stage", **brings("embeds", "image64")},
    {"first_stage": "upscaler", **brings("image256")},
    {"first_stage": "upscaler", **brings("image256", "rng")},
]
FOR_UPSCALE: list[Fields] = [
    {"last_stage": "stage_two"},
    {"last_stage": "stage_two", "keep": 60, **at("upscaler", steps=5)},
    {"style": "in oil", **at("stage_two", positive_mixer=0.5)},
    brings("source", "rng"),
    {"first_stage": "stage_two", **brings("source", "embeds", "rng")},
]
FOR_SOURCES: list[Fields] = [
    at("stage_one", strength=1),
    at("stage_two", strength=1e-9),  # the stage that knows its default steps will say how many are left
    at("stage_one", strength=0.3, steps=4),
    at("stage_one", strength=0.5, timesteps=(900, 500)),
    at("stage_one", strength=0.04, schedule="fast27"),
]
GOOD: list[tuple[Request, Fields]] = [
    *((request, given) for request in ALL.values() for given in FOR_ALL),
    *((request, given) for request in (GENERATE, VARY, INPAINT) for given in FOR_DRAWING),
    *((GENERATE, given) for given in FOR_GENERATE),
    *((UPSCALE, given) for given in FOR_UPSCALE),
    (ALONE, brings("source", "rng")),
    (ALONE, {"seeding": "per_stage", **at("upscaler", noise_level=20)}),
    *((request, given) for request in (VARY, INPAINT) for given in FOR_SOURCES),
    (VARY, brings("source", "rng")),
    (VARY, {"first_stage": "stage_one", **brings("source", "embeds")}),
    (INPAINT, {"first_stage": "stage_one", **brings("source", "mask", "embeds", "rng")}),
    (VARY, {"first_stage": "stage_two", **brings("source", "embeds", "image64", "rng")}),
    (INPAINT, {"first_stage": "stage_two", **brings("source", "mask", "embeds", "image64")}),
]


@pytest.mark.parametrize(("request_", "given"), GOOD, ids=case)
def test_what_can_be_drawn_passes(request_: Request, given: Fields) -> None:
    rules.check_fields(replace(request_, **given))


# ---- what does not

TEXTS: list[tuple[Fields, str, object, str]] = [
    ({"prompt": "x" * 2001}, "prompt", "x" * 2001, "2001 characters; at most 2000 (the encoder reads 77 tokens)"),
    ({"negative": "x" * 2001}, "negative", "x" * 2001, "2001 characters; at most 2000 (the encoder reads 77 tokens)"),
    (
        {"prompt": "\N{GRINNING FACE}" * 1025},
        "prompt",
        "\N{GRINNING FACE}" * 1025,
        "4100 bytes of UTF-8; at most 4096",
    ),
    ({"prompt": "a \ud83d"}, "prompt", "a \ud83d", "holds half a surrogate pair: send valid Unicode"),
    ({"negative": "\udc00"}, "negative", "\udc00", "holds half a surrogate pair: send valid Unicode"),
    ({"prompt": "a\x00b"}, "prompt", "a\x00b", "holds control characters: send plain text"),
    ({"negative": "\x1b[31m"}, "negative", "\x1b[31m", "holds control characters: send plain text"),
    ({"style": "x" * 2001}, "style", "x" * 2001, "2001 characters; at most 2000 (the encoder reads 77 tokens)"),
    ({"style": "\ud83d"}, "style", "\ud83d", "holds half a surrogate pair: send valid Unicode"),
    ({"style": "\x07"}, "style", "\x07", "holds control characters: send plain text"),
]
NUMBERS: list[tuple[Fields, str, object, str]] = [
    ({"seed": -1}, "seed", -1, "from 0 to 2**63 - 1"),
    ({"seed": 2**63}, "seed", 2**63, "from 0 to 2**63 - 1"),
    ({"priority": 101}, "priority", 101, "from -100 to 100; higher goes first"),
    ({"priority": -101}, "priority", -101, "from -100 to 100; higher goes first"),
    ({"deadline": 0}, "deadline", 0, "seconds from acceptance: above 0, at most 604800 (a week)"),
    ({"deadline_queued": 0}, "deadline_queued", 0, "seconds from acceptance: above 0, at most 604800 (a week)"),
    ({"deadline_running": 604801}, "deadline_running", 604801, "seconds from its beginning: above 0, at most 604800 (a week)"),
    ({"deadline": 604801}, "deadline", 604801, "seconds from acceptance: above 0, at most 604800 (a week)"),
    ({"deadline": float("nan")}, "deadline", float("nan"), "seconds from acceptance: above 0, at most 604800 (a week)"),
    ({"keep": -1}, "keep", -1, "seconds: from 0 to 86400 (a day)"),
    ({"keep": 86401}, "keep", 86401, "seconds: from 0 to 86400 (a day)"),
    ({"keep": float("nan")}, "keep", float("nan"), "seconds: from 0 to 86400 (a day)"),
]
TASK = "one of generate, vary, inpaint, upscale, encode"
STAGE = "one of encoder, stage_one, stage_two, upscaler, guard"
WAY: list[tuple[Fields, str, object, str]] = [
    ({"task": "draw"}, "task", "draw", TASK),
    ({"task": ""}, "task", "", TASK),
    ({"seeding": "none"}, "seeding", "none", "one of chained, per_stage"),
    ({"format": "gif"}, "format", "gif", "one of png, webp, jpeg"),
    ({"first_stage": "t5"}, "first_stage", "t5", STAGE),
    ({"last_stage": "stage_three"}, "last_stage", "stage_three", STAGE),
]
DIGEST = "the SHA-256, in hex, of what the request brings; empty if it brings nothing"
SETTINGS = "settings belong to one of stage_one, stage_two, upscaler"
FALLING = "a strictly falling list within 999..0"
UPSCALER = "the upscaler takes steps only, as its pipeline does"
LATENTS = "the upscaler draws latents, which are not thresholded: leave it out"
RATIO = "a quantile: above 0, at most 1; published: 0.95"
MOST = "from 1 (cut at -1 and 1) to 100; published: 1.5 in Stage I, 1 in Stage II"
SAMPLERS = "one of ddpm, dpm++, dpm++-single, ddim"
BURNS = f"does not apply dynamic thresholding: pictures burn out; {SAMPLERS}"
STRIDES = "strides evenly and takes no list of timesteps: give steps, or another scheduler"
GUIDANCE = "from 0 to 100; 1 or less means no guidance"
SETTING: list[tuple[Fields, str, object, str]] = [
    (at("stage_3"), "settings", "stage_3", SETTINGS),
    (at("encoder"), "settings", "encoder", SETTINGS),
    (at("guard", steps=3), "settings", "guard", SETTINGS),
    (at("stage_one", steps=0), "settings.stage_one.steps", 0, "from 1 to 1000"),
    (at("stage_two", steps=1001), "settings.stage_two.steps", 1001, "from 1 to 1000"),
    (at("upscaler", steps=-1), "settings.upscaler.steps", -1, "from 1 to 1000"),
    (at("stage_one", steps=3, timesteps=(3, 2)), "settings.stage_one.steps", 3, "give steps or timesteps, not both"),
    (
        at("upscaler", timesteps=(3, 2)),
        "settings.upscaler.timesteps",
        (3, 2),
        UPSCALER,
    ),
    (at("upscaler", schedule="fast27"), "settings.upscaler.schedule", "fast27", UPSCALER),
    (at("stage_one", schedule="fast27", steps=3), "settings.stage_one.schedule", "fast27", "give schedule or steps, not both"),
    (at("stage_two", schedule="9", timesteps=(3,)), "settings.stage_two.schedule", "9", "give schedule or timesteps, not both"),
    (at("stage_one", schedule="fast28"), "settings.stage_one.schedule", "fast28", f"one of {FORMS}; did you mean fast27?"),
    (at("stage_one", schedule=""), "settings.stage_one.schedule", "", f"one of {FORMS}"),
    (at("stage_two", schedule="0,0"), "settings.stage_two.schedule", "0,0", "leaves no timestep: at least one step in one section"),
    *((at("stage_one", scheduler=n), "settings.stage_one.scheduler", n, BURNS) for n in ("euler", "Euler a", "pndm", "kdpm2-a", "tcd")),
    (at("stage_two", scheduler="dpm-sde"), "settings.stage_two.scheduler", "dpm-sde", f"needs torchsde; {SAMPLERS}"),
    (at("stage_two", scheduler="lms"), "settings.stage_two.scheduler", "lms", f"needs scipy; {SAMPLERS}"),
    (at("stage_two", scheduler="unipc"), "settings.stage_two.scheduler", "unipc", f"is not offered here; {SAMPLERS}"),
    (at("upscaler", scheduler="euler"), "settings.upscaler.scheduler", "euler", f"is not offered here; {SAMPLERS}"),
    (at("stage_one", scheduler="dpm+"), "settings.stage_one.scheduler", "dpm+", f"{SAMPLERS}; did you mean dpm++?"),
    (at("stage_one", scheduler=""), "settings.stage_one.scheduler", "", SAMPLERS),
    (at("stage_one", scheduler="x" * 9999), "settings.stage_one.scheduler", "x" * 9999, SAMPLERS),
    (at("stage_one", scheduler="ddim", schedule="fast27"), "settings.stage_one.scheduler", "ddim", STRIDES),
    (at("stage_two", scheduler="ddim", timesteps=(9, 0)), "settings.stage_two.scheduler", "ddim", STRIDES),
    *((at("stage_one", threshold_ratio=n), "settings.stage_one.threshold_ratio", n, RATIO) for n in (0, -0.1, 1.01, float("nan"))),
    *((at("stage_two", threshold_max=n), "settings.stage_two.threshold_max", n, MOST) for n in (0.99, 101, float("inf"), float("nan"))),
    (at("upscaler", threshold_ratio=0.9), "settings.upscaler.threshold_ratio", 0.9, LATENTS),
    (at("upscaler", threshold_max=2), "settings.upscaler.threshold_max", 2, LATENTS),
    (at("stage_one", timesteps=()), "settings.stage_one.timesteps", (), FALLING),
    (at("stage_one", timesteps=(5, 5)), "settings.stage_one.timesteps", (5, 5), FALLING),
    (at("stage_one", timesteps=(1, 2)), "settings.stage_one.timesteps", (1, 2), FALLING),
    (at("stage_two", timesteps=(1000, 2)), "settings.stage_two.timesteps", (1000, 2), FALLING),
    (at("stage_two", timesteps=(2, -1)), "settings.stage_two.timesteps", (2, -1), FALLING),
    (at("stage_one", guidance=-0.1), "settings.stage_one.guidance", -0.1, GUIDANCE),
    (at("upscaler", guidance=101), "settings.upscaler.guidance", 101, GUIDANCE),
    (at("stage_two", guidance=float("nan")), "settings.stage_two.guidance", float("nan"), GUIDANCE),
    (at("stage_one", noise_level=0), "settings.stage_one.noise_level", 0, "Stage I has none: leave it out"),
    (at("stage_two", noise_level=-1), "settings.stage_two.noise_level", -1, "from 0 to 999"),
    (at("stage_two", noise_level=1000), "settings.stage_two.noise_level", 1000, "from 0 to 999"),
    (at("upscaler", noise_level=351), "settings.upscaler.noise_level", 351, "from 0 to 350"),
    (
        at("upscaler", strength=0.5),
        "settings.upscaler.strength",
        0.5,
        "belongs to stage_one and stage_two: leave it out",
    ),
]
PIXELS = "base pixels (Stage I): a multiple of 8 from 8 to 256, or leave it out"
NO_SOURCE = "belongs to vary and inpaint: leave it out"
RANGE = "above 0, at most 1; 1 keeps nothing of the source"
ENDS = "one of stage_one, stage_two, upscaler"
ORDER = "each at most once, in this order: source, mask, embeds, image64, image256, rng"
ENCODED = "stage_one or stage_two: what brings embeds begins there"
IMAGE64, IMAGE256 = "stage_two: what brings image64 begins there", "upscaler: what brings image256 begins there"
LARGER = "Stage I makes nothing larger: encoder (or stage_two with embeds), or upscaler"
MIXED = "belongs to stage_one and stage_two of a request with a style: leave it out"
MIXER = "from 0 (the prompt alone) to 1 (the style alone); published: 0.25 in Stage I, 0.5 in Stage II"
STYLE = "belongs to Stage I and II: leave it out"
CHAINED = "a generator state goes through all stages: 'chained', or give a seed instead"
OWN: list[tuple[Request, Fields, str, object, str]] = [
    # a prompt
    *((r, {"prompt": p}, "prompt", p, "say what to draw: the prompt is empty") for r in (GENERATE, VARY, ENCODE) for p in ("", " \n\t")),
    *((r, {"prompt": ""}, "prompt", "", "say what the picture shows: the prompt is empty") for r in (UPSCALE, ALONE)),
    # sizes belong to what is generated
    *((GENERATE, {field: n}, field, n, PIXELS) for field in ("width", "height") for n in (60, 0, -8, 264)),
    (VARY, {"width": 64}, "width", 64, "vary follows its source: leave it out"),
    (INPAINT, {"height": 64}, "height", 64, "inpaint follows its source: leave it out"),
    (ENCODE, {"width": 64}, "width", 64, "leave it out"),
    (UPSCALE, {"height": 64}, "height", 64, "upscale follows its source: leave it out"),
    # where it ends
    *(
        (r, {"last_stage": s}, "last_stage", s, f"for {r.task}: {ENDS}")
        for r in (GENERATE, VARY, INPAINT, UPSCALE, ALONE)
        for s in ("encoder", "guard")
    ),
    (ALONE, {"last_stage": "stage_two"}, "first_stage", "upscaler", "must not come after last_stage 'stage_two'"),
    # where it begins
    *((r, {"first_stage": "upscaler"}, "first_stage", "upscaler", f"{r.task} ends before: go on with generate") for r in (VARY, INPAINT)),
    (UPSCALE, {"first_stage": "stage_one"}, "first_stage", "stage_one", LARGER),
    (UPSCALE, {"last_stage": "stage_one"}, "first_stage", "encoder", LARGER),
    # what is kept is for a stage that comes after
    *((r, {"keep": 60}, "keep", 60, "nothing comes after upscaler: leave it out, or stop earlier") for r in (GENERATE, UPSCALE, ALONE)),
    (ENCODE, {"keep": 60}, "keep", 60, "nothing comes after encoder: leave it out, or stop earlier"),
    # a style, where texts are mixed
    *((r, {"style": "in oil"}, "style", "in oil", STYLE) for r in (ENCODE, ALONE)),
    (GENERATE, {"style": "in oil", "first_stage": "upscaler", **brings("image256")}, "style", "in oil", STYLE),
    *((GENERATE, at(s, positive_mixer=0.5), f"settings.{s}.positive_mixer", 0.5, MIXED) for s in rules.DRAW),
    (GENERATE, {"style": "a", **at("upscaler", positive_mixer=0.5)}, "settings.upscaler.positive_mixer", 0.5, MIXED),
    *(
        (r, {"style": "in oil", **at("stage_two", positive_mixer=bad)}, "settings.stage_two.positive_mixer", bad, MIXER)
        for r in (GENERATE, VARY, UPSCALE)
        for bad in (-0.01, 1.01, float("nan"))
    ),
    *((ENCODE, {"last_stage": s}, "last_stage", s, "for encode: one of encoder") for s in ("stage_one", "upscaler", "guard")),
    *(
        (
            r,
            {"first_stage": "upscaler", "last_stage": "stage_one"},
            "first_stage",
            "upscaler",
            "must not come after last_stage 'stage_one'",
        )
        for r in (GENERATE, VARY, INPAINT)
    ),
    (GENERATE, {"first_stage": "guard"}, "first_stage", "guard", "must not come after last_stage 'upscaler'"),
    (ENCODE, {"first_stage": "stage_one"}, "first_stage", "stage_one", "must not come after last_stage 'encoder'"),
    # what it brings: the order
    (INPAINT, brings("mask", "source"), "brings", ("mask", "source"), ORDER),
    (VARY, brings("source", "source"), "brings", ("source", "source"), ORDER),
    (GENERATE, {"first_stage": "stage_one", **brings("rng", "embeds")}, "brings", ("rng", "embeds"), ORDER),
    (GENERATE, brings("rng", "image64"), "brings", ("rng", "image64"), ORDER),
    (GENERATE, brings("image1024"), "brings", ("image1024",), ORDER),
    # missing
    (VARY, {"brings": (), "upload": ""}, "source", None, "vary needs one: upload it"),
    (VARY, brings("mask"), "source", None, "vary needs one: upload it"),
    (INPAINT, {"brings": (), "upload": ""}, "source", None, "inpaint needs one: upload it"),
    (INPAINT, brings("source"), "mask", None, "inpaint needs one: upload it"),
    (INPAINT, brings("mask"), "source", None, "inpaint needs one: upload it"),
    *((r, {"brings": (), "upload": ""}, "source", None, "upscale needs one: upload it") for r in (UPSCALE, ALONE)),
    # extra
    (GENERATE, brings("source"), "brings", "source", "not for generate: leave it out"),
    (GENERATE, brings("mask"), "brings", "mask", "not for generate: leave it out"),
    (VARY, brings("source", "mask"), "brings", "mask", "not for vary: leave it out"),
    (ENCODE, brings("source"), "brings", "source", "not for encode: leave it out"),
    (ENCODE, brings("rng"), "brings", "rng", "not for encode: leave it out"),
    (ENCODE, brings("embeds"), "brings", "embeds", "not for encode: leave it out"),
    (UPSCALE, brings("source", "mask"), "brings", "mask", "not for upscale: leave it out"),
    *((r, brings("source", "image64"), "brings", "image64", "not for upscale: leave it out") for r in (UPSCALE, ALONE)),
    (ALONE, brings("source", "image256"), "brings", "image256", "not for upscale: leave it out"),
    # embeddings, and generators
    *((r, brings(*r.brings, "embeds"), "first_stage", r.first_stage, ENCODED) for r in (GENERATE, VARY, INPAINT, UPSCALE, ALONE)),
    # what earlier stages have drawn
    *((GENERATE, {"first_stage": s, **brings("image64")}, "first_stage", s, IMAGE64) for s in ("encoder", "stage_one", "upscaler")),
    *((GENERATE, {"first_stage": s, **brings("image256")}, "first_stage", s, IMAGE256) for s in ("encoder", "stage_one", "stage_two")),
    (GENERATE, {"first_stage": "stage_two", **brings("image64", "image256")}, "first_stage", "stage_two", IMAGE256),
    *((r, brings(*r.brings, "image64"), "first_stage", "encoder", IMAGE64) for r in (VARY, INPAINT)),
    *((r, {"seeding": "per_stage", **brings(*r.brings, "rng")}, "seeding", "per_stage", CHAINED) for r in (GENERATE, VARY, INPAINT)),
    # the upload's name
    *((r, {"upload": ""}, "upload", "", DIGEST) for r in (VARY, INPAINT)),
    *((r, {"upload": SHA}, "upload", SHA, DIGEST) for r in (GENERATE, ENCODE)),
    *((VARY, {"upload": bad}, "upload", bad, DIGEST) for bad in ("5e", "5E" * 32, SHA + "\n", SHA + "0", "g" * 64, "../" + SHA)),
    # settings of a stage that is not gone through; those after the last one are for whoever goes on
    (UPSCALE, at("stage_one", steps=5), "settings.stage_one.steps", 5, "upscale does not go through stage_one: leave it out"),
    (ALONE, at("stage_one", guidance=5), "settings.stage_one.guidance", 5, "upscale does not go through stage_one: leave it out"),
    (ALONE, at("stage_two", noise_level=0), "settings.stage_two.noise_level", 0, "drawing begins with upscaler: leave it out"),
    *((ENCODE, at(s, steps=5), f"settings.{s}.steps", 5, f"encode does not go through {s}: leave it out") for s in rules.DRAW),
    (
        GENERATE,
        {"first_stage": "stage_two", **brings("embeds", "image64"), **at("stage_one", schedule="fast27")},
        "settings.stage_one.schedule",
        "fast27",
        "drawing begins with stage_two: leave it out",
    ),
    # strength belongs to a source
    *((GENERATE, at(s, strength=0.5), f"settings.{s}.strength", 0.5, NO_SOURCE) for s in ("stage_one", "stage_two")),
    (ENCODE, at("stage_one", strength=0.5), "settings.stage_one.strength", 0.5, NO_SOURCE),
    *(
        (r, at(s, strength=bad), f"settings.{s}.strength", bad, RANGE)
        for r in (VARY, INPAINT)
        for s in ("stage_one", "stage_two")
        for bad in (0, -0.1, 1.0001, 2, float("nan"), float("inf"))
    ),
    # and leaves a step
    (
        VARY,
        at("stage_one", strength=0.3, steps=3),
        "settings.stage_one.strength",
        0.3,
        "leaves no step of 3: at least 0.3334, or more steps",
    ),
    (
        INPAINT,
        at("stage_two", strength=0.0099, steps=100),
        "settings.stage_two.strength",
        0.0099,
        "leaves no step of 100: at least 0.01, or more steps",
    ),
    (
        VARY,
        at("stage_two", strength=0.4, timesteps=(900, 500)),
        "settings.stage_two.strength",
        0.4,
        "leaves no step of 2: at least 0.5, or more steps",
    ),
    (
        VARY,
        at("stage_one", strength=0.03, schedule="fast27"),
        "settings.stage_one.strength",
        0.03,
        "leaves no step of 27: at least 0.0371, or more steps",
    ),
    (
        INPAINT,
        at("stage_one", strength=0.99, steps=1),
        "settings.stage_one.strength",
        0.99,
        "leaves no step of 1: at least 1.0, or more steps",
    ),
]
BAD = [(request, *row) for request in ALL.values() for row in (*TEXTS, *NUMBERS, *WAY, *SETTING)] + OWN


@pytest.mark.parametrize(("request_", "given", "field", "value", "remedy"), BAD, ids=case)
def test_what_never_can_be_drawn_is_refused_with_field_value_and_remedy(
    request_: Request, given: Fields, field: str, value: object, remedy: str
) -> None:
    error = refused(replace(request_, **given))
    assert (error.field, repr(error.value), error.remedy) == (field, repr(value), remedy)  # repr: nan is not nan
    shown = repr(value)
    assert str(error) == f"{field}: {shown if len(shown) <= 80 else shown[:77] + '...'}: {remedy}"
    assert len(str(error)) < 250


def test_every_field_is_refused_somewhere() -> None:
    """Whoever adds a field adds its rule, or says here why it needs none."""
    free = {"stages", "tied"}  # yes or no
    seen = {field.split(".")[0] for _, _, field, _, _ in BAD}
    assert {f.name for f in fields(Request)} - free <= seen
    assert {f.name for f in fields(Settings)} == {field.split(".")[2] for _, _, field, _, _ in BAD if field.startswith("settings.")}


# ---- strength


def test_what_is_left_is_what_the_pipelines_leave() -> None:
    assert [rules.steps_left(80, strength) for strength in (0.3, 0.7, 1.0)] == [24, 56, 80]
    assert rules.steps_left(27, 0.7) == 18
    assert rules.steps_left(10, 0.7) == 7
    assert rules.steps_left(3, 0.3) == 0


@pytest.mark.parametrize(("steps", "least"), [(1, 1.0), (2, 0.5), (3, 0.3334), (7, 0.1429), (50, 0.02), (80, 0.0125), (1000, 0.001)])
def test_the_smallest_strength_in_words(steps: int, least: float) -> None:
    assert rules.least_strength(steps) == least


def test_the_smallest_strength_leaves_a_step_and_nothing_smaller_does() -> None:
    for steps in range(1, 1001):
        least = rules.least_strength(steps)
        assert rules.steps_left(steps, least) >= 1, steps
        assert rules.steps_left(steps, least - 1e-4) == 0, steps
        rules.check_steps_left("stage_one", steps, least)
        assert str(least) in refused(replace(VARY, **at("stage_one", steps=steps, strength=least - 1e-4))).remedy

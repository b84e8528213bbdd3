"""What flows between the stages, and every refusal of a request with its words."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from ifmesh.cascade import DRAWN, IF, Blob, Cascade, StageSpec
from ifmesh.errors import BadRequest
from ifmesh.protocol import STAGES, Request, Settings

FOX = Request("a fox", 7)


def names(blobs: tuple[Blob, ...]) -> list[str]:
    return sorted(blob.name for blob in blobs)


def test_the_cascade_has_the_stages_in_order() -> None:
    assert tuple(spec.name for spec in IF.stages) == STAGES
    assert IF["guard"].name == "guard"


@pytest.mark.parametrize(
    ("last", "route"),
    [
        ("stage_one", ("encoder", "stage_one", "guard")),
        ("stage_two", ("encoder", "stage_one", "stage_two", "guard")),
        ("upscaler", STAGES),
    ],
)
def test_every_route_ends_at_the_guard(last: str, route: tuple[str, ...]) -> None:
    assert IF.route(replace(FOX, last_stage=last)) == route


FLOW = {  # (last stage, earlier pictures too): what the bag holds when each stage is done
    ("upscaler", True): {
        "encoder": ["embeds", "rng"],
        "stage_one": ["embeds", "image64", "rng"],
        "stage_two": ["image256", "image64", "rng"],
        "upscaler": ["image1024", "image256", "image64"],
        "guard": ["flagged", "png_stage_one", "png_stage_two", "png_upscaler"],
    },
    ("upscaler", False): {
        "encoder": ["embeds", "rng"],
        "stage_one": ["embeds", "image64", "rng"],
        "stage_two": ["image256", "rng"],
        "upscaler": ["image1024"],
        "guard": ["flagged", "png_upscaler"],
    },
    ("stage_two", True): {
        "encoder": ["embeds", "rng"],
        "stage_one": ["embeds", "image64", "rng"],
        "stage_two": ["image256", "image64"],
        "guard": ["flagged", "png_stage_one", "png_stage_two"],
    },
    ("stage_two", False): {
        "encoder": ["embeds", "rng"],
        "stage_one": ["embeds", "image64", "rng"],
        "stage_two": ["image256"],
        "guard": ["flagged", "png_stage_two"],
    },
    ("stage_one", True): {"encoder": ["embeds", "rng"], "stage_one": ["image64"], "guard": ["flagged", "png_stage_one"]},
    ("stage_one", False): {"encoder": ["embeds", "rng"], "stage_one": ["image64"], "guard": ["flagged", "png_stage_one"]},
}


@pytest.mark.parametrize(("last", "stages"), FLOW)
def test_a_bag_carries_what_later_stages_need_and_nothing_else(last: str, stages: bool) -> None:
    request = replace(FOX, last_stage=last, stages=stages)
    assert {stage: names(IF.carries(request, stage)) for stage in IF.route(request)} == FLOW[last, stages]


@pytest.mark.parametrize(("last", "stages"), FLOW)
def test_what_enters_a_stage_is_what_left_the_one_before_and_all_it_needs(last: str, stages: bool) -> None:
    request = replace(FOX, last_stage=last, stages=stages)
    route = IF.route(request)
    assert IF.enters(request, "encoder") == ()
    for before, stage in pairwise(route):
        assert IF.enters(request, stage) == IF.carries(request, before)
        assert set(IF[stage].needs(request)) <= set(IF.enters(request, stage))


def test_a_later_blob_of_the_same_name_takes_the_place_of_the_earlier() -> None:
    old, new = Blob("x", (1,)), Blob("x", (2,))
    cascade = Cascade(
        (
            StageSpec("encoder", lambda r: (), lambda r: (old,)),
            StageSpec("stage_one", lambda r: (old,), lambda r: (new,)),
            StageSpec("guard", lambda r: (new,), lambda r: ()),
        )
    )
    assert cascade.enters(replace(FOX, last_stage="stage_one"), "guard") == (new,)


GOOD: list[dict[str, Any]] = [
    {},
    {"prompt": "x" * 2000},
    {"prompt": "line one\nline two\ttab\r"},
    {"prompt": "\N{GRINNING FACE}" * 1000},
    {"negative": ""},
    {"seed": 0},
    {"seed": 2**63 - 1},
    {"last_stage": "stage_one"},
    {"width": 96, "height": 8},
    {"priority": -100},
    {"deadline": 0.001},
    {"deadline": 604800},
    {"keep": 86400},
    {"settings": {"stage_one": Settings(timesteps=(999, 500, 0), guidance=0)}},
    {"settings": {"stage_two": Settings(steps=1000, noise_level=999)}},
    {"settings": {"upscaler": Settings(steps=1, noise_level=350, guidance=100)}},
]


@pytest.mark.parametrize("given", GOOD, ids=str)
def test_what_can_be_drawn_passes(given: dict[str, Any]) -> None:
    IF.check(replace(FOX, **given))


def at_stage(stage: str, **given: Any) -> dict[str, Any]:
    return {"settings": {stage: Settings(**given)}}


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"task": "draw"}, "task", "one of generate, vary, inpaint, upscale, encode"),
    ({"task": "inpaint"}, "task", "this version of ifmesh draws 'generate' only"),
    ({"prompt": ""}, "prompt", "say what to draw: the prompt is empty"),
    ({"prompt": " \n\t"}, "prompt", "say what to draw: the prompt is empty"),
    ({"prompt": "x" * 2001}, "prompt", "2001 characters; at most 2000 (the encoder reads 77 tokens)"),
    ({"negative": "x" * 2001}, "negative", "2001 characters; at most 2000 (the encoder reads 77 tokens)"),
    ({"prompt": "\N{GRINNING FACE}" * 1025}, "prompt", "4100 bytes of UTF-8; at most 4096"),
    ({"prompt": "a \ud83d"}, "prompt", "holds half a surrogate pair: send valid Unicode"),
    ({"prompt": "a\x00b"}, "prompt", "holds control characters: send plain text"),
    ({"negative": "\x1b[31m"}, "negative", "holds control characters: send plain text"),
    ({"seed": -1}, "seed", "from 0 to 2**63 - 1"),
    ({"seed": 2**63}, "seed", "from 0 to 2**63 - 1"),
    ({"first_stage": "t5"}, "first_stage", "one of encoder, stage_one, stage_two, upscaler, guard"),
    ({"last_stage": "stage_three"}, "last_stage", "one of encoder, stage_one, stage_two, upscaler, guard"),
    ({"last_stage": "encoder"}, "last_stage", "one of stage_one, stage_two, upscaler: a stage that draws"),
    ({"last_stage": "guard"}, "last_stage", "one of stage_one, stage_two, upscaler: a stage that draws"),
    ({"first_stage": "upscaler", "last_stage": "stage_one"}, "first_stage", "must not come after last_stage 'stage_one'"),
    ({"first_stage": "stage_one"}, "first_stage", "stage_one needs embeds, rng, which nothing before it gives"),
    ({"first_stage": "stage_two"}, "first_stage", "stage_two needs embeds, image64, rng, which nothing before it gives"),
    ({"first_stage": "upscaler"}, "first_stage", "upscaler needs image256, rng, which nothing before it gives"),
    ({"width": 60}, "width", "base pixels (Stage I): a multiple of 8 from 8 to 256, or leave it out"),
    ({"width": 0}, "width", "base pixels (Stage I): a multiple of 8 from 8 to 256, or leave it out"),
    ({"height": 264}, "height", "base pixels (Stage I): a multiple of 8 from 8 to 256, or leave it out"),
    ({"priority": 101}, "priority", "from -100 to 100; higher goes first"),
    ({"deadline": 0}, "deadline", "seconds from acceptance: above 0, at most 604800 (a week)"),
    ({"deadline": 604801}, "deadline", "seconds from acceptance: above 0, at most 604800 (a week)"),
    ({"deadline": float("nan")}, "deadline", "seconds from acceptance: above 0, at most 604800 (a week)"),
    ({"keep": -1}, "keep", "seconds: from 0 to 86400 (a day)"),
    ({"keep": float("nan")}, "keep", "seconds: from 0 to 86400 (a day)"),
    ({"continues": "a"}, "continues", "this version of ifmesh does not continue kept bags yet: leave it out"),
    (at_stage("stage_3"), "settings", "settings belong to one of stage_one, stage_two, upscaler"),
    (at_stage("encoder"), "settings", "settings belong to one of stage_one, stage_two, upscaler"),
    (at_stage("stage_one", steps=0), "settings.stage_one.steps", "from 1 to 1000"),
    (at_stage("stage_two", steps=1001), "settings.stage_two.steps", "from 1 to 1000"),
    (at_stage("stage_one", steps=3, timesteps=(3, 2)), "settings.stage_one.steps", "give steps or timesteps, not both"),
    (at_stage("upscaler", timesteps=(3, 2)), "settings.upscaler.timesteps", "the upscaler takes steps only, as its pipeline does"),
    (at_stage("stage_one", timesteps=()), "settings.stage_one.timesteps", "a strictly falling list within 999..0"),
    (at_stage("stage_one", timesteps=(5, 5)), "settings.stage_one.timesteps", "a strictly falling list within 999..0"),
    (at_stage("stage_one", timesteps=(1, 2)), "settings.stage_one.timesteps", "a strictly falling list within 999..0"),
    (at_stage("stage_two", timesteps=(1000, 2)), "settings.stage_two.timesteps", "a strictly falling list within 999..0"),
    (at_stage("stage_two", timesteps=(2, -1)), "settings.stage_two.timesteps", "a strictly falling list within 999..0"),
    (at_stage("stage_one", guidance=-0.1), "settings.stage_one.guidance", "from 0 to 100; 1 or less means no guidance"),
    (at_stage("upscaler", guidance=101), "settings.upscaler.guidance", "from 0 to 100; 1 or less means no guidance"),
    (at_stage("stage_one", noise_level=0), "settings.stage_one.noise_level", "Stage I has none: leave it out"),
    (at_stage("stage_two", noise_level=1000), "settings.stage_two.noise_level", "from 0 to 999"),
    (at_stage("upscaler", noise_level=351), "settings.upscaler.noise_level", "from 0 to 350"),
    (at_stage("stage_one", strength=0.5), "settings.stage_one.strength", "belongs to vary and inpaint: leave it out"),
]


@pytest.mark.parametrize(("given", "field", "remedy"), BAD, ids=lambda x: str(x)[:40])
def test_what_never_can_be_drawn_is_refused_with_field_value_and_remedy(given: dict[str, Any], field: str, remedy: str) -> None:
    with pytest.raises(BadRequest) as caught:
        IF.check(replace(FOX, **given))
    assert (caught.value.field, caught.value.remedy) == (field, remedy)
    assert str(caught.value).startswith(f"{field}: ")
    assert str(caught.value).endswith(f": {remedy}")
    assert len(str(caught.value)) < 250


def test_every_stage_that_draws_has_settings() -> None:
    for stage in DRAWN:
        IF.check(replace(FOX, settings={stage: Settings()}))

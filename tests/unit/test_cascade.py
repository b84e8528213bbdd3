"""What flows between the stages: what a bag holds at every door, for every task."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from ifmesh import rules
from ifmesh.cascade import BROUGHT, DRAWN, IF, PICTURE, Blob, Cascade, StageSpec, kept
from ifmesh.errors import BadRequest
from ifmesh.request import STAGES, TASKS, Request, Settings

SHA = "5e" * 32
FOX = Request("a fox", 7)
VARY = replace(FOX, task="vary", brings=("source",), upload=SHA)
INPAINT = replace(FOX, task="inpaint", brings=("source", "mask"), upload=SHA)
UPSCALE = replace(FOX, task="upscale", brings=("source",), upload=SHA)
ALONE = replace(UPSCALE, first_stage="upscaler")
ENCODE = replace(FOX, task="encode", last_stage="encoder")
EMBEDDED = replace(FOX, first_stage="stage_one", brings=("embeds",), upload=SHA)
SEEDED = replace(FOX, brings=("rng",), upload=SHA)
PREVIEW = Request("preview", 0, first_stage="stage_two", last_stage="stage_two", stages=False)


def names(blobs: tuple[Blob, ...]) -> str:
    return " ".join(sorted(blob.name for blob in blobs))


def test_the_cascade_has_the_stages_in_order() -> None:
    assert tuple(spec.name for spec in IF.stages) == STAGES
    assert IF["guard"].name == "guard"


def test_what_is_said_twice_is_the_same() -> None:
    assert tuple(BROUGHT) == rules.ORDER
    assert rules.ENTERS.keys() == {name for name in BROUGHT if name not in ("source", "mask", "rng")}
    assert tuple(DRAWN) == tuple(PICTURE) == rules.DRAW
    assert rules.NEEDS.keys() == set(TASKS) >= rules.MAY.keys()


@pytest.mark.parametrize(
    ("request_", "route"),
    [
        (replace(FOX, last_stage="stage_one"), "encoder stage_one guard"),
        (replace(FOX, last_stage="stage_two"), "encoder stage_one stage_two guard"),
        (FOX, " ".join(STAGES)),
        (VARY, " ".join(STAGES)),
        (replace(INPAINT, last_stage="stage_one"), "encoder stage_one guard"),
        (EMBEDDED, "stage_one stage_two upscaler guard"),
        (UPSCALE, "encoder stage_two upscaler guard"),
        (replace(UPSCALE, last_stage="stage_two"), "encoder stage_two guard"),
        (ALONE, "upscaler guard"),
        (replace(FOX, first_stage="stage_two", brings=("embeds", "image64"), upload=SHA), "stage_two upscaler guard"),
        (ENCODE, "encoder"),
        (PREVIEW, "stage_two guard"),
    ],
    ids=lambda x: x if isinstance(x, str) else x.task,
)
def test_whatever_is_drawn_ends_at_the_guard(request_: Request, route: str) -> None:
    assert " ".join(IF.route(request_)) == route


FLOW: dict[str, tuple[Request, dict[str, str]]] = {  # "": what the client brings; then what the bag holds when each stage is done
    "generate": (
        FOX,
        {
            "": "",
            "encoder": "embeds rng tokens",
            "stage_one": "embeds image64 rng tokens",
            "stage_two": "image256 image64 rng tokens",
            "upscaler": "image1024 image256 image64 tokens",
            "guard": "flagged picture_stage_one picture_stage_two picture_upscaler tokens",
        },
    ),
    "generate, the last picture only": (
        replace(FOX, stages=False),
        {
            "": "",
            "encoder": "embeds rng tokens",
            "stage_one": "embeds image64 rng tokens",
            "stage_two": "image256 rng tokens",
            "upscaler": "image1024 tokens",
            "guard": "flagged picture_upscaler tokens",
        },
    ),
    "generate, to Stage II": (
        replace(FOX, last_stage="stage_two"),
        {
            "": "",
            "encoder": "embeds rng tokens",
            "stage_one": "embeds image64 rng tokens",
            "stage_two": "image256 image64 tokens",
            "guard": "flagged picture_stage_one picture_stage_two tokens",
        },
    ),
    "generate, to Stage II, the last picture only": (
        replace(FOX, last_stage="stage_two", stages=False),
        {
            "": "",
            "encoder": "embeds rng tokens",
            "stage_one": "embeds image64 rng tokens",
            "stage_two": "image256 tokens",
            "guard": "flagged picture_stage_two tokens",
        },
    ),
    "generate, to Stage I": (
        replace(FOX, last_stage="stage_one"),
        {"": "", "encoder": "embeds rng tokens", "stage_one": "image64 tokens", "guard": "flagged picture_stage_one tokens"},
    ),
    "generate, a seed for each stage": (  # the state is there all the same: who is not chained makes its own
        replace(FOX, seeding="per_stage", last_stage="stage_one"),
        {"": "", "encoder": "embeds rng tokens", "stage_one": "image64 tokens", "guard": "flagged picture_stage_one tokens"},
    ),
    "vary": (
        VARY,
        {
            "": "source",
            "encoder": "embeds rng source tokens",
            "stage_one": "embeds image64 rng source tokens",
            "stage_two": "image256 image64 rng tokens",
            "upscaler": "image1024 image256 image64 tokens",
            "guard": "flagged picture_stage_one picture_stage_two picture_upscaler tokens",
        },
    ),
    "vary, to Stage I": (
        replace(VARY, last_stage="stage_one"),
        {"": "source", "encoder": "embeds rng source tokens", "stage_one": "image64 tokens", "guard": "flagged picture_stage_one tokens"},
    ),
    "inpaint": (
        INPAINT,
        {
            "": "mask source",
            "encoder": "embeds mask rng source tokens",
            "stage_one": "embeds image64 mask rng source tokens",
            "stage_two": "image256 image64 rng tokens",
            "upscaler": "image1024 image256 image64 tokens",
            "guard": "flagged picture_stage_one picture_stage_two picture_upscaler tokens",
        },
    ),
    "inpaint, the last picture of Stage II only": (
        replace(INPAINT, last_stage="stage_two", stages=False),
        {
            "": "mask source",
            "encoder": "embeds mask rng source tokens",
            "stage_one": "embeds image64 mask rng source tokens",
            "stage_two": "image256 tokens",
            "guard": "flagged picture_stage_two tokens",
        },
    ),
    "embeddings of one's own": (  # no encoder: nothing is known of the texts
        EMBEDDED,
        {
            "": "embeds",
            "stage_one": "embeds image64 rng",
            "stage_two": "image256 image64 rng",
            "upscaler": "image1024 image256 image64",
            "guard": "flagged picture_stage_one picture_stage_two picture_upscaler",
        },
    ),
    "a generator of one's own": (
        replace(SEEDED, last_stage="stage_two"),
        {
            "": "rng",
            "encoder": "embeds rng tokens",
            "stage_one": "embeds image64 rng tokens",
            "stage_two": "image256 image64 tokens",
            "guard": "flagged picture_stage_one picture_stage_two tokens",
        },
    ),
    "inpaint with embeddings and a generator of one's own": (
        replace(INPAINT, first_stage="stage_one", last_stage="stage_two", brings=("source", "mask", "embeds", "rng")),
        {
            "": "embeds mask rng source",
            "stage_one": "embeds image64 mask rng source",
            "stage_two": "image256 image64",
            "guard": "flagged picture_stage_one picture_stage_two",
        },
    ),
    "upscale": (
        UPSCALE,
        {
            "": "source",
            "encoder": "embeds rng source tokens",
            "stage_two": "image256 rng tokens",
            "upscaler": "image1024 image256 tokens",
            "guard": "flagged picture_stage_two picture_upscaler tokens",
        },
    ),
    "upscale, by Stage II, with embeddings of one's own": (
        replace(UPSCALE, first_stage="stage_two", last_stage="stage_two", brings=("source", "embeds")),
        {"": "embeds source", "stage_two": "image256", "guard": "flagged picture_stage_two"},
    ),
    "upscale, by the upscaler alone": (ALONE, {"": "source", "upscaler": "image1024", "guard": "flagged picture_upscaler"}),
    "generate, to Stage I, and kept": (
        replace(FOX, last_stage="stage_one", keep=60.0),
        {
            "": "",
            "encoder": "embeds rng tokens",
            "stage_one": "embeds image64 rng tokens",
            "guard": "embeds flagged image64 picture_stage_one rng tokens",
        },
    ),
    "inpaint, to Stage I, and kept": (
        replace(INPAINT, last_stage="stage_one", keep=60.0),
        {
            "": "mask source",
            "encoder": "embeds mask rng source tokens",
            "stage_one": "embeds image64 mask rng source tokens",
            "guard": "embeds flagged image64 mask picture_stage_one rng source tokens",
        },
    ),
    "vary, to Stage II, and kept, the last picture only": (
        replace(VARY, last_stage="stage_two", keep=60.0, stages=False),
        {
            "": "source",
            "encoder": "embeds rng source tokens",
            "stage_one": "embeds image64 rng source tokens",
            "stage_two": "image256 rng tokens",
            "guard": "flagged image256 picture_stage_two rng tokens",
        },
    ),
    "generate, from what was kept of Stage I": (
        replace(FOX, first_stage="stage_two", brings=("embeds", "image64", "rng"), upload=SHA),
        {
            "": "embeds image64 rng",
            "stage_two": "image256 rng",
            "upscaler": "image1024 image256",
            "guard": "flagged picture_stage_two picture_upscaler",
        },
    ),
    "inpaint, from what was kept of Stage I": (
        replace(INPAINT, first_stage="stage_two", brings=("source", "mask", "embeds", "image64", "rng")),
        {
            "": "embeds image64 mask rng source",
            "stage_two": "image256 rng",
            "upscaler": "image1024 image256",
            "guard": "flagged picture_stage_two picture_upscaler",
        },
    ),
    "generate, from what was kept of Stage II": (
        replace(FOX, first_stage="upscaler", brings=("image256", "rng"), upload=SHA),
        {"": "image256 rng", "upscaler": "image1024", "guard": "flagged picture_upscaler"},
    ),
    "encode": (ENCODE, {"": "", "encoder": "embeds tokens"}),
    "a preview": (PREVIEW, {"": "", "stage_two": "image256", "guard": "flagged picture_stage_two"}),
}


@pytest.mark.parametrize("case", FLOW)
def test_a_bag_carries_what_later_stages_need_and_nothing_else(case: str) -> None:
    request, flow = FLOW[case]
    route = IF.route(request)
    assert {"": names(IF.enters(request, route[0]))} | {stage: names(IF.carries(request, stage)) for stage in route} == flow


@pytest.mark.parametrize("case", [case for case in FLOW if case != "a preview"])
def test_what_enters_a_stage_is_what_left_the_one_before_and_all_it_needs(case: str) -> None:
    request, _ = FLOW[case]
    route = IF.route(request)
    IF.check(request)
    assert tuple(blob.name for blob in IF.enters(request, route[0])) == request.brings
    for before, stage in pairwise(route):
        assert IF.enters(request, stage) == IF.carries(request, before)
    for stage in route:
        assert set(IF[stage].needs(request)) <= set(IF.enters(request, stage))


def test_a_generator_is_made_by_the_first_stage_unless_one_is_brought() -> None:
    both = replace(EMBEDDED, brings=("embeds", "rng"))
    assert names(IF["encoder"].gives(FOX)) == "embeds rng tokens"
    assert names(IF["encoder"].gives(SEEDED)) == "embeds tokens", "it travels by"
    assert names(IF["stage_one"].needs(FOX)) == names(IF["stage_one"].needs(both)) == "embeds rng"
    assert names(IF["stage_one"].needs(EMBEDDED)) == "embeds"
    for stage in ("stage_one", "stage_two", "upscaler"):
        assert "rng" in names(IF[stage].gives(EMBEDDED))


@pytest.mark.parametrize("stage", DRAWN)
def test_a_preview_goes_in_as_one_picture_and_comes_out_checked(stage: str) -> None:
    request = replace(PREVIEW, first_stage=stage, last_stage=stage)
    assert IF.enters(request, "guard") == (DRAWN[stage],)
    assert set(IF.carries(request, "guard")) == {PICTURE[stage], Blob("flagged", (1,), "U8")}


@pytest.mark.parametrize("request_", [FOX, VARY, INPAINT, UPSCALE, SEEDED], ids=lambda r: r.task)
def test_what_is_kept_is_what_another_request_goes_on_with(request_: Request) -> None:
    """The same blobs enter the next stage, whoever brings them; a state that nobody reads is not kept."""
    for last, first in (("stage_one", "stage_two"), ("stage_two", "upscaler")):
        if request_.task == "upscale" and last == "stage_one":
            continue
        asked = replace(request_, last_stage=last, keep=60.0)
        task = "generate" if last == "stage_two" else asked.task
        brings = tuple(name for name in BROUGHT if name in names(kept(asked)).split())
        onwards = replace(request_, task=task, first_stage=first, brings=brings, upload=SHA)
        IF.check(onwards)
        assert set(IF[first].needs(onwards)) == set(kept(asked))
        assert set(kept(asked)) <= set(IF.carries(asked, "guard"))
        if asked.brings[-1:] != ("rng",):
            each = replace(asked, seeding="per_stage")
            assert {blob.name for blob in kept(each)} == set(brings) - {"rng"}
            IF.check(replace(onwards, seeding="per_stage", brings=tuple(name for name in brings if name != "rng")))
        assert kept(replace(asked, keep=0.0)) == ()


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


@pytest.mark.parametrize("request_", [FOX, VARY, INPAINT, UPSCALE, ALONE, ENCODE, EMBEDDED, SEEDED], ids=lambda r: r.task)
def test_every_task_can_be_served(request_: Request) -> None:
    IF.check(request_)


@pytest.mark.parametrize(
    ("request_", "remedy"),
    [
        (replace(FOX, first_stage="stage_one"), "stage_one needs embeds, which nothing before it gives"),
        (replace(FOX, first_stage="stage_two"), "stage_two needs embeds, image64, which nothing before it gives"),
        (replace(FOX, first_stage="upscaler"), "upscaler needs image256, which nothing before it gives"),
        (replace(VARY, first_stage="stage_two"), "stage_two needs embeds, image64, which nothing before it gives"),
        (replace(INPAINT, first_stage="stage_one"), "stage_one needs embeds, which nothing before it gives"),
        (replace(UPSCALE, first_stage="stage_two"), "stage_two needs embeds, which nothing before it gives"),
        (replace(EMBEDDED, first_stage="stage_two"), "stage_two needs image64, which nothing before it gives"),
        (replace(SEEDED, first_stage="stage_one"), "stage_one needs embeds, which nothing before it gives"),
    ],
)
def test_who_starts_where_something_is_missing_is_told_what(request_: Request, remedy: str) -> None:
    with pytest.raises(BadRequest) as caught:
        IF.check(request_)
    assert str(caught.value) == f"first_stage: {request_.first_stage!r}: {remedy}"


def test_the_rules_of_the_fields_are_asked_first() -> None:
    with pytest.raises(BadRequest, match=r"^prompt: "):
        IF.check(replace(FOX, prompt="", first_stage="upscaler"))


def test_every_stage_that_draws_has_settings() -> None:
    for stage in DRAWN:
        IF.check(replace(FOX, settings={stage: Settings()}))

"""Stages that do nothing give exactly what the cascade declares, in its true sizes."""

from __future__ import annotations

import io

import pytest
from PIL import Image as pillow

from ifmesh import bags
from ifmesh.bench import stages
from ifmesh.bench.stages import Encoder, Guard, StageOne, StageTwo, Upscaler, bag
from ifmesh.cascade import IF, PICTURE
from ifmesh.request import STAGES, Request
from ifmesh.stage import Setup

REQUEST = Request("a fox", 7, negative="blurry", stages=False)


def test_the_sizes_are_those_of_the_real_cascade_in_fp16() -> None:
    sizes = {name: len(tensor.data) for stage in STAGES for name, tensor in bag(stage, REQUEST).items()}
    assert sizes["embeds"] == 1_261_568
    assert (sizes["image64"], sizes["image256"], sizes["image1024"]) == (24_576, 393_216, 3_145_728)
    assert sizes["picture_upscaler"] == pytest.approx(3_145_728, rel=0.001)


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_what_flows_is_what_the_cascade_wants(tiny: bool, whole: bool) -> None:
    request = Request("a fox", 7, stages=whole)
    came = bags.encode({})
    for made in (Encoder(), StageOne(), StageTwo(), Upscaler(), Guard()):
        made.load(Setup(options={"tiny": tiny}))
        held = bags.decode(came, IF.enters(request, made.name))
        assert made.admit("j", request, held) == 1
        (advance,) = made.step()
        assert (advance.step, advance.steps) == (1, 1)
        assert advance.output is not None
        both = {**held, **advance.output}
        came = bags.encode({blob.name: both[blob.name] for blob in IF.carries(request, made.name)})
        assert came == bags.encode(bag(made.name, request, tiny))
        assert not list(made.step())


def test_a_picture_is_a_file_that_opens() -> None:
    file = stages.given(PICTURE["upscaler"])
    with pillow.open(io.BytesIO(bytes(file.data))) as opened:
        opened.load()
        assert (opened.format, opened.size) == ("PNG", (1024, 1024))


def test_paused_and_dropped_jobs_are_left_alone() -> None:
    stage = StageOne()
    stage.load(Setup())
    for job in ("a", "b", "c"):
        stage.admit(job, REQUEST, {})
    stage.drop("b")
    assert [advance.job for advance in stage.step(paused={"c"})] == ["a"]
    assert [advance.job for advance in stage.step()] == ["c"]

"""The guard, against diffusers' own output_type="pil" with the safety checker and the watermark on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import IFPipeline, IFSuperResolutionPipeline
from ifmesh_services import mending
from ifmesh_services.guard import Guard, pixels, png
from ifmesh_services.tensors import to_blob, to_torch

from ifmesh.cascade import IF
from ifmesh.protocol import Request
from ifmesh.stage import Advance, Bag, Setup, Tensor

STEPS = 3
TOKENS = to_blob(torch.tensor([[1, 1, 0], [80, 77, 3]]))


def guard(cascade: Path) -> Guard:
    made = Guard()
    assert made.load(Setup(cascade=str(cascade)))
    return made


def bag(side: int = 64, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The pictures of one job, seeded: noise that reaches beyond -1..1, as a stage's output may."""
    source = torch.Generator().manual_seed(side)
    small, middle = (torch.randn(3, n, n, generator=source).to(dtype) for n in (side, 4 * side))
    large = torch.randint(0, 256, (3, 16 * side, 16 * side), generator=source, dtype=torch.uint8)
    return {"image64": to_blob(small), "image256": to_blob(middle), "image1024": to_blob(large), "tokens": TOKENS}


def through(stage: Guard, request: Request, given: Bag) -> list[Advance]:
    """All the steps of one job; the last has the output."""
    steps = stage.admit("a", request, given)
    seen: list[Advance] = []
    while not seen or seen[-1].output is None:
        assert len(seen) < steps
        seen += stage.step()
    assert [a.step for a in seen] == list(range(1, steps + 1))
    assert not list(stage.step())
    return seen


def image(tensor: Tensor) -> np.ndarray[Any, Any]:
    assert tensor.dtype == "U8"
    assert tensor.shape == (len(tensor.data),)
    return np.asarray(PIL.Image.open(io.BytesIO(tensor.data)))


@pytest.fixture(scope="module")
def guard64(nano64: Path) -> Guard:
    return guard(nano64)


def drawn_by(pipeline: Any, **inputs: Any) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    """The same draw twice: what the stage would hand on, and what the pipeline publishes."""
    pipeline.set_progress_bar_config(disable=True)
    kinds = [pipeline(**inputs, generator=torch.Generator().manual_seed(5), output_type=kind).images for kind in ("pt", "pil")]
    return kinds[0][0], np.asarray(kinds[1][0])


@pytest.mark.parametrize("cascade", ["nano64", "flagging64"])
def test_stage_one_as_the_pipeline_publishes_it(cascade: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(cascade)
    mending.mend_safety_checker()
    kind: Any = IFPipeline
    pipeline = kind.from_pretrained(folder / "IF-I-nano")
    drawn, published = drawn_by(pipeline, prompt="a red fox", num_inference_steps=STEPS, clean_caption=False)
    [done] = through(guard(folder), Request("a red fox", 5, last_stage="stage_one"), {"image64": to_blob(drawn), "tokens": TOKENS})
    assert done.output is not None
    assert np.array_equal(image(done.output["picture_stage_one"]), published)
    assert done.output["flagged"].data == bytes([cascade == "flagging64"])
    assert len(np.unique(published)) > (1 if cascade == "flagging64" else 100)  # a picture, and on black at least the watermark


def test_stage_two_as_the_pipeline_publishes_it(nano64: Path, guard64: Guard) -> None:
    mending.mend_safety_checker()
    kind: Any = IFSuperResolutionPipeline
    pipeline = kind.from_pretrained(nano64 / "IF-II-nano")
    low = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    drawn, published = drawn_by(pipeline, prompt="a red fox", image=low, num_inference_steps=STEPS, clean_caption=False)
    [done] = through(guard64, Request("a red fox", 5, last_stage="stage_two", stages=False), {"image256": to_blob(drawn), "tokens": TOKENS})
    assert done.output is not None
    assert set(done.output) == {"picture_stage_two", "flagged", "tokens"}
    assert np.array_equal(image(done.output["picture_stage_two"]), published)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_in_its_own_dtype(guard64: Guard, dtype: torch.dtype) -> None:
    given = bag(dtype=dtype)
    drawn = to_torch(given["image64"])
    expected = ((drawn / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).float().numpy() * 255).round().astype("uint8")
    [done] = through(guard64, Request("a fox", 1, last_stage="stage_one"), given)
    assert done.output is not None
    differ = (image(done.output["picture_stage_one"]) != expected).any(-1)
    assert 0 < differ.sum() < 20  # the watermark alone


def test_a_whole_job_is_checked_picture_by_picture(guard64: Guard) -> None:
    seen = through(guard64, Request("a fox", 1), bag())
    assert [(a.step, a.steps, a.output is None) for a in seen] == [(1, 3, True), (2, 3, True), (3, 3, False)]
    output = seen[-1].output
    assert output is not None
    assert set(output) == {"picture_stage_one", "picture_stage_two", "picture_upscaler", "flagged", "tokens"}
    assert [image(output[f"picture_{stage}"]).shape[:2] for stage in ("stage_one", "stage_two", "upscaler")] == [
        (64, 64),
        (256, 256),
        (1024, 1024),
    ]
    assert bytes(output["flagged"].data) == b"\0"


def test_the_upscalers_pixels_are_left_as_they_are_but_for_the_mark(guard64: Guard) -> None:
    given = bag()
    [done] = through(guard64, Request("a fox", 1, stages=False), given)
    assert done.output is not None
    large = np.frombuffer(given["image1024"].data, np.uint8).reshape(3, 1024, 1024).transpose(1, 2, 0)
    differ = (image(done.output["picture_upscaler"]) != large).any(-1)
    assert 0 < differ.sum() <= 62 * 62
    rows, columns = differ.nonzero()
    assert min(rows.min(), columns.min()) >= 1024 - 14 - 62  # the lower right corner


def test_all_256_values_survive_the_checkers_floats() -> None:
    every = torch.arange(256, dtype=torch.uint8).repeat(3, 1, 1)
    assert np.array_equal((pixels(every) * 255).round().astype("uint8")[0, 0, :, 0], np.arange(256))


def test_flagged_pictures_are_black(flagging64: Path) -> None:
    output = through(guard(flagging64), Request("a fox", 1), bag())[-1].output
    assert output is not None
    assert bytes(output["flagged"].data) == b"\1"
    for name in ("picture_stage_one", "picture_stage_two", "picture_upscaler"):
        picture = image(output[name])
        side = len(picture)
        assert not picture[: side * 9 // 10].any()  # above the watermark, which blanked pictures have too


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64), (24, 16), (17, 17)])
def test_the_mark_lies_in_the_corner_of_any_shape(guard64: Guard, height: int, width: int) -> None:
    grey = torch.zeros(3, height, width)
    [done] = through(guard64, Request("a fox", 1, last_stage="stage_one"), {"image64": to_blob(grey), "tokens": TOKENS})
    assert done.output is not None
    differ = (image(done.output["picture_stage_one"]) != 128).any(-1)
    rows, columns = differ.nonzero()
    assert len(rows)
    assert rows.min() > height * 0.75
    assert columns.min() > width * 0.75


def test_a_picture_too_small_for_a_mark_has_none(guard64: Guard) -> None:
    grey = torch.zeros(3, 16, 16)
    [done] = through(guard64, Request("a fox", 1, last_stage="stage_one"), {"image64": to_blob(grey), "tokens": TOKENS})
    assert done.output is not None
    assert (image(done.output["picture_stage_one"]) == 128).all()


def test_the_same_pixels_are_the_same_file(nano16: Path) -> None:
    """Also after other work, and from another guard."""
    first, second = guard(nano16), guard(nano16)
    through(second, Request("another", 2, last_stage="stage_one"), bag(24))
    request = Request("a fox", 1)
    assert through(first, request, bag(16))[-1] == through(second, request, bag(16))[-1]


def test_png_holds_pixels_only() -> None:
    file = png(PIL.Image.new("RGB", (8, 8), "red"))
    chunks, at = [], 8
    while at < len(file):
        chunks.append(file[at + 4 : at + 8])
        at += 12 + int.from_bytes(file[at : at + 4], "big")
    assert chunks == [b"IHDR", b"IDAT", b"IEND"]


def test_numbers_that_are_none_do_not_pass(guard64: Guard) -> None:
    broken = torch.zeros(3, 64, 64)
    broken[0, 0, 0] = torch.nan
    guard64.admit("a", Request("a fox", 1, last_stage="stage_one"), {"image64": to_blob(broken), "tokens": TOKENS})
    with pytest.raises(ArithmeticError, match="no numbers"):
        list(guard64.step())
    guard64.drop("a")


def test_what_is_known_of_the_texts_passes(guard64: Guard) -> None:
    [done] = through(guard64, Request("a fox", 1, last_stage="stage_one"), bag(16))
    assert done.output is not None
    assert done.output["tokens"] == TOKENS
    assert set(done.output) == {b.name for b in IF["guard"].gives(Request("a fox", 1, last_stage="stage_one"))}


def test_a_preview_has_no_texts(guard64: Guard) -> None:
    request = Request("preview", 0, first_stage="stage_two", last_stage="stage_two", stages=False)
    [done] = through(guard64, request, {"image256": bag(16)["image256"]})
    assert done.output is not None
    assert set(done.output) == {"picture_stage_two", "flagged"}


def test_a_missing_picture_is_refused_and_a_dropped_job_forgotten(guard64: Guard) -> None:
    given = bag(16)
    with pytest.raises(ValueError, match="image64"):
        guard64.admit("a", Request("a fox", 1), {k: v for k, v in given.items() if k != "image64"})
    assert guard64.admit("b", Request("a fox", 1), given) == 3
    guard64.drop("b")
    guard64.drop("never admitted")
    assert not list(guard64.step())

"""The judge, on pictures of which the truth is known."""

from __future__ import annotations

import random

import numpy as np
import pytest
from ifmesh_services.nano.exam import contacts, interval, score
from ifmesh_services.nano.judge import Verdict, grain, judge, pieces
from ifmesh_services.nano.painter import paint
from ifmesh_services.nano.scenes import COLOURS, SHAPES, Scene, scene
from PIL import Image, ImageFilter


def said(of: Scene) -> dict[str, str]:
    return {"shape": of.shape, "colour": of.colour, "background": of.background, "position": of.position}


def spoiled(picture: Image.Image, seed: int) -> Image.Image:
    """Mildly blurred, and noisy."""
    soft = picture.filter(ImageFilter.GaussianBlur(picture.width / 64 * 0.7))
    noise = np.random.default_rng(seed).normal(0, 8, (picture.height, picture.width, 3))
    return Image.fromarray((np.asarray(soft, float) + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("spoil", [False, True], ids=["clean", "blurred and noisy"])
@pytest.mark.parametrize(("side", "count"), [(64, 48), (256, 24), (1024, 8)])
def test_it_knows_what_is_painted(side: int, count: int, spoil: bool) -> None:
    draw = random.Random(side)
    wrong = []
    for i in range(count):
        colour, background = draw.sample(tuple(COLOURS), 2)
        made = scene(draw, (SHAPES[i % len(SHAPES)], colour, background))
        picture = paint(made, side)
        verdict = judge(spoiled(picture, i) if spoil else picture)
        if not verdict.right(said(made))["all"] or abs(verdict.radius - made.radius) > 0.05 or verdict.clean < 0.98:
            wrong.append((made, verdict))
    assert len(wrong) <= count // 100, wrong


def test_it_notices_what_is_wrong() -> None:
    made = scene(random.Random(1), ("star", "red", "white"), "large", "left")
    verdict = judge(paint(made, 64))
    assert verdict.right(said(made)) == {"shape": True, "colours": True, "position": True, "all": True}
    for key, other in (("shape", "heart"), ("colour", "orange"), ("background", "grey"), ("position", "right")):
        right = verdict.right(said(made) | {key: other})
        assert not right["all"]
        assert [name for name in ("shape", "colours", "position") if not right[name]] == [
            "colours" if key in ("colour", "background") else key
        ]
    assert verdict.right(said(made) | {"position": ""})["all"]


def test_nothing_noise_and_two_objects_have_no_shape() -> None:
    assert judge(Image.new("RGB", (64, 64), COLOURS["green"])) == Verdict(background="green")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert judge(Image.fromarray(noise)).shape == ""
    two = Image.new("RGB", (64, 64), COLOURS["white"])
    for at in (4, 40):
        two.paste(COLOURS["red"], (at, at, at + 20, at + 20))
    assert (judge(two).shape, judge(two).whole) == ("", 0.5)


def test_a_blotch_of_another_colour_is_not_clean() -> None:
    made = paint(scene(random.Random(4), ("circle", "red", "white"), "medium", "left"), 64)
    made.paste(COLOURS["blue"], (44, 20, 56, 32))
    assert judge(made).clean < 0.98


def test_grain_is_that_of_the_background_alone() -> None:
    smooth = paint(scene(random.Random(3), ("star", "yellow", "grey"), "large"), 64)
    noise = np.random.default_rng(3).normal(0, 10, (64, 64, 3))
    rough = Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8))
    assert grain(smooth) < 3  # where its edge shades off into the star
    assert 9 < grain(rough) < 11


def test_pieces_touch_by_edges() -> None:
    covered = np.array([[1, 0, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]], bool)
    assert sorted(int(piece.sum()) for piece in pieces(covered)) == [1, 1, 9]


def test_a_score_and_its_interval() -> None:
    draw = random.Random(6)
    scenes = [scene(draw) for _ in range(6)]
    pictures = [paint(one, 64) for one in scenes]
    asked = [said(one) for one in scenes]
    asked[2]["shape"] = next(shape for shape in SHAPES if shape != asked[2]["shape"])
    found = score(pictures, asked)
    assert (found.captions, found.wrong, found.colours, found.shape) == (6, (2,), 1.0, 5 / 6)
    assert found.interval == interval(5, 6)
    assert interval(95, 100) == (0.8882, 0.9785)
    assert interval(0, 10)[0] == 0.0
    assert interval(10, 10)[1] == 1.0
    frame = contacts(pictures, found.wrong, 3).getpixel((2 * 72, 0))
    assert frame == (255, 0, 0)

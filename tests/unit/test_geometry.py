"""How a source becomes the stages' sizes.  That diffusers' own `resize` says the same is tested where diffusers is."""

from __future__ import annotations

import random

import pytest

from ifmesh import geometry

SIZES = [  # the source, then Stage I, then Stage II: (width, height)
    ((512, 512), (64, 64), (256, 256)),
    ((768, 512), (96, 64), (384, 256)),
    ((512, 768), (64, 96), (256, 384)),
    ((500, 768), (64, 96), (256, 392)),  # Stage II follows the source, not four times Stage I
    ((768, 500), (96, 64), (392, 256)),
    ((1, 1), (64, 64), (256, 256)),
    ((4000, 1000), (256, 64), (1024, 256)),
    ((1000, 1), (64000, 64), (256000, 256)),  # beyond ASPECT, which is for others to refuse
]


@pytest.mark.parametrize(("source", "one", "two"), SIZES, ids=str)
def test_the_sizes_that_are_written_down(source: tuple[int, int], one: tuple[int, int], two: tuple[int, int]) -> None:
    assert geometry.fitted(*source, 64) == one
    assert geometry.fitted(*source, 256) == two


def test_a_half_goes_to_the_even_side_as_in_python() -> None:
    assert geometry.fitted(25, 16, 64) == (96, 64)  # 12.5 times 8
    assert geometry.fitted(27, 16, 64) == (112, 64)  # 13.5 times 8


@pytest.mark.parametrize("side", [64, 256])
def test_any_source_becomes_multiples_of_eight_and_keeps_its_aspect(side: int) -> None:
    dice = random.Random(side)
    for _ in range(2000):
        width, height = dice.randrange(1, 6000), dice.randrange(1, 6000)
        fitted = geometry.fitted(width, height, side)
        assert min(fitted) == side
        assert not any(n % geometry.GRID for n in fitted)
        assert max(fitted) == pytest.approx(side * max(width / height, height / width), abs=geometry.GRID / 2)


SHAPES = {
    "1:1": (64, 64),
    "3:2": (96, 64),
    "2:3": (64, 96),
    "16:9": (112, 64),
    "9:16": (64, 112),
    "21:9": (152, 64),
    "1920:1080": (112, 64),
}


@pytest.mark.parametrize("aspect", SHAPES)
def test_an_aspect_keeps_the_shorter_side(aspect: str) -> None:
    assert geometry.shaped(aspect) == SHAPES[aspect]


def test_an_aspect_is_the_rule_of_the_original() -> None:
    """_get_image_sizes of deepfloyd_if/modules/base.py with img_size=64: the side is kept, not the area."""
    for width in range(1, 41):
        for height in range(1, 41):
            if max(width, height) > 4 * min(width, height):
                with pytest.raises(ValueError, match="at most 4 times"):
                    geometry.shaped(f"{width}:{height}")
                continue
            long = int(round(64 / 8 * (width / height)) * 8) if width >= height else int(round(64 / 8 / (width / height)) * 8)
            assert geometry.shaped(f"{width}:{height}") == ((long, 64) if width >= height else (64, long))


@pytest.mark.parametrize(
    "aspect", ["", "3", "3:2:1", "3:", "0:1", "1:0", "-3:2", "3:2\n", " 3:2", "1.5:1", "123456:1", "\N{ARABIC-INDIC DIGIT THREE}:2"]
)
def test_what_is_no_aspect(aspect: str) -> None:
    with pytest.raises(ValueError, match="as in 3:2"):
        geometry.shaped(aspect)


def test_alike_is_a_mask_of_any_resolution_with_the_sources_aspect() -> None:
    assert geometry.alike((768, 512), (768, 512))
    assert geometry.alike((768, 512), (192, 128))
    assert geometry.alike((500, 768), (1500, 2304))
    assert geometry.alike((1000, 1000), (1001, 1000)), "a pixel more or less is cut away in both"
    assert not geometry.alike((768, 512), (512, 768))
    assert not geometry.alike((768, 512), (512, 512))
    assert not geometry.alike((500, 768), (512, 768)), "alike in Stage I alone is not enough"
    assert geometry.alike((500, 768), (512, 768), sides=(64,))


def test_enlarged_by_a_whole_number_it_is_alike() -> None:
    dice = random.Random(8)
    for _ in range(2000):
        width, height, times = dice.randrange(1, 2000), dice.randrange(1, 2000), dice.randrange(1, 9)
        assert geometry.alike((width, height), (times * width, times * height))


def test_the_limits_are_those_that_are_promised() -> None:
    assert geometry.FILE_BYTES == 16 * 1024 * 1024
    assert geometry.PIXELS == 25_000_000
    assert geometry.FORMATS == ("PNG", "JPEG", "WEBP")


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ((64, 64), (64, 64)),
        ((100, 75), (96, 72)),  # 12.5 and 9.375 times 8
        ((101, 77), (104, 80)),
        ((259, 3), (256, 16)),
        ((1, 1), (16, 16)),
        ((1024, 683), (1024, 680)),
    ],
)
def test_what_is_made_larger_lies_on_the_grid(source: tuple[int, int], seen: tuple[int, int]) -> None:
    assert geometry.gridded(*source) == seen

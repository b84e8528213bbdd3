"""The sizes of pictures: what a client may upload, and how it becomes the stages' sizes.  Pure."""

from __future__ import annotations

import re
from typing import Final

FILE_BYTES: Final = 16 << 20  # of one uploaded file
PIXELS: Final = 25_000_000  # of one uploaded picture
FORMATS: Final = ("PNG", "JPEG", "WEBP")  # as Pillow names them
ASPECT: Final = 4  # the longer side, at most so many times the shorter: 64 x 256 in Stage I
BASE: Final = 64  # pixels of the shorter side of what Stage I draws, unless somebody says otherwise
GRID: Final = 8  # every side that a UNet draws is a multiple
LEAST: Final = 16  # pixels of a side of what is made larger
MOST: Final = {"stage_two": 256, "upscaler": 1024}  # and at most: of what each of them makes four times larger


def fitted(width: int, height: int, side: int) -> tuple[int, int]:
    """(width, height) of a source in a stage whose UNet draws `side` pixels: the shorter becomes `side`, the longer keeps the aspect.

    Formula: `resize` of diffusers' deepfloyd_if pipelines, which is why Stage II is not always four times Stage I: 500 x 768 gives
    64 x 96, then 256 x 392.
    """
    aspect = width / height
    if aspect >= 1:
        return int(round(side / GRID * aspect) * GRID), side
    return side, int(round(side / GRID / aspect) * GRID)


def shaped(aspect: str) -> tuple[int, int]:
    """(width, height) in Stage I of a picture of that aspect, "w:h" in whole numbers: "3:2" is 96 x 64, in the end 1536 x 1024.

    Formula: `_get_image_sizes` of deepfloyd_if/modules/base.py (https://github.com/deep-floyd/IF), which is that of `fitted`: the
    shorter side stays BASE, the longer is the nearest multiple of GRID.  ValueError, which says what would work.
    """
    found = re.fullmatch(r"([0-9]{1,5}):([0-9]{1,5})", aspect)
    width, height = map(int, found.groups()) if found else (0, 0)
    if not width or not height:
        raise ValueError("width to height in whole numbers, as in 3:2 or 16:9")
    if max(width, height) > ASPECT * min(width, height):
        raise ValueError(f"the longer side at most {ASPECT} times the shorter")
    return fitted(width, height, BASE)


def gridded(width: int, height: int) -> tuple[int, int]:
    """(width, height) of a picture that is made larger, as its stage sees it: the nearest multiples of GRID, and at least LEAST."""
    return max(LEAST, round(width / GRID) * GRID), max(LEAST, round(height / GRID) * GRID)


def alike(first: tuple[int, int], second: tuple[int, int], sides: tuple[int, ...] = (64, 256)) -> bool:
    """Do two pictures, (width, height) each, become the same sizes in the stages that draw `sides` pixels?"""
    return all(fitted(*first, side) == fitted(*second, side) for side in sides)

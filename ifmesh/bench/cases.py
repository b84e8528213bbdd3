"""The published examples, as `ifmesh verify` asks for them; what they start from is drawn here, so that nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as Pixels

SIDE = 512


def car() -> Pixels:
    """On a road, under a sun."""
    return _picture("#9fd0f0", [("#5b5f66", "rectangle", (0, 380, 512, 512)), ("#f6d34a", "ellipse", (400, 40, 470, 110)),
                                ("#d83a34", "rectangle", (90, 270, 430, 370)), ("#d83a34", "rectangle", (170, 190, 340, 280)),
                                ("#dff3ff", "rectangle", (190, 210, 320, 265)), ("#1d1f24", "ellipse", (120, 330, 200, 410)),
                                ("#1d1f24", "ellipse", (320, 330, 400, 410))])  # fmt: skip


def face() -> Pixels:
    """With bare eyes."""
    return _picture("#e7e2d6", [("#e9b48c", "ellipse", (136, 90, 376, 430)), ("#3b2a1e", "ellipse", (196, 220, 226, 250)),
                                ("#3b2a1e", "ellipse", (286, 220, 316, 250)), ("#b5483f", "rectangle", (216, 350, 296, 362)),
                                ("#5a3c22", "rectangle", (150, 70, 362, 140))])  # fmt: skip


def eyes() -> Pixels:
    """White where `face` has them."""
    return _picture("#000000", [("#ffffff", "rectangle", (150, 190, 362, 280))]).convert("L")


def _picture(ground: str, shapes: list[tuple[str, str, tuple[int, int, int, int]]]) -> Pixels:
    from PIL import Image, ImageDraw

    made = Image.new("RGB", (SIDE, SIDE), ground)
    draw = ImageDraw.Draw(made)
    for colour, kind, box in shapes:
        getattr(draw, kind)(box, fill=colour)
    return made


@dataclass(frozen=True, slots=True)
class Case:
    """source: it varies that; with a mask, it inpaints.  Both: RGB and L, 512 x 512.  Import Pillow."""

    prompt: str
    seed: int
    negative: str = ""
    source: Callable[[], Pixels] | None = None
    mask: Callable[[], Pixels] | None = None


CASES: Mapping[str, Case] = {
    "astronaut": Case("a photograph of an astronaut riding a horse", 0),
    "kangaroo": Case(
        "a photo of a kangaroo wearing an orange hoodie and blue sunglasses standing in front of the eiffel tower holding a sign "
        'that says "very deep learning"',
        1,
    ),
    "anime-car": Case("a car, anime style, trending on artstation, detailed", 2, "blurry, low quality", source=car),
    "stack-more-layers": Case('an orange neon sign that says "just stack more layers"', 3),
    "sunglasses": Case("blue sunglasses", 4, source=face, mask=eyes),
}
"""By name."""

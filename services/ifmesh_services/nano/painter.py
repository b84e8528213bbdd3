"""Paints scenes with Pillow, antialiased by painting them larger."""

from __future__ import annotations

import math
from collections.abc import Callable

from PIL import Image, ImageDraw

from ifmesh_services.nano.scenes import Scene

FINER = 4  # times larger than wanted, each way
Point = tuple[float, float]
Box = tuple[float, float, float, float]


def paint(scene: Scene, side: int, box: Box = (0.0, 0.0, 1.0, 1.0)) -> Image.Image:
    """The scene as RGB, side x side pixels.  box: the part of it that is wanted: left, top, right, bottom, 0 to 1."""
    left, top, right, _ = box
    scale = FINER * side / (right - left)
    cover = Image.new("L", (FINER * side, FINER * side))
    # Pillow counts pixels by their corners' index: half a pixel off the middle
    SHAPES[scene.shape](ImageDraw.Draw(cover), (scene.x - left) * scale - 0.5, (scene.y - top) * scale - 0.5, scene.radius * scale)
    picture = Image.new("RGB", (side, side), scene.ground)
    picture.paste(scene.paint, (0, 0, side, side), cover.resize((side, side), Image.Resampling.BOX))
    return picture


def _circle(draw: ImageDraw.ImageDraw, x: float, y: float, r: float) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), fill=255)


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float, r: float) -> None:
    _circle(draw, x, y, r)
    draw.ellipse((x - 0.55 * r, y - 0.55 * r, x + 0.55 * r, y + 0.55 * r), fill=0)


def _polygon(*points: Point) -> Callable[[ImageDraw.ImageDraw, float, float, float], None]:
    def draw_it(draw: ImageDraw.ImageDraw, x: float, y: float, r: float) -> None:
        draw.polygon([(x + r * across, y + r * down) for across, down in points], fill=255)

    return draw_it


def _star() -> list[Point]:
    """Five points, their tips on the unit circle, moved so that its box is about the middle."""
    turned = [(0.42 if i % 2 else 1.0, math.pi * (i / 5 - 0.5)) for i in range(10)]
    return [(r * math.cos(a), r * math.sin(a) + 0.095) for r, a in turned]


def _heart() -> list[Point]:
    """The curve with sixteen times the sine's cube, its box about the middle."""
    around = [math.tau * i / 96 for i in range(96)]
    curve = [(math.sin(a) ** 3, (13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16) for a in around]
    return [(across, -up - 0.16) for across, up in curve]


_A = 0.36  # half an arm of the cross
SHAPES: dict[str, Callable[[ImageDraw.ImageDraw, float, float, float], None]] = {
    "circle": _circle,
    "square": _polygon((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
    "triangle": _polygon((0, -0.88), (1, 0.88), (-1, 0.88)),
    "star": _polygon(*_star()),
    "heart": _polygon(*_heart()),
    "ring": _ring,
    "cross": _polygon(
        (-_A, -1), (_A, -1), (_A, -_A), (1, -_A), (1, _A), (_A, _A), (_A, 1), (-_A, 1), (-_A, _A), (-1, _A), (-1, -_A), (-_A, -_A)
    ),
    "diamond": _polygon((0, -1), (0.72, 0), (0, 1), (-0.72, 0)),
}

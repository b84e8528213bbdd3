"""The picture world: what there is to be seen in a picture of it, and which of it training never sees."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond")
COLOURS = {  # RGB, 0 to 255; any two are at least 80 apart
    "red": (215, 40, 45),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 55),
    "green": (45, 160, 70),
    "turquoise": (60, 205, 195),
    "blue": (40, 85, 220),
    "purple": (130, 55, 185),
    "pink": (245, 140, 190),
    "brown": (120, 70, 35),
    "black": (20, 20, 22),
    "white": (245, 245, 245),
    "grey": (135, 135, 138),
}
SIZES = {"small": (0.15, 0.18), "medium": (0.20, 0.25), "large": (0.28, 0.33)}  # half the object's larger side, as a share of the picture's
POSITIONS = {  # columns, rows from the middle
    "middle": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}
AWAY = (0.18, 0.24)  # how far off the middle a position is, as a share of the side
NEAR = 0.03  # how far off its place an object may be
MARGIN = 0.03  # between an object and the picture's edge
SHADE = 6  # how far a colour may be off, in each channel
HELD_OUT = Path(__file__).with_name("heldout.json")

Colour = tuple[int, int, int]
Kind = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Scene:
    """One object on a plain background.  The names are what a caption may say; the rest is what it leaves open.

    x, y: its middle, 0 to 1 from the top left.  radius: half its larger side (of a square a little more), as a share of the picture's.
    paint, ground: RGB, 0 to 255.
    """

    shape: str
    colour: str
    background: str
    size: str
    position: str
    x: float
    y: float
    radius: float
    paint: Colour
    ground: Colour

    @property
    def kind(self) -> Kind:
        """What is held out of training, or not: shape, colour, background."""
        return self.shape, self.colour, self.background


def scene(draw: random.Random, kind: Kind | None = None, size: str = "", position: str = "") -> Scene:
    """A scene, of that kind, size and position if they are given."""
    shape, colour, background = kind or kind_of(draw)
    size = size or draw.choice(tuple(SIZES))
    position = position or ("middle" if draw.random() < 0.3 else draw.choice(tuple(POSITIONS)))
    radius = draw.uniform(*SIZES[size])
    most = 0.5 - MARGIN - radius
    x, y = (0.5 + _off(draw, side, most) for side in POSITIONS[position])
    return Scene(shape, colour, background, size, position, x, y, radius, _shade(draw, colour), _shade(draw, background))


def kind_of(draw: random.Random) -> Kind:
    """Any kind at all."""
    colour, background = draw.sample(tuple(COLOURS), 2)
    return draw.choice(SHAPES), colour, background


def seen(draw: random.Random) -> Kind:
    """A kind that training may see."""
    while (kind := kind_of(draw)) in held_out():
        pass
    return kind


@cache
def held_out() -> frozenset[Kind]:
    """The kinds that training never sees: those of the captions in heldout.json."""
    return frozenset((each["shape"], each["colour"], each["background"]) for each in questions())


@cache
def questions() -> tuple[dict[str, str], ...]:
    """The captions in heldout.json, each with what it says: shape, colour, background, and size and position ("" if it says none)."""
    return tuple(json.loads(HELD_OUT.read_text(encoding="utf-8")))


def _off(draw: random.Random, side: int, most: float) -> float:
    """From the middle.  Objects that would leave the picture come nearer."""
    away = side * draw.uniform(*AWAY) if side else draw.uniform(-NEAR, NEAR)
    return max(-most, min(most, away))


def _shade(draw: random.Random, name: str) -> Colour:
    red, green, blue = (max(0, min(255, channel + draw.randint(-SHADE, SHADE))) for channel in COLOURS[name])
    return red, green, blue

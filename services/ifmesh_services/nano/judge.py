"""Says what is to be seen in a picture of the picture world: thresholds, connected pixels and overlaps; no model, nothing learned.

It knows the names of the colours and what the shapes are, but neither how pictures are painted nor what was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ifmesh_services.nano.scenes import COLOURS

SIDE = 160  # pixels of the longer side, to which pictures are brought: a smaller one's edges are found between its pixels
LEAST = 40.0  # how far an object's colour is from the background's; nearer there is no object.  And how far a blotch's from both
NEAR = 60.0  # how far from the background's colour its grain may be
ALIKE = 0.70  # overlap (intersection over union) from which on an object has a shape
WHOLE = 0.90  # share of all that is not background which one object must be
OFF = 0.10  # from the middle, as a share of the side: nearer is still the middle
CELLS = 48  # of a side of the grid on which shapes are compared
Reals = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be seen; "" where it cannot be told.

    position: as in scenes.POSITIONS.  overlap: 0 to 1, of the object with the shape it is most like.  radius: half its larger side, as a
    share of the picture's.  whole: 0 to 1, which share of all that is not background is the one object.  clean: 0 to 1, which share of the
    picture has the object's colour, the background's or one between: the rest are blotches.
    """

    shape: str = ""
    colour: str = ""
    background: str = ""
    position: str = ""
    overlap: float = 0.0
    radius: float = 0.0
    whole: float = 0.0
    clean: float = 1.0

    def right(self, said: Mapping[str, str]) -> dict[str, bool]:
        """What of a caption it bears out: shape, colours (both), position (where it says one), and all of them."""
        shape = self.shape == said["shape"]
        colours = (self.colour, self.background) == (said["colour"], said["background"])
        position = said["position"] in ("", self.position)
        return {"shape": shape, "colours": colours, "position": position, "all": shape and colours and position}


def judge(picture: Image.Image) -> Verdict:
    """What the picture shows, of whatever size and mode."""
    pixels = _pixels(picture)
    high, wide, _ = pixels.shape
    ground = _ground(pixels, SIDE // 50)
    away = np.linalg.norm(pixels - ground, axis=2)
    farthest = float(np.quantile(away, 0.99))  # the smallest object covers two per cent
    if farthest < LEAST:
        return Verdict(background=named(ground))
    paint: Reals = np.median(pixels[away > 0.8 * farthest], axis=0)
    line = paint - ground
    share = (pixels - ground) @ line / (line @ line)  # 0 is background, 1 object
    off = np.linalg.norm(pixels - ground - share.clip(0, 1)[..., None] * line, axis=2)
    covered = share > 0.5
    largest = max(pieces(covered), key=np.count_nonzero)
    rows, columns = np.flatnonzero(largest.any(axis=1)), np.flatnonzero(largest.any(axis=0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    shape, overlap = likest(largest[top:bottom, left:right])
    whole = float(np.count_nonzero(largest) / np.count_nonzero(covered))
    return Verdict(
        shape=shape if overlap >= ALIKE and whole >= WHOLE else "",
        colour=named(paint),
        background=named(ground),
        position=_position((left + right) / 2 / wide - 0.5, (top + bottom) / 2 / high - 0.5),
        overlap=round(overlap, 4),
        radius=round(max((bottom - top) / high, (right - left) / wide) / 2, 4),
        whole=round(whole, 4),
        clean=round(float(np.mean(off < LEAST)), 4),
    )


def grain(picture: Image.Image) -> float:
    """How uneven the background is: the deviation of what is near its colour, mean of the channels, 0 to 255."""
    pixels: Reals = np.asarray(picture.convert("RGB"), np.float64)
    near = pixels[np.linalg.norm(pixels - _ground(pixels, 1), axis=2) < NEAR]
    return float(near.std(axis=0).mean())


def named(colour: Reals) -> str:
    """The nearest colour that has a name."""
    return min(COLOURS, key=lambda name: float(np.linalg.norm(np.asarray(COLOURS[name]) - colour)))


def pieces(covered: Mask) -> list[Mask]:
    """Its connected parts, by edges, at least one.  Row by row, in runs; a run joins those it touches in the row above."""
    parent: list[int] = []

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    runs: list[tuple[int, int, int]] = []  # row, begin, end; its place is its number
    above: list[int] = []
    for row, line in enumerate(covered):
        ends = np.flatnonzero(np.diff(line.astype(np.int8), prepend=0, append=0)).reshape(-1, 2).tolist()
        here = []
        for begin, end in ends:
            mine = len(parent)
            parent.append(mine)
            runs.append((row, begin, end))
            here.append(mine)
            for other in above:
                if runs[other][1] < end and begin < runs[other][2]:
                    parent[root(other)] = root(mine)
        above = here
    found: dict[int, Mask] = {}
    for i, (row, begin, end) in enumerate(runs):
        found.setdefault(root(i), np.zeros_like(covered))[row, begin:end] = True
    return list(found.values()) or [covered]


def likest(object: Mask) -> tuple[str, float]:
    """The shape whose overlap with the object, each stretched to its box, is greatest, and the overlap.  A diamond is higher than wide."""
    high, wide = object.shape
    at = (np.arange(CELLS) + 0.5) / CELLS
    seen = object[np.ix_((at * high).astype(int), (at * wide).astype(int))]
    overlaps = {name: float(np.count_nonzero(seen & one) / np.count_nonzero(seen | one)) for name, one in _shapes().items()}
    name = max(overlaps, key=lambda each: overlaps[each])
    return name, overlaps[name]


@cache
def _shapes() -> dict[str, Mask]:
    """Each shape filling a grid of CELLS."""
    y, x = np.mgrid[-1 : 1 : CELLS * 1j, -1 : 1 : CELLS * 1j] * (1 - 1 / CELLS)
    radius = np.hypot(x, y)
    around = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    spikes = np.where(np.arange(10) % 2, 0.42, 1.0)
    turns = np.pi * (np.arange(10) / 5 - 0.5)
    lobes = 13 * np.cos(around) - 5 * np.cos(2 * around) - 2 * np.cos(3 * around) - np.cos(4 * around)
    return {
        "circle": radius < 1,
        "square": np.ones_like(radius, dtype=bool),
        "triangle": _inside([0, 1, -1], [-1, 1, 1], x, y),
        "star": _inside(spikes * np.cos(turns), spikes * np.sin(turns), x, y),
        "heart": _inside(np.sin(around) ** 3, -lobes, x, y),
        "ring": (radius < 1) & (radius > 0.55),
        "cross": np.minimum(abs(x), abs(y)) < 0.36,
        "diamond": abs(x) + abs(y) < 1,
    }


def _inside(across: Sequence[float] | Reals, down: Sequence[float] | Reals, x: Reals, y: Reals) -> Mask:
    """Which points lie in the polygon, stretched to reach from -1 to 1 both ways: a ray to the right crosses it an odd number of times."""
    a, b = (2 * (np.asarray(p, float) - min(p)) / (max(p) - min(p)) - 1 for p in (across, down))
    inside = np.zeros(x.shape, dtype=bool)
    for (x1, y1), (x2, y2) in zip(zip(a, b, strict=True), zip(np.roll(a, -1), np.roll(b, -1), strict=True), strict=True):
        if y1 != y2:
            inside ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    return inside


def _ground(pixels: Reals, rim: int) -> Reals:
    """The background's colour: the middle one along the picture's edges, so many pixels deep."""
    found: Reals = np.median(np.concatenate([part.reshape(-1, 3) for part in (pixels[:rim], pixels[-rim:], pixels[:, :rim])]), axis=0)
    return found


def _position(x: float, y: float) -> str:
    row = "top" if y < -OFF else "bottom" if y > OFF else ""
    column = "left" if x < -OFF else "right" if x > OFF else ""
    return f"{row} {column}".strip() or "middle"


def _pixels(picture: Image.Image) -> Reals:
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BILINEAR), np.float64)

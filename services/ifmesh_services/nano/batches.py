"""What training looks at: scenes of kinds that are not held out, painted and worded, each step's drawn anew from the seed.

A batch depends on the seed, its part's name and the number of the step alone, so a training that goes on sees what it would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ifmesh_services.nano.losses import MOST
from ifmesh_services.nano.painter import Box, paint
from ifmesh_services.nano.scenes import Scene, scene, seen
from ifmesh_services.nano.wording import caption, worded

CHOSEN = (860, 970)  # timesteps in which the text chooses the shape: later it can be seen, before there is only noise
UNTOLD = 0.1  # how many captions are dropped, for classifier-free guidance


@dataclass(frozen=True)
class Batch:
    """One step's scenes and chances.  part, seed, step: what they are drawn from.  told: how many of the captions leave nothing out.
    most: the greatest weight of a timestep, see losses.weights.  focus: how many of the timesteps lie in band.
    """

    part: str
    seed: int
    step: int
    size: int
    told: float = 0.0
    most: float = MOST
    focus: float = 0.0
    band: tuple[int, int] = CHOSEN

    @cached_property
    def draw(self) -> random.Random:
        return random.Random(f"{self.part} {self.seed} {self.step}")

    @cached_property
    def source(self) -> torch.Generator:
        """Of the noise."""
        return torch.Generator().manual_seed(random.Random(f"{self.part} {self.seed} {self.step} noise").getrandbits(63))

    @cached_property
    def scenes(self) -> list[Scene]:
        return [scene(self.draw, seen(self.draw)) for _ in range(self.size)]

    @cached_property
    def texts(self) -> list[str]:
        return ["" if self.draw.random() < UNTOLD else self._worded(one) for one in self.scenes]

    def _worded(self, one: Scene) -> str:
        if self.told and self.draw.random() < self.told:
            return worded(one.shape, one.colour, one.background, one.size, one.position, self.draw)
        return caption(one, self.draw)

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.source)

    def spread(self, below: int) -> Tensor:
        """[size] whole numbers from 0 to `below` - 1, one in each of as many equal parts, in any order."""
        order = torch.randperm(self.size, generator=self.source)
        return ((order + torch.rand(self.size, generator=self.source)) / self.size * below).long().clamp(max=below - 1)

    def timesteps(self) -> Tensor:
        """[size], 0 to 999: in equal parts, but `focus` of them in `band`."""
        t = self.spread(1000)
        if not self.focus:
            return t
        low, high = self.band
        within = low + (t - 1000 * (1 - self.focus)) / (1000 * self.focus) * (high - low)
        return torch.where(t < 1000 * (1 - self.focus), t / (1 - self.focus), within).long().clamp(max=999)

    def painted(self, side: int, boxes: Sequence[Box] | None = None) -> Tensor:
        """[size, 3, side, side], -1 to 1.  boxes: the part of each scene that is wanted."""
        wholes = boxes or [(0.0, 0.0, 1.0, 1.0)] * self.size
        return torch.stack([pixels(paint(one, side, box)) for one, box in zip(self.scenes, wholes, strict=True)])

    def whole(self, side: int, most: int) -> int:
        """Pixels of a side of the whole pictures of which this step sees so many: from just these up to `most`, by doubling.

        Networks that normalise over all they see must have seen much and little of a picture at once.
        """
        return side << self.draw.randint(0, (most // side).bit_length() - 1)

    def boxes(self, share: float, cells: int) -> list[Box]:
        """A square of each scene, `share` of its side, on a grid of so many cells; most are on an object's edge, where it matters."""
        return [self._box(one, round(share * cells), cells) for one in self.scenes]

    def _box(self, one: Scene, wide: int, cells: int) -> Box:
        reach = one.radius if self.draw.random() < 0.8 else 0.5
        near = (middle + self.draw.uniform(-reach, reach) for middle in (one.x, one.y))
        left, top = (max(0, min(cells - wide, round(at * cells - wide / 2))) for at in near)
        return left / cells, top / cells, (left + wide) / cells, (top + wide) / cells


def pixels(picture: Image.Image) -> Tensor:
    """[3, h, w], -1 to 1."""
    return torch.from_numpy(np.asarray(picture, np.float32) / 127.5 - 1).permute(2, 0, 1).contiguous()


def picture(pixels: Tensor) -> Image.Image:
    """The other way.  pixels: [3, h, w]."""
    return Image.fromarray(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy(), "RGB")


def sheet(pictures: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """All of one size, side by side."""
    wide, high = pictures[0].size
    whole = Image.new("RGB", (columns * (wide + 4), -(-len(pictures) // columns) * (high + 4)), (255, 255, 255))
    for i, one in enumerate(pictures):
        whole.paste(one, (i % columns * (wide + 4), i // columns * (high + 4)))
    return whole

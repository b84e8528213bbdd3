"""The exam: pictures of the captions that training never saw, judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ifmesh_services.nano.batches import sheet
from ifmesh_services.nano.judge import judge
from ifmesh_services.nano.scenes import questions

__all__ = ["Score", "contacts", "interval", "judge", "questions", "score"]

WIDTH = 1.96  # deviations either way: an interval of 95 %


@dataclass(frozen=True, slots=True)
class Score:
    """Of so many captions, the shares that came out right: shape, both colours, position (where the caption says one), all of them.

    interval: where the last share truly lies, with 95 % confidence (Wilson's).  wrong: places in the list of what was not all right.
    """

    captions: int
    shape: float
    colours: float
    position: float
    all: float
    interval: tuple[float, float]
    wrong: tuple[int, ...]


def score(pictures: Sequence[Image.Image], said: Sequence[Mapping[str, str]]) -> Score:
    """said: what each picture is to show, an entry of scenes.questions(); at least one."""
    rights = [judge(picture).right(one) for picture, one in zip(pictures, said, strict=True)]
    shares: dict[str, Any] = {part: sum(right[part] for right in rights) / len(rights) for part in rights[0]}
    wrong = tuple(i for i, right in enumerate(rights) if not right["all"])
    return Score(captions=len(rights), interval=interval(len(rights) - len(wrong), len(rights)), wrong=wrong, **shares)


def interval(right: int, of: int) -> tuple[float, float]:
    """Wilson's, of a share: https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval"""
    share, extra = right / of, WIDTH**2 / of
    middle = (share + extra / 2) / (1 + extra)
    reach = WIDTH * math.sqrt(share * (1 - share) / of + extra / of / 4) / (1 + extra)
    return round(max(0.0, middle - reach), 4), round(min(1.0, middle + reach), 4)


def contacts(pictures: Sequence[Image.Image], wrong: Sequence[int], columns: int = 12) -> Image.Image:
    """All of them side by side; what is wrong has a red frame."""
    framed = []
    for i, picture in enumerate(pictures):
        frame = Image.new("RGB", (picture.width + 4, picture.height + 4), (255, 0, 0) if i in wrong else (255, 255, 255))
        frame.paste(picture.convert("RGB"), (2, 2))
        framed.append(frame)
    return sheet(framed, columns)

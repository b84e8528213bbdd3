"""Contact sheets: of a finished job, what went in and what each stage drew, side by side; of several, the pictures with their numbers."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from PIL.Image import Image as Pixels
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    from ifmesh.image import Image

TITLES: Final = {"stage_one": "Stage I", "stage_two": "Stage II", "upscaler": "Upscaler"}
SIDE: Final = 512  # pixels of a picture's longer side
SMALL: Final = 256  # the same of one among several
NARROWEST: Final = 300  # pixels of a cell: its captions want room
COLUMNS: Final = 4  # of several, at least, where there are so many
MARGIN, GAP, TOP, CAPTION = 40, 24, 112, 80
PAPER, FRAME, INK, GREY = "#f7f5f0", "#c9c6bf", "#22252b", "#7b7f87"


@dataclass(frozen=True, slots=True)
class _Cell:
    """picture: as large as it is shown; title, said: the two lines below it."""

    picture: Pixels
    title: str
    said: str


def drawn(image: Image) -> Pixels:
    """RGB.  Source and mask, where there are any, then every stage's picture, all as large and none distorted, with captions.

    1664 x 744 for three square pictures.  Imports Pillow.
    """
    cells = _cells(image)
    return _page(_title(image), _said(image), cells, len(cells))


def several(images: Mapping[int, Image]) -> Pixels:
    """RGB.  The pictures of one prompt, by their numbers: four to a row, or more, so that it stays a square; with number, seed and job.

    1352 x 848 for eight.  Imports Pillow.
    """
    cells = []
    for number, image in images.items():
        said = f"job {image.job}{', blanked by the checker' if image.flagged else ''}"
        cells.append(_Cell(_fitted(image.pil, SMALL), f"{number}: seed {image.seed}", said))
    first = next(iter(images.values()))
    size = "{} x {}".format(*first.size)
    return _page(_title(first), f"ifmesh, {len(cells)} candidates, {size}", cells, min(len(cells), max(COLUMNS, math.isqrt(len(cells)))))


def gathered(title: str, said: str, cells: Sequence[tuple[Pixels, str, str]]) -> Pixels:
    """RGB.  Any pictures, each with its two lines, four to a row, or more, so that it stays a square.  Imports Pillow."""
    made = [_Cell(_fitted(picture, SMALL), *lines) for picture, *lines in cells]
    return _page(title, said, made, min(len(made), max(COLUMNS, math.isqrt(len(made)))))


def _page(title: str, said: str, cells: list[_Cell], columns: int) -> Pixels:
    from PIL import Image as pillow
    from PIL import ImageDraw, ImageFont

    wide, high = max(NARROWEST, *(cell.picture.width for cell in cells)), max(cell.picture.height for cell in cells)
    rows = math.ceil(len(cells) / columns)
    size = 2 * MARGIN + columns * wide + (columns - 1) * GAP, TOP + rows * (high + CAPTION) + (rows - 1) * GAP + MARGIN
    made = pillow.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(made)
    large, middle, small = (ImageFont.load_default(size) for size in (30, 22, 18))
    whole = made.width - 2 * MARGIN
    draw.text((MARGIN, 28), _cut(draw, title, large, whole), INK, large)
    draw.text((MARGIN, 70), _cut(draw, said, small, whole), GREY, small)
    for place, cell in enumerate(cells):
        left, top = MARGIN + place % columns * (wide + GAP), TOP + place // columns * (high + CAPTION + GAP)
        draw.rectangle((left - 1, top - 1, left + wide, top + high), outline=FRAME)
        made.paste(cell.picture, (left + (wide - cell.picture.width) // 2, top + (high - cell.picture.height) // 2))
        draw.text((left, top + high + 14), _cut(draw, cell.title, middle, wide), INK, middle)
        draw.text((left, top + high + 46), _cut(draw, cell.said, small, wide), GREY, small)
    return made


def _title(image: Image) -> str:
    return " ".join(image.request.prompt.split()) if image.request is not None else f"job {image.job}"


def _said(image: Image) -> str:
    seconds = sum(run.run_s for run in image.timings)
    request = image.request
    parts = ["ifmesh", *([request.task] if request is not None and request.task != "generate" else []), f"seed {image.seed}"]
    if image.timings:
        parts.append(f"{seconds:.1f} s of drawing")
    if request is not None and request.negative:
        parts.append(f"negative: {' '.join(request.negative.split())}")
    if image.flagged:
        parts.insert(1, "blanked by the checker")
    return ", ".join(parts)


def _cells(image: Image) -> list[_Cell]:
    found = []
    for title, said, data in (("Source", "what was given", image.source), ("Mask", "white is drawn anew", image.mask)):
        if data is not None:
            found.append(_cell(_opened(data), title, said))
    runs = {run.stage: run for run in image.timings}
    for stage, picture in image.stages.items():
        run = runs.get(stage)
        said = f"{run.steps} step{'s' * (run.steps != 1)} in {run.run_s:.1f} s on {run.worker}" if run else ""
        found.append(_cell(picture.pil, TITLES.get(stage, stage), said))
    return found


def _cell(picture: Pixels, title: str, said: str) -> _Cell:
    return _Cell(_fitted(picture, SIDE), f"{title}, {picture.width} x {picture.height}", said)


def _opened(data: bytes) -> Pixels:
    """A source or mask as it is meant to be seen: turned as its EXIF says, without alpha."""
    from PIL import Image as pillow
    from PIL import ImageOps

    return ImageOps.exif_transpose(pillow.open(io.BytesIO(data))).convert("RGB")


def _fitted(picture: Pixels, side: int) -> Pixels:
    """Its longer side so long.  Small ones grow by whole pixels first, so that each is seen as it is; large ones shrink smoothly."""
    from PIL import Image as pillow

    longer = max(picture.size)
    size = max(1, round(picture.width * side / longer)), max(1, round(picture.height * side / longer))
    if longer > side:
        return picture.resize(size, pillow.Resampling.LANCZOS)
    times = math.ceil(side / longer)
    grown = picture.resize((picture.width * times, picture.height * times), pillow.Resampling.NEAREST)
    return grown if grown.size == size else grown.resize(size, pillow.Resampling.BOX)


def _cut(draw: ImageDraw, text: str, font: FreeTypeFont | ImageFont, width: int) -> str:
    text = text[:width]  # no letter is narrower than a pixel, and to measure takes time
    while draw.textlength(text, font) > width:
        text = text.removesuffix("...")[:-1] + "..."
    return text

"""The contact sheet: every picture once, all as large, none distorted."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from PIL import Image as pillow

from ifmesh import bags
from ifmesh.image import Image, Picture
from ifmesh.protocol import Finished, StageRun
from ifmesh.request import Request
from ifmesh.sheet import CAPTION, GAP, MARGIN, NARROWEST, SMALL, TOP, several
from ifmesh.stage import Tensor

Size = tuple[int, int]
COLOURS = {"stage_one": "#ff0000", "stage_two": "#00ff00", "upscaler": "#0000ff", "source": "#ff00ff", "mask": "#ffffff"}


def file(size: Size, colour: str, mode: str = "RGB", orientation: int = 1) -> bytes:
    data, exif = io.BytesIO(), pillow.Exif()
    exif[0x0112] = orientation
    pillow.new(mode, size, colour).save(data, "PNG", exif=exif)
    return data.getvalue()


def made(sizes: list[Size], source: bytes | None = None, mask: bytes | None = None, prompt: str = "a fox", flagged: int = 0) -> Image:
    drawn = dict(zip(("stage_one", "stage_two", "upscaler"), sizes, strict=False))
    pictures = {f"picture_{stage}": file(size, COLOURS[stage]) for stage, size in drawn.items()}
    bag = {name: Tensor("U8", (len(data),), data) for name, data in {**pictures, "flagged": bytes([flagged])}.items()}
    frame = bags.encode(bag)
    runs = tuple(StageRun(stage, f"{stage}-0", 1, "cpu", 0.1, 2.0, 27, 1, 1, 1) for stage in drawn)
    request = Request(prompt, 7, negative="blurry")
    return Image.published(Finished("job1", "", len(frame), 7, True, runs), frame, request, source, mask)


def boxes(sheet: pillow.Image, *names: str) -> list[tuple[int, int, int, int]]:
    """Where each colour is: left, top, right, bottom."""
    found = []
    for name in names:
        bands = zip(sheet.split(), bytes.fromhex(COLOURS[name][1:]), strict=True)
        red, green, blue = (band.point([255 if level == wanted else 0 for level in range(256)]) for band, wanted in bands)
        box = pillow.merge("RGB", (red, green, blue)).convert("L").point([0] * 255 + [255]).getbbox()
        assert box is not None, name
        found.append(box)
    return found


@pytest.mark.parametrize(
    ("sizes", "source", "cell"),
    [
        ([(64, 64), (256, 256), (1024, 1024)], None, (512, 512)),
        ([(64, 64)], None, (512, 512)),
        ([(96, 64), (384, 256), (1536, 1024)], (768, 512), (512, 341)),
        ([(64, 96), (256, 392), (1024, 1568)], (500, 768), (341, 512)),
        ([(64, 256)], (200, 800), (NARROWEST, 512)),
        ([(256, 64)], (800, 200), (512, 128)),
    ],
)
def test_all_are_as_large_and_none_is_distorted(sizes: list[Size], source: Size | None, cell: Size) -> None:
    given = file(source, COLOURS["source"]) if source else None
    mask = file(source, COLOURS["mask"], "L") if source else None
    sheet = made(sizes, given, mask).sheet()
    names = [*(["source", "mask"] if source else []), *list(COLOURS)[: len(sizes)]]
    assert sheet.mode == "RGB"
    assert sheet.size == (2 * MARGIN + len(names) * cell[0] + (len(names) - 1) * GAP, TOP + cell[1] + CAPTION + MARGIN)
    for place, (box, size) in enumerate(zip(boxes(sheet, *names), [*([source] * 2 if source else []), *sizes], strict=True)):
        left = MARGIN + place * (cell[0] + GAP)
        shown = (box[2] - box[0], box[3] - box[1])
        assert max(shown) == 512
        assert abs(min(shown) - 512 * min(size) / max(size)) <= 1
        assert abs(box[0] + box[2] - (2 * left + cell[0])) <= 1
        assert abs(box[1] + box[3] - (2 * TOP + cell[1])) <= 1


def test_small_pictures_keep_their_pixels() -> None:
    picture = pillow.new("RGB", (64, 64), "red")
    picture.putpixel((10, 20), (0, 0, 255))
    data = io.BytesIO()
    picture.save(data, "PNG")
    image = made([(64, 64)])
    image = replace(image, stages={"stage_one": Picture("stage_one", data.getvalue())})
    shown = image.sheet().crop((MARGIN, TOP, MARGIN + 512, TOP + 512))
    assert {colour for _, colour in shown.getcolors() or []} == {(255, 0, 0), (0, 0, 255)}
    assert shown.crop((80, 160, 88, 168)).getcolors() == [(64, (0, 0, 255))]


def test_a_source_is_shown_as_it_is_meant_to_be_seen() -> None:
    sheet = made([(64, 96)], file((768, 512), COLOURS["source"], "RGBA", orientation=6)).sheet()
    left, top, right, bottom = boxes(sheet, "source")[0]
    assert (right - left, bottom - top) == (341, 512)


def test_captions_stay_within_their_cells() -> None:
    sheet = made([(64, 256)], prompt="words without an end " * 90, flagged=1).sheet()
    paper = pillow.new("RGB", sheet.size, "#f7f5f0")
    beside = (MARGIN + NARROWEST + 1, 0, *sheet.size)
    assert sheet.crop(beside).tobytes() == paper.crop(beside).tobytes()


def test_what_nobody_knows_is_not_shown() -> None:
    frame = bags.encode(
        {name: Tensor("U8", (len(data),), data) for name, data in {"picture_stage_one": file((64, 64), "red"), "flagged": b"\0"}.items()}
    )
    image = Image.published(Finished("job1", "", len(frame), 7, True, ()), frame)
    assert image.sheet().size == (592, 744)


def test_several_stand_in_rows_of_four() -> None:
    """All as large; each in the place of its number, whatever their order."""
    colours = ("stage_one", "stage_two", "upscaler", "source", "mask")
    images = {}
    for number, name in enumerate(colours, 1):
        images[number] = replace(made([(64, 96)]), stage=name, data=file((64, 96), COLOURS[name]))
    sheet = several(images)
    assert sheet.size == (2 * MARGIN + 4 * NARROWEST + 3 * GAP, TOP + 2 * (SMALL + CAPTION) + GAP + MARGIN)
    for place, box in enumerate(boxes(sheet, *colours)):
        left, top = MARGIN + place % 4 * (NARROWEST + GAP), TOP + place // 4 * (SMALL + CAPTION + GAP)
        assert (box[3] - box[1], box[1]) == (SMALL, top)
        assert abs(box[0] + box[2] - (2 * left + NARROWEST)) <= 1
    assert several({number: images[number] for number in (1, 2)}).width == 2 * MARGIN + 2 * NARROWEST + GAP

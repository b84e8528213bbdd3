"""What comes out: images, previews, and what a saved PNG tells of itself."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as pillow

from ifmesh import bags, formats, wire
from ifmesh.image import Image, Preview
from ifmesh.protocol import Finished, StageRun
from ifmesh.request import Request, Settings
from ifmesh.stage import Tensor

REQUEST = Request(
    'a "fox", 狐狸\nin the snow',
    7,
    "inpaint",
    "blurry",
    settings={"stage_one": Settings(guidance=7.5), "stage_two": Settings(strength=0.8, noise_level=0)},
    brings=("source", "mask"),
    upload="ab" * 32,
)
RUNS = tuple(
    StageRun(stage, f"{stage}-0", 4711, "cpu", 0.1, 2.0, steps, 10, 20, 1)
    for stage, steps in (("encoder", 1), ("stage_one", 27), ("stage_two", 40), ("guard", 1))
)


def png(width: int, height: int | None = None) -> bytes:
    file = io.BytesIO()
    pillow.linear_gradient("L").resize((width, height or width)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def encoded(format: str, side: int = 256) -> bytes:
    file = io.BytesIO()
    pillow.open(io.BytesIO(png(side))).save(file, format, lossless=True)
    return file.getvalue()


def flat(data: bytes) -> Tensor:
    return Tensor("U8", (len(data),), data)


def tokens(*rows: int) -> Tensor:
    return Tensor("I64", (len(rows) // 3, 3), struct.pack(f"<{len(rows)}q", *rows))


GOOD = {"picture_stage_one": flat(png(64)), "picture_stage_two": flat(png(256)), "flagged": flat(b"\0")}


def made(bag: dict[str, Tensor], request: Request | None = REQUEST, runs: tuple[StageRun, ...] = RUNS) -> Image:
    frame = bags.encode(bag)
    return Image.published(Finished("job1", "", len(frame), 7, True, runs), frame, request, b"the source", b"the mask")


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, body) of every chunk of a PNG, its checksum checked."""
    found, at = [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert zlib.crc32(kind + body) == int.from_bytes(data[at + 8 + size : at + 12 + size], "big")
        found.append((kind, body))
        at += 12 + size
    return found


def test_an_image_is_the_last_picture_and_knows_the_others() -> None:
    image = made(GOOD)
    assert (image.stage, image.size, image.data) == ("stage_two", (256, 256), image.stages["stage_two"].data)
    assert list(image.stages) == ["stage_one", "stage_two"]
    assert (image.job, image.seed, image.flagged, image.reproducible, image.timings) == ("job1", 7, False, True, RUNS)
    assert (image.request, image.source, image.mask, image.notes, image.kept) == (REQUEST, b"the source", b"the mask", (), "")
    assert (image.format, image._repr_jpeg_()) == ("png", None)
    assert image._repr_png_() == image.data
    assert hash(image) == hash(made(GOOD))
    assert len(repr(image)) < 200


def test_of_an_unknown_request_there_is_still_a_picture(tmp_path: Path) -> None:
    frame = bags.encode(GOOD)
    image = Image.published(Finished("job1", "", len(frame), 7, False, ()), frame)
    assert (image.request, image.source, image.mask) == (None, None, None)
    told = pillow.open(image.save(tmp_path / "a.png")).text  # type: ignore[attr-defined]
    assert told["parameters"] == "Seed: 7, Size: 256x256, Model: ifmesh stage_two"
    assert json.loads(told["ifmesh"])["request"] is None


def test_notes_tell_of_what_the_encoder_could_not_read() -> None:
    assert made({**GOOD, "tokens": tokens(1, 1, 0, 77, 77, 15)}).notes == ()
    assert made({**GOOD, "tokens": tokens(80, 77, 0, 92, 77, 31)}).notes == (
        "the prompt has 92 tokens; the encoder reads the first 77",
        "34 % of the prompt's tokens are unknown to the encoder: it may not know this language or these names",
        "the negative prompt has 80 tokens; the encoder reads the first 77",
    )


def test_notes_tell_of_a_style_as_well() -> None:
    assert made({**GOOD, "tokens": tokens(1, 1, 0, 9, 9, 0, 90, 77, 0)}).notes == (
        "the style has 90 tokens; the encoder reads the first 77",
    )


def test_an_image_after_another_has_its_pictures_as_well() -> None:
    first = made({"picture_stage_one": flat(png(64)), "flagged": flat(b"\1")})
    second = made({"picture_stage_two": flat(png(256)), "picture_upscaler": flat(png(1024)), "flagged": flat(b"\0")})
    whole = second.after(first)
    assert [(name, picture.size[0]) for name, picture in whole.stages.items()] == [
        ("stage_one", 64),
        ("stage_two", 256),
        ("upscaler", 1024),
    ]
    assert (whole.data, whole.stage, whole.flagged) == (second.data, "upscaler", True)
    alone = replace(second, request=replace(REQUEST, stages=False))
    assert alone.after(first) == alone  # its picture, and what the checker said, are those of drawing it whole
    doubtful = second.after(replace(first, reproducible=False, notes=("cut",)))
    assert (doubtful.reproducible, doubtful.notes) == (False, ("cut",))


def test_an_image_is_only_made_of_what_a_guard_publishes() -> None:
    with pytest.raises(wire.Garbled, match="5 bytes, announced were 6"):
        Image.published(Finished("a", "", 6, 1, True, ()), b"12345")
    without = {name: tensor for name, tensor in GOOD.items() if name != "flagged"}
    header = png(64)
    for bad in (
        {"flagged": flat(b"\0")},
        without,
        {"flagged": flat(b"\0"), "tokens": tokens(1, 1, 0, 1, 1, 0)},
        {**GOOD, "embeds": flat(b"1")},
        {**GOOD, "flagged": flat(b"00")},
        {**GOOD, "tokens": flat(b"00")},
        {**GOOD, "tokens": Tensor("I64", (3, 2), bytes(48))},
        {**GOOD, "picture_stage_one": Tensor("U8", (1, len(header)), header)},
        {**GOOD, "picture_stage_one": flat(b"GIF89a")},
        {**GOOD, "picture_stage_one": flat(header[:32])},
        {**GOOD, "picture_stage_one": flat(encoded("webp")[:20])},
        {**GOOD, "picture_stage_one": flat(b"\xff\xd8\xff\xd9")},
        {**GOOD, "picture_stage_one": flat(header[:8] + b"\0\0\0\x0dIDAT" + header[16:])},
    ):
        with pytest.raises(wire.Garbled):
            made(bad)


def test_a_preview_is_one_picture_that_the_guard_has_seen() -> None:
    good = {"picture_stage_one": flat(png(64)), "flagged": flat(b"\1")}
    preview = Preview.published("job1", "stage_one", bags.encode(good))
    assert (preview.job, preview.stage, preview.size, preview.flagged) == ("job1", "stage_one", (64, 64), True)
    assert preview.pil.mode == "RGB"
    for stage, bad in (
        ("stage_one", {"picture_stage_one": flat(png(64))}),
        ("stage_one", {**good, "picture_stage_two": flat(png(64))}),
        ("stage_one", {**good, "picture_stage_one": flat(b"GIF89a")}),
        ("stage_two", good),
        ("encoder", good),
    ):
        with pytest.raises(wire.Garbled):
            Preview.published("job1", stage, bags.encode(bad))


# ---- saved


def test_a_saved_png_tells_how_it_was_made_and_keeps_every_pixel(tmp_path: Path) -> None:
    image = made(GOOD)
    path = image.save(tmp_path / "a.png")
    with pillow.open(path) as saved:
        assert saved.tobytes() == image.pil.tobytes()
        assert saved.text["parameters"] == (  # type: ignore[attr-defined]
            'a "fox", 狐狸\nin the snow\n'
            "Negative prompt: blurry\n"
            "Steps: 27, Stage II steps: 40, CFG scale: 7.5, Stage II denoising strength: 0.8, Stage II noise level: 0, "
            "Seed: 7, Size: 256x256, Model: ifmesh stage_two, Task: inpaint"
        )
        whole = json.loads(saved.text["ifmesh"])  # type: ignore[attr-defined]
    assert whole.keys() == {"seed", "stage", "reproducible", "request"}
    assert (whole["seed"], whole["stage"], whole["reproducible"]) == (7, "stage_two", True)
    assert whole["request"]["prompt"] == REQUEST.prompt
    assert whole["request"]["upload"] == REQUEST.upload
    assert whole["request"]["settings"]["stage_two"]["strength"] == 0.8


def test_the_texts_are_two_chunks_after_the_header_and_nothing_else_changes(tmp_path: Path) -> None:
    image = made(GOOD)
    plain, told = chunks(image.data), chunks(image.save(tmp_path / "a.png").read_bytes())
    assert [kind for kind, _ in told[:3]] == [b"IHDR", b"iTXt", b"iTXt"]
    assert [told[0], *told[3:]] == plain
    assert not any(word in body for _, body in told[1:3] for word in (b"4711", b"stage_one-0", b"cpu", b"the source"))


def test_without_parameters_the_file_is_the_guards_byte_by_byte(tmp_path: Path) -> None:
    image = made(GOOD)
    assert image.save(tmp_path / "a.png", parameters=False).read_bytes() == image.data
    assert image.stages["stage_one"].save(tmp_path / "64.png").read_bytes() == image.stages["stage_one"].data


def test_the_parameters_name_all_that_was_asked_for(tmp_path: Path) -> None:
    drawing = Settings(scheduler="dpm++", schedule="10,10", threshold_ratio=0.9, threshold_max=2.0, positive_mixer=0.3)
    settings = {"stage_one": drawing, "stage_two": Settings(schedule="smart50", guidance=3.0)}
    request = Request("a fox", 7, settings=settings, style="in oil, thick")
    told = pillow.open(made(GOOD, request).save(tmp_path / "a.png")).text  # type: ignore[attr-defined]
    assert told["parameters"] == (
        "a fox\nSteps: 27, Stage II steps: 40, "
        'Sampler: dpm++, Schedule type: "10,10", Threshold ratio: 0.9, Threshold max: 2.0, Positive mixer: 0.3, '
        'Stage II schedule type: smart50, Stage II CFG scale: 3.0, Seed: 7, Size: 256x256, Model: ifmesh stage_two, Style: "in oil, thick"'
    )
    asked = json.loads(told["ifmesh"])["request"]
    assert (asked["style"], asked["settings"]["stage_one"]["positive_mixer"], asked["settings"]["stage_two"]["schedule"]) == (
        "in oil, thick",
        0.3,
        "smart50",
    )


@pytest.mark.parametrize("format", ["webp", "jpeg"])
def test_the_guards_file_is_kept_as_it_is_where_the_suffix_fits_and_converted_else(tmp_path: Path, format: str) -> None:
    data = encoded(format)
    image = made({"picture_stage_two": flat(data), "flagged": flat(b"\0")})
    preview = Preview.published("job1", "stage_two", bags.encode({"picture_stage_two": flat(data), "flagged": flat(b"\0")}))
    pixels = pillow.open(io.BytesIO(data)).convert("RGB").tobytes()
    for picture in (image, preview, image.stages["stage_two"]):
        assert (picture.format, picture.size, picture.pil.tobytes()) == (format, (256, 256), pixels)
        for suffix in {"webp": [".webp", ".WEBP"], "jpeg": [".jpg", ".jpeg"]}[format]:
            assert picture.save(tmp_path / f"a{suffix}").read_bytes() == data
        for suffix in (".png", ".tiff"):
            with pillow.open(picture.save(tmp_path / f"a{suffix}")) as saved:
                assert saved.tobytes() == pixels, suffix
    with pillow.open(image.save(tmp_path / "told.png")) as saved:
        assert saved.text["parameters"].startswith('a "fox"')  # type: ignore[attr-defined]
        assert saved.tobytes() == pixels
    with pillow.open(image.save(tmp_path / "untold.png", parameters=False)) as saved:
        assert not saved.info


def test_a_notebook_shows_any_of_them() -> None:
    """WebP as PNG: not all know it."""
    for format, kind in (("png", "png"), ("webp", "png"), ("jpeg", "jpeg")):
        image = made({"picture_stage_two": flat(encoded(format)), "flagged": flat(b"\0")})
        shown = {"png": image._repr_png_(), "jpeg": image._repr_jpeg_()}
        assert {name: formats.kind(data) for name, data in shown.items() if data is not None} == {kind: kind}


def test_a_webp_keeps_every_pixel_whatever_it_comes_from(tmp_path: Path) -> None:
    noise = pillow.frombytes("RGB", (64, 64), random.Random(1).randbytes(3 * 64 * 64))
    file = io.BytesIO()
    noise.save(file, "PNG")
    image = made({"picture_stage_one": flat(file.getvalue()), "flagged": flat(b"\0")})
    with pillow.open(image.save(tmp_path / "a.webp")) as saved:
        assert (saved.format, saved.convert("RGB").tobytes()) == ("WEBP", noise.tobytes())


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tiff"])
def test_other_formats_hold_no_parameters(tmp_path: Path, suffix: str) -> None:
    path = made(GOOD).save(tmp_path / f"a{suffix}")
    assert b"fox" not in path.read_bytes()
    with pillow.open(path) as saved:
        assert saved.size == (256, 256)


def test_a_suffix_that_is_none_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no picture format to write"):
        made(GOOD).save(tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())


def test_the_guards_file_may_hold_texts_of_its_own(tmp_path: Path) -> None:
    saved = made(GOOD).save(tmp_path / "a.png").read_bytes()
    twice = made({**GOOD, "picture_stage_two": flat(saved)}).save(tmp_path / "b.png")
    with pillow.open(twice) as again:
        again.load()
        assert again.info.keys() >= {"parameters", "ifmesh"}

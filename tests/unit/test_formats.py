"""What a file says of itself, against Pillow, which decodes it."""

from __future__ import annotations

import io
import random
from contextlib import suppress
from typing import Any

import pytest
from PIL import Image as pillow

from ifmesh import formats

WAYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "png": ("png", "PNG", {}),
    "jpeg": ("jpeg", "JPEG", {"quality": 95}),
    "a progressive jpeg with EXIF": ("jpeg", "JPEG", {"progressive": True, "exif": b"Exif\0\0" + bytes(300)}),
    "a lossy webp": ("webp", "WEBP", {"quality": 80}),
    "a lossless webp": ("webp", "WEBP", {"lossless": True}),
    "an extended webp": ("webp", "WEBP", {"lossless": True, "exif": b"Exif\0\0" + bytes(30)}),
}


def file(way: str, size: tuple[int, int]) -> bytes:
    data = io.BytesIO()
    pillow.linear_gradient("L").resize(size).convert("RGB").save(data, WAYS[way][1], **WAYS[way][2])
    return data.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (96, 64), (256, 392), (1536, 1024)])
@pytest.mark.parametrize("way", WAYS)
def test_kind_and_size_are_those_that_pillow_sees(way: str, size: tuple[int, int]) -> None:
    data = file(way, size)
    assert (formats.kind(data), formats.size(data)) == (WAYS[way][0], size)
    assert pillow.open(io.BytesIO(data)).size == size


def test_a_jpeg_may_fill_with_ff_before_a_marker() -> None:
    data = file("jpeg", (40, 24))
    assert formats.size(data[:2] + b"\xff\xff" + data[2:]) == (40, 24)


@pytest.mark.parametrize("way", WAYS)
def test_of_a_file_that_is_cut_off_there_is_a_size_or_an_error(way: str) -> None:
    data = file(way, (40, 24))
    for length in range(min(len(data), 700)):
        try:
            assert formats.size(data[:length]) == (40, 24)
        except ValueError:
            assert length < 640, "the header is there"


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(40), b"RIFF" + bytes(40), b"\xff\xd8\xff", b"\xff\xd8\xff\xd9" + bytes(40)])
def test_whatever_else_is_no_picture(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^no PNG, JPEG or WebP file$"):
        formats.size(data)


def test_any_bytes_give_a_size_or_an_error() -> None:
    draw = random.Random(1)
    heads = [file(way, (40, 24))[:60] for way in WAYS]
    for _ in range(3000):
        data = bytearray(draw.choice(heads) + draw.randbytes(40))
        for _ in range(draw.randrange(4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        with suppress(ValueError):
            assert min(formats.size(bytes(data))) > 0

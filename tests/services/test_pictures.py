"""The files that clients send: decoded as diffusers' pipelines would see them, and refused with field, value and remedy."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils.loading_utils import load_image
from ifmesh_services.pictures import Sketch, sketched
from PIL import Image, ImageOps

from ifmesh import geometry
from ifmesh.errors import BadRequest
from ifmesh.stage import Bag
from tests.services import oracle
from tests.services.chained import file
from tests.services.photos import photo, saved, stencil, turned

CPU = torch.device("cpu")


def seen(bag: Bag, side: int = 16, *later: int) -> Sketch:
    made = sketched(bag, side, *later, dtype=torch.float32, device=CPU)
    assert made is not None
    return made


def veiled(mode: str) -> Image.Image:
    """Half transparent, and red under it."""
    shown = photo(96, 64).convert("RGBA")
    shown.paste((255, 0, 0, 0), (0, 0, 48, 64))
    if mode == "P":
        return shown.quantize(32)
    return shown.convert(mode)


def deep() -> Image.Image:
    """16 bits of grey."""
    return Image.fromarray((np.arange(96 * 64, dtype=np.uint16) * 10).reshape(64, 96))


FILES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(photo(500, 333), "JPEG"),
    "progressive jpeg": lambda: saved(photo(500, 333), "JPEG", progressive=True),
    "cmyk jpeg": lambda: saved(photo(96, 64).convert("CMYK"), "JPEG"),
    "grey jpeg": lambda: saved(stencil(96, 64), "JPEG"),
    "two in one jpeg": lambda: saved(photo(96, 64), "MPO", save_all=True, append_images=[photo(96, 64, 1)]),
    "webp": lambda: saved(photo(333, 500), "WEBP"),
    "moving webp": lambda: saved(photo(96, 64), "WEBP", save_all=True, append_images=[photo(96, 64, 1)]),
    "transparent webp": lambda: saved(veiled("RGBA"), "WEBP", lossless=True),
    "transparent png": lambda: saved(veiled("RGBA")),
    "transparent grey png": lambda: saved(veiled("LA")),
    "transparent palette": lambda: saved(veiled("P")),
    "black and white": lambda: saved(stencil(96, 64, "1")),
    "16 bits": lambda: saved(deep()),
    "one pixel": lambda: saved(photo(96, 64).crop((40, 40, 41, 41))),
    "turned webp": lambda: turned(photo(96, 64), 8, "WEBP"),
    **{f"turned {n}": lambda n=n: turned(photo(200, 100), n) for n in range(1, 9)},  # type: ignore[misc]
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # load_image's own conversion
@pytest.mark.parametrize("name", FILES)
def test_as_the_pipelines_see_it(nano16: Path, name: str) -> None:
    """load_image, then their own preprocessing: EXIF orientation applied, transparency dropped, resized, cut."""
    data = FILES[name]()
    pipeline = oracle.pipeline(nano16, "stage_one", task="inpaint")
    opened = Image.open(io.BytesIO(data))
    made = seen({"source": file(data), "mask": file(data)})
    assert torch.equal(made.image, pipeline.preprocess_image(load_image(opened)))
    assert made.mask is not None
    assert torch.equal(made.mask, pipeline.preprocess_mask_image(ImageOps.exif_transpose(opened)))
    assert made.image.is_contiguous()


def test_our_own_reading_warns_of_nothing() -> None:
    """Pillow would, of a palette with transparency; a worker's log is for what matters."""
    seen({"source": file(FILES["transparent palette"]())})


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_file_is_the_upright_one(orientation: int) -> None:
    """Lossless, so that both hold the same pixels."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Image.Transpose that undoes it
    upright = photo(96, 64)
    lying = turned(upright.transpose(Image.Transpose(back)), orientation, "PNG")
    assert torch.equal(seen({"source": file(lying)}).image, seen({"source": file(saved(upright))}).image)


def test_what_lies_under_transparency_shows() -> None:
    left = seen({"source": file(saved(veiled("RGBA")))}).image[0, :, 8, 4]
    assert left.tolist() == pytest.approx([1, -1, -1])


def test_the_mask_is_cut_at_half() -> None:
    for level, white in ((127, 0.0), (128, 1.0)):
        made = seen({"source": file(saved(photo(96, 64))), "mask": file(saved(Image.new("L", (96, 64), level)))})
        assert made.mask is not None
        assert set(made.mask.flatten().tolist()) == {white}


@pytest.mark.parametrize("size", [(512, 512), (768, 512), (512, 768), (500, 768), (512, 2048)])
def test_sizes(size: tuple[int, int]) -> None:
    made = seen({"source": file(saved(photo(*size)))}, 64)
    assert made.size == geometry.fitted(*size, 64)[::-1]


def test_no_source_no_sketch() -> None:
    assert sketched({}, 16, dtype=torch.float32, device=CPU) is None


def hollow(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds none."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


WHOLE = saved(photo(300, 200), "JPEG")
BAD: dict[str, tuple[bytes, str, str]] = {  # file, value, remedy
    "text": (b"<html>not found</html>", "22 bytes", "cannot be read as a picture: send a whole PNG, JPEG or WEBP file"),
    "one byte": (b"\0", "1 bytes", "cannot be read as a picture"),
    "gif": (saved(photo(30, 20), "GIF"), "bytes", "send a whole PNG, JPEG or WEBP file"),
    "tiff": (saved(photo(30, 20), "TIFF"), "bytes", "send a whole PNG, JPEG or WEBP file"),
    "truncated jpeg": (WHOLE[: len(WHOLE) // 2], "JPEG 300 x 200", "truncated or damaged: send a whole"),
    "truncated png": (saved(photo(300, 200))[:5000], "PNG 300 x 200", "truncated or damaged"),
    "truncated webp": (saved(photo(300, 200), "WEBP")[:900], "", "send a whole"),
    "hollow png": (hollow(300, 200), "PNG 300 x 200", "truncated or damaged"),
    "too many pixels": (hollow(5001, 5000), "PNG 5001 x 5000", "more than 25000000 pixels: make it smaller"),  # never decoded: it is hollow
    "large bomb": (hollow(10000, 10000), "bytes", "far more than 25000000 pixels"),
    "huge bomb": (hollow(100000, 100000), "bytes", "far more than 25000000 pixels"),
    "too long": (saved(Image.new("RGB", (401, 100))), "PNG 401 x 100", "more than 4 times the shorter: crop it"),
    "too high": (saved(Image.new("RGB", (100, 401))), "PNG 100 x 401", "crop it"),
    "too large a file": (WHOLE + bytes(geometry.FILE_BYTES), f"{len(WHOLE) + geometry.FILE_BYTES} bytes", "at most 16777216"),
}


@pytest.mark.parametrize("field", ["source", "mask"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_the_requests_fault(name: str, field: str) -> None:
    data, value, remedy = BAD[name]
    bag = {"source": file(saved(photo(96, 64))), "mask": file(saved(stencil(96, 64))), field: file(data)}
    with pytest.raises(BadRequest) as caught:
        seen(bag)
    assert caught.value.field == field
    assert value in str(caught.value.value)
    assert remedy in caught.value.remedy
    assert len(str(caught.value)) < 200


def test_a_bomb_is_refused_also_where_warnings_only_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BadRequest, match=r"PNG 10000 x 10000.*more than 25000000 pixels"):
            seen({"source": file(hollow(10000, 10000))})


def test_memory_that_runs_out_is_not_the_requests_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def starved(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("ifmesh_services.pictures.ImageOps.exif_transpose", starved)
    with pytest.raises(MemoryError):
        seen({"source": file(WHOLE)})


def test_a_mask_of_another_aspect_names_both() -> None:
    bag = {"source": file(saved(photo(96, 64))), "mask": file(saved(stencil(64, 96)))}
    with pytest.raises(BadRequest) as caught:
        seen(bag)
    assert caught.value.field == "mask"
    assert caught.value.value == "64 x 96"
    assert "the source has 96 x 64" in caught.value.remedy


def test_a_mask_must_fit_in_the_later_stages_too() -> None:
    """Alike in 16 pixels, but not in 64: better said before Stage I has drawn."""
    bag = {"source": file(saved(photo(500, 768))), "mask": file(saved(stencil(500, 830)))}
    assert seen(bag, 16).mask is not None
    with pytest.raises(BadRequest, match=r"500 x 830.*the source has 500 x 768"):
        seen(bag, 16, 64)


def test_a_turned_mask_fits_a_turned_source() -> None:
    bag = {"source": file(turned(photo(96, 64), 6)), "mask": file(saved(stencil(64, 96)))}
    made = seen(bag)
    assert made.mask is not None
    assert made.mask.shape[2:] == made.image.shape[2:] == (24, 16)

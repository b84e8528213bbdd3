"""What goes in: one picture file, from whatever the user has.  What the mesh could never use is refused here, before anything is sent."""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ifmesh import formats, jpeg
from ifmesh.errors import BadRequest
from ifmesh.geometry import ASPECT, FILE_BYTES, PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image as Pixels

TAKEN: Final = "a Pillow image, a path, a file's bytes, a numpy array or an http(s) URL"
SEND: Final = "send PNG, JPEG or WebP"
AS_THEY_ARE: Final = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # Pillow's modes that come out of a PNG as they went in
OTHERS: Final = {  # what people have, by its first bytes; only to name it
    b"GIF8": "a GIF",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"BM": "a BMP",
    b"%PDF": "a PDF",
    b"<svg": "an SVG",
    b"<?xml": "an XML file, perhaps SVG",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
}


@dataclass(frozen=True, slots=True)
class File:
    """A picture file that the mesh takes.  data: the whole of it; width, height: pixels, as it is meant to be seen (EXIF orientation).

    format: "PNG", "JPEG" or "WEBP".
    """

    data: bytes = field(repr=False)
    width: int
    height: int
    format: str


def read(what: object, field: str) -> File:
    """One picture, decoded once to know that it can be.  Blocks for a URL: 30 s at most.

    what: a Pillow image of any mode (its pixels become a PNG; EXIF is not looked at, as diffusers' pipelines do not); a path; a
    file's bytes; a numpy array, uint8 [h, w], [h, w, 1 | 3 | 4], or for a mask bool [h, w], true: repaint; or an http(s) URL.  Files,
    bytes and what a URL gives are sent as they are: the mesh applies their EXIF orientation and drops alpha.

    At most 16 MiB and 25 megapixels; PNG, JPEG or WebP; the longer side at most four times the shorter.  Raises BadRequest.
    """
    from PIL import Image as pillow

    if isinstance(what, pillow.Image):
        return _encoded(what, what, field)
    if isinstance(what, bytes | bytearray | memoryview):
        data = _from_bytes(what, field)
        return _checked(data, f"{len(data)} bytes", field)
    if isinstance(what, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", what):
        from ifmesh import fetch

        return _checked(fetch.fetch(what, field), what, field)
    if isinstance(what, str | os.PathLike):
        path = os.fspath(what)
        return _checked(_from_path(path, field), path, field)
    if isinstance(getattr(what, "__array_interface__", None), dict):
        return _from_array(what, field)
    raise BadRequest(field, what if isinstance(what, str | None) else type(what), TAKEN)


# ---- what there is


def _from_bytes(what: bytes | bytearray | memoryview, field: str) -> bytes:
    try:
        size = memoryview(what).nbytes
    except ValueError:  # a view that was released
        raise BadRequest(field, what, TAKEN) from None
    if size > FILE_BYTES:
        raise BadRequest(field, f"{size} bytes", f"at most {FILE_BYTES} bytes ({FILE_BYTES >> 20} MiB): scale it down, or save it as JPEG")
    return bytes(what)


def _from_path(what: str, field: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(what).st_mode):  # looked at before it is opened: to open a pipe is to wait for it
            raise BadRequest(field, what, "a folder: give a file in it" if os.path.isdir(what) else "not a file")
        with open(what, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(FILE_BYTES + 1) if size <= FILE_BYTES else b""
    except FileNotFoundError:
        raise BadRequest(field, what, "no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in it
        raise BadRequest(field, what, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if max(size, len(data)) > FILE_BYTES:
        raise BadRequest(field, what, f"{size} bytes; at most {FILE_BYTES} ({FILE_BYTES >> 20} MiB): scale it down, or save it as JPEG")
    return data


def _from_array(what: Any, field: str) -> File:
    """By the array interface, which every numpy array has: this half does not import numpy."""
    from PIL import Image as pillow

    try:
        shape, kind = tuple(int(n) for n in what.__array_interface__["shape"]), str(what.__array_interface__["typestr"])
    except (KeyError, TypeError, ValueError):  # no array, whatever it says
        raise BadRequest(field, type(what), TAKEN) from None
    name = f"array {list(shape)} {getattr(what, 'dtype', kind)}"
    if kind[1:2] == "f":
        raise BadRequest(field, name, "uint8 within 0..255: of floats within 0..1, (array * 255).round().astype('uint8')")
    if kind not in ("|u1", "|b1"):
        raise BadRequest(field, name, "uint8 within 0..255, or bool for a mask: array.astype('uint8')")
    if kind == "|b1" and (field != "mask" or len(shape) != 2):
        raise BadRequest(field, name, "bool is for masks, [height, width]; else uint8 within 0..255")
    if len(shape) == 4:
        raise BadRequest(field, name, "one picture, [height, width, channels]: array[0] is the first")
    if len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        raise BadRequest(field, name, "[height, width, channels]: array.transpose(1, 2, 0)")
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(shape[2] if len(shape) == 3 else 1)
    if len(shape) not in (2, 3) or mode is None or 0 in shape:
        raise BadRequest(field, name, "[height, width] or [height, width, 1, 3 or 4]")
    height, width = shape[:2]
    _check_size(width, height, name, field)
    try:
        data = memoryview(what).tobytes()  # in C order, whatever its strides
    except (TypeError, ValueError, BufferError):
        raise BadRequest(field, name, TAKEN) from None
    if kind == "|b1":
        data = data.translate(bytes([0]) + bytes([255]) * 255)
    return _encoded(pillow.frombytes(mode, (width, height), data), name, field)


def _encoded(picture: Pixels, what: object, field: str) -> File:
    """As PNG: equal pixels give equal bytes, whatever else the picture knows of itself."""
    width, height = picture.size
    if picture.mode == "F":
        raise BadRequest(field, what, "floats: say what they mean by a mode of whole numbers, such as L or RGB, 0..255")
    if not width or not height:
        raise BadRequest(field, what, "has no pixels")
    _check_size(width, height, what, field)
    try:
        bare = picture.copy() if picture.mode in AS_THEY_ARE else picture.convert("RGB")
    except Exception as error:  # a file that Pillow opened, and has not read until now
        raise BadRequest(field, what, f"cannot be decoded ({_said(error)}): {SEND}") from None
    bare.info = {}
    file = io.BytesIO()
    bare.save(file, "PNG")
    data = file.getvalue()
    if len(data) > FILE_BYTES:
        remedy = f"as PNG it has {len(data)} bytes; at most {FILE_BYTES}: scale it down, or give the bytes of a JPEG or WebP file"
        raise BadRequest(field, what, remedy)
    return File(data, width, height, "PNG")


# ---- what is in it


def _checked(data: bytes, what: object, field: str) -> File:
    """The file as it is, once it is known that it can be drawn from."""
    from PIL import JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    # Not pillow.open: above its own limit that warns, or not, as the whole process has set it; here the limit is ours.
    openers: dict[str, Callable[[io.BytesIO], Any]] = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.jpeg_factory,
        "WEBP": WebPImagePlugin.WebPImageFile,
    }
    kind = _kind(data, what, field)
    if jpeg.pieces(data) > jpeg.PIECES:
        raise BadRequest(field, what, f"a JPEG of more than {jpeg.PIECES} segments, which takes too long to read: save it anew")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of broken EXIF, for one: orientation is all that is asked of it
        try:
            picture = openers[kind](io.BytesIO(data))
            width, height = picture.size
            _check_size(width, height, what, field)  # before it is decoded
            if jpeg.scans(data) > jpeg.SCANS:
                raise BadRequest(field, what, f"a JPEG of more than {jpeg.SCANS} scans, which takes too long to decode: save it anew")
            picture.load()
            turned = picture.getexif().get(0x0112) in (5, 6, 7, 8)  # the orientation: by 90 or 270 degrees
        except BadRequest:
            raise
        except Exception as error:  # Pillow raises whatever it likes
            raise BadRequest(field, what, f"{kind}, but it cannot be decoded ({_said(error)}): it is damaged or cut off") from None
    return File(data, *((height, width) if turned else (width, height)), kind)


def _kind(data: bytes, what: object, field: str) -> str:
    if found := formats.kind(data):
        return found.upper()
    if not data:
        raise BadRequest(field, what, f"is empty: {SEND}")
    if data[4:8] == b"ftyp":
        brand = re.sub(rb"[^a-zA-Z0-9]", b"", data[8:12]).decode()
        raise BadRequest(field, what, f"is a {brand or 'nameless'} file (AVIF, HEIC or a video): {SEND}")
    named = next((name for start, name in OTHERS.items() if data.lstrip().startswith(start)), "no picture of a known format")
    raise BadRequest(field, what, f"is {named}: {SEND}")


def _check_size(width: int, height: int, what: object, field: str) -> None:
    if width * height > PIXELS:
        raise BadRequest(field, what, f"{width} x {height} pixels; at most {PIXELS // 1_000_000} megapixels: scale it down")
    if max(width, height) > ASPECT * min(width, height):
        raise BadRequest(field, what, f"{width} x {height}: the longer side at most {ASPECT} times the shorter: cut it")


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:120]

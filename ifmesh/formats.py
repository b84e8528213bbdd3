"""What kind of picture file it is, and how large, by its first bytes.  Pure.

PNG: https://www.w3.org/TR/png-3/#11IHDR.  JPEG: ITU T.81, B.2.2.  WebP: https://developers.google.com/speed/webp/docs/riff_container.
"""

from __future__ import annotations

import re
from typing import Final

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_FILL: Final = re.compile(rb"\xff+(?=\xff)")  # before a JPEG's marker, as much as one likes
_NO_FRAME: Final = frozenset({0xC4, 0xC8, 0xCC})  # among JPEG's markers C0 to CF, which begin a frame else


def kind(data: bytes) -> str:
    """ "png", "jpeg" or "webp", as it says of itself; "" for anything else."""
    if data.startswith(_PNG):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    return "webp" if data.startswith(b"RIFF") and data[8:12] == b"WEBP" else ""


def size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels, as the header has it.  ValueError: it has none."""
    found = {"png": _of_png, "jpeg": _of_jpeg, "webp": _of_webp}.get(kind(data), _of_none)(data)
    if 0 in found:
        raise ValueError("no PNG, JPEG or WebP file")
    return found


def _of_none(data: bytes) -> tuple[int, int]:
    return 0, 0


def _of_png(data: bytes) -> tuple[int, int]:
    if data[8:16] != b"\0\0\0\rIHDR" or len(data) < 33:
        return 0, 0
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _of_jpeg(data: bytes) -> tuple[int, int]:
    at = 2
    while data[at : at + 1] == b"\xff" and at + 9 <= len(data):
        marker = data[at + 1]
        if marker & 0xF0 == 0xC0 and marker not in _NO_FRAME:
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        fill = _FILL.match(data, at)
        at = fill.end() if fill else at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0


def _of_webp(data: bytes) -> tuple[int, int]:
    if data[12:16] == b"VP8X" and len(data) >= 30:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L" and data[20:21] == b"\x2f" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if data[12:16] == b"VP8 " and data[23:26] == b"\x9d\x01\x2a" and len(data) >= 30:
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return 0, 0

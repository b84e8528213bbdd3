"""How much work a JPEG is beyond its pixels.  Pure: the client asks before it sends, the stage before it decodes.

A progressive JPEG comes in scans, each decoded at full size.  A scan may be 42 bytes long, so that a small file can take hours.  Before
the first one come segments, and Pillow joins those with EXIF one by one: a few hundred thousand of them take minutes.
"""

from __future__ import annotations

import re
from typing import Final

SCANS: Final = 100  # at most; cameras and programs write about ten
PIECES: Final = 10_000  # at most; cameras and programs write below a hundred, and with a long history some hundreds
_SCAN, _END = 0xDA, 0xD9
_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)  # not: stuffing, restarts, a beginning, fill: those have no length


def scans(data: bytes) -> int:
    """Of the first picture in the file; not of what cameras put into its segments or behind it.  0: no JPEG.  Stops above SCANS.

    Markers and segments: ITU T.81, annex B.
    """
    if data[:2] != b"\xff\xd8":
        return 0
    count, at = 0, 2
    while count <= SCANS and (found := _MARKER.search(data, at)) and found.start() < len(data) - 3:
        at = found.start()
        if data[at + 1] == _END:
            break
        count += data[at + 1] == _SCAN
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return count


def pieces(data: bytes) -> int:
    """Segments before its first scan, and bytes that are in none, such as fill: a decoder takes a step for each.  Stops above PIECES."""
    if data[:2] != b"\xff\xd8":
        return 0
    count, at = 0, 2
    while count <= PIECES and at < len(data):
        found = _MARKER.search(data, at)
        count += 1 + (found.start() if found else len(data)) - at
        if found is None or data[found.start() + 1] in (_SCAN, _END):
            break
        at = found.start() + 2 + int.from_bytes(data[found.start() + 2 : found.start() + 4], "big")
    return count

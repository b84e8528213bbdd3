"""How often a JPEG paints itself anew.  Pure: the client asks before it sends, the stage before it decodes.

A progressive JPEG comes in scans, each decoded at full size.  A scan may be 42 bytes long, so that a small file can take hours.
"""

from __future__ import annotations

from typing import Final

SCANS: Final = 100  # at most; cameras and programs write about ten
_BEGIN, _SCAN, _END = 0xD8, 0xDA, 0xD9
_ALONE: Final = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xD8), _BEGIN})  # what follows FF without a length: stuffing, fill, restarts


def scans(data: bytes) -> int:
    """Of the first picture in the file; not of what cameras put into its segments or behind it.  0: no JPEG.  Stops above SCANS.

    Markers and segments: ITU T.81, annex B.
    """
    if data[:2] != b"\xff\xd8":
        return 0
    count, at = 0, 2
    while count <= SCANS and 0 <= (at := data.find(b"\xff", at)) < len(data) - 3:
        marker = data[at + 1]
        if marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _END:
            break
        count += marker == _SCAN
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return count

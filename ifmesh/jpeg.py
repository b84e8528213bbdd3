"""How often a JPEG paints itself anew.  Pure: the client asks before it sends, the stage before it decodes.

A progressive JPEG comes in scans, each decoded at full size.  A scan may be 42 bytes long, so that a small file can take hours.
"""

from __future__ import annotations

import re
from typing import Final

SCANS: Final = 100  # at most; cameras and programs write about ten
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

"""Scans are counted as a decoder would meet them."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from ifmesh.jpeg import PIECES, SCANS, pieces, scans


def jpeg(**how: object) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((96, 64), 90).convert("RGB").save(file, "JPEG", **how)
    return file.getvalue()


def more(data: bytes, count: int) -> bytes:
    """With its last scan said so many times more: what a bomb looks like."""
    begin = data.rindex(b"\xff\xda")
    return data[:-2] + data[begin:-2] * count + data[-2:]


def test_a_plain_one_has_one_scan_and_a_progressive_one_a_few() -> None:
    assert scans(jpeg()) == 1
    assert scans(jpeg(progressive=True)) == 10


@pytest.mark.parametrize("progressive", [False, True])
def test_what_is_no_scan_is_not_counted(progressive: bool) -> None:
    known = scans(jpeg(progressive=progressive))
    inside = jpeg(progressive=progressive, exif=b"Exif\0\0" + b"\xff\xda" * 1000, comment=b"\xff\xda" * 1000)
    assert scans(inside) == known
    assert scans(inside + b"\xff\xda\0\x02" * 1000) == known, "a film behind the picture"
    assert scans(jpeg(progressive=progressive, restart_marker_rows=1)) == known


def test_a_bomb_is_seen_and_no_more_than_that() -> None:
    assert scans(more(jpeg(progressive=True), 50)) == 60
    assert scans(more(jpeg(progressive=True), 5000)) == SCANS + 1


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xda\0", b"\x89PNG" + b"\xff\xda" * 500, b"RIFF"]
)
def test_any_bytes_are_counted(data: bytes) -> None:
    assert scans(data) == 0


def test_segments_that_say_nothing_of_their_length_end_too() -> None:
    assert scans(b"\xff\xd8" + b"\xff\xda\0\0" * 10) == 10


def test_pieces_are_what_comes_before_the_first_scan() -> None:
    plain = jpeg()
    few = pieces(plain)
    assert 5 < few < 20
    assert pieces(more(jpeg(progressive=True), 50)) < 20
    note = b"\xff\xfe\0\4hi"
    assert pieces(plain[:2] + note * 7 + plain[2:]) == few + 7
    assert pieces(plain[:2] + b"\xff" * 9 + plain[2:]) == few + 9
    assert pieces(plain[:2] + note * 200_000 + plain[2:]) == PIECES + 1
    assert pieces(plain[:2] + b"\xff" * 200_000) > PIECES
    assert pieces(b"\xff\xd8") == pieces(b"") == pieces(b"\x89PNG" + plain) == 0
    assert pieces(jpeg(icc_profile=bytes(3_000_000))) < few + 60

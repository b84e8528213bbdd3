"""Hostile picture files, at the client's door and at the stage's: a clear BadRequest or a picture, in bounded time and memory."""

from __future__ import annotations

import gc
import resource
import time
import warnings
from collections.abc import Callable

import psutil
import pytest
import torch
from ifmesh_services import pictures as services

from ifmesh import formats, geometry, jpeg, source
from ifmesh.errors import BadRequest
from tests.fuzz.pictures import pictures

MOST_CPU = 20.0  # seconds for one of them; the slowest, of 25 megapixels, take about one
MOST_GROWTH = 150 << 20  # bytes that stay
MOST_PEAK = 1 << 30  # bytes at once: 25 megapixels of four channels, a few times


def by_the_client(data: bytes) -> tuple[int, int]:
    found = source.read(data, "source")
    assert formats.kind(data).upper() == found.format
    return found.width, found.height


def tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def by_a_stage(data: bytes) -> tuple[int, int]:
    shown = services.picture(
        torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8), "source", "RGB"
    )
    assert shown.mode == "RGB"
    return shown.size


def by_the_upscaler(data: bytes) -> tuple[int, int]:
    return services.picture(tensor(data), "mask", "L", "upscaler").size


def by_its_first_bytes(data: bytes) -> tuple[int, int]:
    """What the client asks of a published file; it never looks at pixels."""
    jpeg.scans(data)
    try:
        return formats.size(data)
    except ValueError:
        raise BadRequest("source", "", "none") from None


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """All of them are there before memory is measured."""
    return {name: make() for name, make in pictures().items()}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.timeout(300)
@pytest.mark.parametrize("read", [by_the_client, by_a_stage, pytest.param(by_the_upscaler, marks=pytest.mark.slow), by_its_first_bytes])
def test_every_file_is_a_picture_or_refused(read: Callable[[bytes], tuple[int, int]], files: dict[str, bytes]) -> None:
    assert len(files) >= 100
    taken: dict[str, tuple[int, int]] = {}
    spent: dict[str, float] = {}
    gc.collect()
    before, high = psutil.Process().memory_info().rss, peak()
    for name, data in files.items():
        began = time.process_time()
        said = ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in a worker: Pillow warns of what it does not like, and goes on
            try:
                taken[name] = read(data)
            except BadRequest as error:
                said = str(error)
        spent[name] = time.process_time() - began
        assert len(said) < 500, name
        assert said.isprintable(), f"{name}: {said!r}"
    slowest, *others = sorted(spent, key=lambda name: -spent[name])
    assert spent[slowest] < MOST_CPU, f"{slowest}: {spent[slowest]:.1f} s of CPU"
    gc.collect()
    assert psutil.Process().memory_info().rss - before < MOST_GROWTH
    assert peak() - high < MOST_PEAK
    if read is not by_its_first_bytes:
        assert all(w * h <= geometry.PIXELS and max(w, h) <= geometry.ASPECT * min(w, h) for w, h in taken.values())
    assert len(taken) > 20, taken
    told = ", ".join(f"{name} {spent[name]:.2f} s" for name in (slowest, *others[:3]))
    print(f"{len(taken)} of {len(files)} taken; CPU: {sum(spent.values()):.1f} s, slowest {told}; peak +{(peak() - high) / 1e6:.0f} MB")


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\x00", b"\xff\xd0"])
def test_what_our_own_code_walks_through_it_walks_fast(filling: bytes) -> None:
    """The largest file of markers that mean nothing: a step of Python for each would take many seconds."""
    data = b"\xff\xd8" + filling * (geometry.FILE_BYTES // len(filling))
    began = time.process_time()
    assert jpeg.scans(data) == 0
    assert formats.kind(data) == "jpeg"
    with pytest.raises(ValueError, match="no PNG, JPEG or WebP"):
        formats.size(data)
    assert time.process_time() - began < 3

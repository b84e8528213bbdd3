"""What is told of both sides, of diffusers alone and of the mesh beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ifmesh.bench.peaks import Peaks
from ifmesh.client import Job
from ifmesh.image import Image

LOOK = 0.5
"""Seconds between two looks whether all is over."""


def memory(peaks: Peaks) -> dict[str, Any]:
    return {"ram": peaks.ram, "vram": peaks.vram}


def processor(pids: Iterable[int]) -> float:
    """Seconds of processors that these processes have taken so far; of one that has ended, nothing."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def loads(state: Path, stages: Iterable[str]) -> dict[str, int]:
    """How often each stage of a mesh has come into memory so far, by its logs."""
    found = {}
    for stage in stages:
        texts = [path.read_text(errors="replace") for path in (state / "logs").glob(f"{stage}-*.log")]
        found[stage] = sum(text.count(" is loaded: ") for text in texts)
    return found


def waited(job: Job, over: Callable[[], bool]) -> Image | None:
    """Its pictures; None: it is over before."""
    while not over():
        with suppress(TimeoutError):
            return job.result(LOOK)
    return None

"""What this disk asks for keeping its word: the time of one durable write."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ifmesh.bench.statistics import quantiles

PAGE, PICTURE = 4096, 3_145_728


def writes(folder: Path, count: int = 30) -> dict[str, dict[str, float]]:
    """{"4096": {"p50_ms", "p95_ms"}, "3145728": ...}: so many bytes added to a file, and fsync, so often."""
    return {str(size): quantiles(_times(folder / "durable", size, count), (50, 95)) for size in (PAGE, PICTURE)}


def _times(path: Path, size: int, count: int) -> list[float]:
    data, times = os.urandom(size), []
    try:
        with open(path, "wb", buffering=0) as file:
            for _ in range(count):
                began = time.perf_counter()
                file.write(data)
                os.fsync(file.fileno())
                times.append(time.perf_counter() - began)
    finally:
        path.unlink(missing_ok=True)
    return times

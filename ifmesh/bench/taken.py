"""What a closed loop has measured: how long each request took, and when it ended.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ifmesh.bench.statistics import median, quantiles, rate


@dataclass(slots=True)
class Taken:
    """Of one run.  seconds: of each request; ends: since the run began."""

    in_flight: int
    seconds: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def add(self, seconds: float, end: float) -> None:
        self.seconds.append(seconds)
        self.ends.append(end)


def row(runs: Iterable[Taken]) -> dict[str, float]:
    """p50_ms and p95_ms over all requests of all runs; requests_per_s: the median of the runs, each after its pipe was full."""
    known = [run for run in runs if run.seconds]
    seconds = [value for run in known for value in run.seconds[min(run.in_flight, len(run.seconds) // 2) :]]
    if not seconds:
        return {}
    per_second = median(rate(run.ends, min(run.in_flight, len(run.ends) // 2)) for run in known)
    return {**quantiles(seconds, (50, 95)), "requests_per_s": round(per_second, 2), "requests": len(seconds)}


def ratios(mesh: dict[str, float], floor: dict[str, float]) -> dict[str, float]:
    """How many times the floor: of times, less is better; of requests_per_s, more is.  {} where one of them is missing."""
    names = [name for name in ("p50_ms", "p95_ms", "requests_per_s") if mesh.get(name) and floor.get(name)]
    return {name.removesuffix("_ms"): round(mesh[name] / floor[name], 3) for name in names}

"""What a closed loop has measured: how long each request took, and when it ended.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ifmesh.bench.statistics import median, quantiles, rate

Row = dict[str, Any]


@dataclass(slots=True)
class Taken:
    """Of one run.  seconds: of each request; ends: since the run began."""

    in_flight: int
    seconds: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def add(self, seconds: float, end: float) -> None:
        self.seconds.append(seconds)
        self.ends.append(end)


def row(runs: Iterable[Taken]) -> Row:
    """p50_ms and p95_ms over all requests of all runs; requests_per_s: the median of the runs, each after its pipe was full;
    rounds: both of each run."""
    known = [run for run in runs if run.seconds]
    seconds = [value for run in known for value in run.seconds[min(run.in_flight, len(run.seconds) // 2) :]]
    if not seconds:
        return {}
    rates = [round(rate(run.ends, min(run.in_flight, len(run.ends) // 2)), 2) for run in known]
    rounds = {"p50_ms": [round(1000 * median(run.seconds), 3) for run in known], "requests_per_s": rates}
    return {**quantiles(seconds, (50, 95)), "requests_per_s": round(median(rates), 2), "requests": len(seconds), "rounds": rounds}


def ratios(mesh: Row, floor: Row) -> dict[str, float]:
    """How many times the floor: of times, less is better; of requests_per_s, more is.  {} where one of them is missing."""
    names = [name for name in ("p50_ms", "p95_ms", "requests_per_s") if mesh.get(name) and floor.get(name)]
    return {name.removesuffix("_ms"): round(mesh[name] / floor[name], 3) for name in names}

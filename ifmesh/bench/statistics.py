"""Numbers about many numbers.  Pure.

Percentiles interpolate linearly between the two nearest ranks (Hyndman and Fan's type 7, as numpy does).  Intervals are Student's, 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's t, two-sided 95 %, for 1 to 30 degrees of freedom."""


def percentile(values: Iterable[float], percent: float) -> float:
    """The value that so many per cent (0 to 100) do not exceed.  ValueError: of nothing."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    if below + 1 >= len(ordered):
        return ordered[-1]
    return ordered[below] + (ordered[below + 1] - ordered[below]) * (place - below)


def median(values: Iterable[float]) -> float:
    return percentile(values, 50)


def mean(values: Sequence[float]) -> float:
    """ValueError: of nothing."""
    if not values:
        raise ValueError("no values")
    return math.fsum(values) / len(values)


def rate(ends: Iterable[float], skip: int = 0) -> float:
    """How many ended per second, between the first end that counts and the last.  skip: the first so many only fill the pipe.  0.0: too
    few ended to tell."""
    counted = sorted(ends)[skip:]
    if len(counted) < 2 or counted[-1] <= counted[0]:
        return 0.0
    return (len(counted) - 1) / (counted[-1] - counted[0])


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, and how far off the true one may be: with one value nobody knows, and half is infinite."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


def interval(values: Sequence[float]) -> Interval:
    """Of the mean, from values that were measured independently (repeats, not requests).  ValueError: of nothing."""
    centre = mean(values)
    if len(values) < 2:
        return Interval(centre, math.inf)
    return Interval(centre, student(len(values) - 1) * math.sqrt(variance(values) / len(values)))


def variance(values: Sequence[float]) -> float:
    """Of the population from which these are a sample.  At least two."""
    centre = mean(values)
    return math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)


def student(freedom: float) -> float:
    """t, two-sided 95 %.  freedom: at least 1; between whole numbers the smaller counts, which errs towards doubt."""
    known = math.floor(freedom)
    return T95[known - 1] if known <= len(T95) else 1.96 + 2.42 / freedom  # 2.038 at 31, 1.980 at 120: within 0.002


def quantiles(seconds: Sequence[float], percents: Sequence[int] = (50, 90, 95, 99)) -> dict[str, float]:
    """{"p50_ms": ..., ...} of durations in seconds; {} of nothing."""
    return {f"p{percent}_ms": round(1000 * percentile(seconds, percent), 3) for percent in percents} if seconds else {}

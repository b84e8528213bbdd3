"""`ifmesh bench sweep`: the same load again and again, with one thing growing: where it stops to help, and which stage is to blame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ifmesh.bench.statistics import mean

Figures = dict[str, Any]
NEARLY = 0.95
"""Of the most images per second, what is as good."""


def point(value: int, load: Mapping[str, Any]) -> Figures:
    """One place of a sweep.  load: what `Load.figures` tells of it."""
    runs = load["runs"]
    bounds = [run["bound_images_per_s"] for run in runs if run["bound_images_per_s"]]
    stages = runs[-1]["stages"] if runs else []
    return {
        "value": value,
        "said": str(value),
        "figures": load["figures"],
        "bottleneck": Counter(run["bottleneck"] for run in runs).most_common(1)[0][0] if runs else "",
        "bound": mean(bounds) if bounds else None,
        "busy": {row["stage"]: row["busy"] for row in stages},
        "times": None,
    }


def finished(what: str, points: Sequence[Figures]) -> Figures:
    """What follows the head of a report.  times: images per second over those of the first point."""
    known = [p for p in points if "images_per_s" in p["figures"]]
    first = known[0]["figures"]["images_per_s"]["mean"] if known else 0.0
    told = [{**p, "times": p["figures"]["images_per_s"]["mean"] / first if first else None} for p in known]
    return {"asked": {"what": what, "values": [p["value"] for p in points]}, "points": told, "knee": knee(told)}


def knee(points: Sequence[Figures]) -> Figures | None:
    """The smallest point that is nearly as good as the best; None: of fewer than three, or when the last is the first such one."""
    if len(points) < 3:
        return None
    most = max(p["figures"]["images_per_s"]["mean"] for p in points)
    if not most:
        return None
    found = next(p for p in points if p["figures"]["images_per_s"]["mean"] >= NEARLY * most)
    if found is points[-1]:
        return None
    part = found["figures"]["images_per_s"]["mean"] / most
    return {
        "said": found["said"],
        "value": found["value"],
        "why": f"it has {part:.0%} of the most images/s; {found['bottleneck']} is the slowest",
    }

"""Every link between services as the mesh uses it: bandwidth and round trip, one after the other, so that none takes from another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from ifmesh.protocol import Probed

Row = dict[str, Any]


def row(source: str, target: str, probed: Probed) -> Row:
    """Of one link.  Round trips in milliseconds, of small frames, there and back; mb_per_s: 10^6 bytes a second, one way.

    None: it could not be measured, and error says why.
    """
    trips = sorted(1000 * seconds for seconds in probed.trips)
    times = {"p50": middle(trips), "least": trips[0], "most": trips[-1], "count": len(trips)} if trips else None
    return {
        "source": source,
        "target": target,
        "url": probed.url,
        "transport": urlsplit(probed.url).scheme,
        "arrived": probed.arrived,
        "round_trip_ms": times,
        "mb_per_s": probed.size / probed.seconds / 1e6 if probed.seconds > 0 else None,
        "bytes": probed.size,
        "seconds": probed.seconds,
        "error": probed.error,
    }


def middle(numbers: Sequence[float]) -> float:
    """The median of sorted numbers."""
    half = len(numbers) // 2
    return numbers[half] if len(numbers) % 2 else (numbers[half - 1] + numbers[half]) / 2


def matrix(rows: Iterable[Row]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The targets, and for each source a cell for each of them: MB/s and the median round trip."""
    known = list(rows)
    targets = list(dict.fromkeys(one["target"] for one in known))
    cells = {(one["source"], one["target"]): cell(one) for one in known}
    sources = dict.fromkeys(one["source"] for one in known)
    return targets, [(source, [cells.get((source, target), "") for target in targets]) for source in sources]


def cell(one: Row) -> str:
    """ "812 MB/s, 0.31 ms"; what could not be measured is "-", and a link over which nothing comes "down"."""
    if not one["arrived"]:
        return "down"
    speed = "-" if one["mb_per_s"] is None else f"{one['mb_per_s']:.0f} MB/s"
    trip = "-" if one["round_trip_ms"] is None else f"{one['round_trip_ms']['p50']:.2f} ms"
    return f"{speed}, {trip}"

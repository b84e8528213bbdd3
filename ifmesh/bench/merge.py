"""What several clients saw, as one: their durations and counts are put together, their clocks never compared.  Pure.

A run begins for every client at its own zero.  What is measured is the steady part, from `warm` to `seconds` on each client's clock;
counts of that part add up, and so do rates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ifmesh.bench.orders import Record, Report, Spell
from ifmesh.bench.statistics import Interval, interval, mean, median, percentile, quantiles
from ifmesh.request import STAGES

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Goal:
    """What an image has to keep to count as good: `percent` of all within so many seconds."""

    percent: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Seat:
    """A worker that may be at work, as the books show it.  slots: requests that step together there."""

    name: str
    stage: str
    host: str
    device: str
    slots: int = 1


def figures(reports: Sequence[Report], seats: Sequence[Seat], warm: float, seconds: float, goal: Goal | None = None) -> Figures:
    """Of one run.  images_per_s: that ended in the steady part; latency_ms and the like: of what was due in it, from when it was due."""
    span = seconds - warm
    due = [record for report in reports for record in report.records if warm <= record.at < seconds]
    done = [record for report in reports for record in report.records if record.how == "finished" and warm < record.end <= seconds]
    finished = [record for record in due if record.how == "finished"]
    per_second = len(done) / span
    stages = _stages(done, seats, span)
    bound, slowest = _bound(stages)
    devices = {(seat.host, seat.device) for seat in seats}
    told: Figures = {
        "images_per_s": per_second,
        "images_per_s_per_device": per_second / len(devices) if devices else None,
        "devices": len(devices),
        "requests": dict(Counter(record.how for record in due)),
        "latency_ms": quantiles([record.seconds for record in finished]),
        "first_picture_ms": quantiles([record.preview - record.at for record in finished if record.preview is not None]),
        "late_ms": quantiles([record.sent - record.at for record in due], (50, 99)),
        "retry_after_s": _middle([record.retry_after for record in due if record.how == "refused"]),
        "bound_images_per_s": bound,
        "bottleneck": slowest,
        "efficiency": per_second / bound if bound else None,
        "stages": stages,
        "workers": _workers(done, seats, span),
    }
    if goal is not None:
        good = sum(record.seconds <= goal.seconds for record in done)
        asked = len(due) - sum(record.how == "refused" for record in due)
        seen = percentile([r.seconds for r in finished], goal.percent) if finished and len(finished) == asked else None
        told["goodput_per_s"] = good / span
        told["slo"] = {"percent": goal.percent, "seconds": goal.seconds, "seen": seen, "met": seen is not None and seen <= goal.seconds}
    return told


def crews(reports: Sequence[Report], hosts: Sequence[str], warm: float, seconds: float) -> list[Figures]:
    """What the clients of each host saw of one run.  hosts: where each client was; "": on this one."""
    found = []
    for host in dict.fromkeys(hosts):
        own = [report for report, where in zip(reports, hosts, strict=True) if where == host]
        due = [record for report in own for record in report.records if warm <= record.at < seconds]
        finished = [record for record in due if record.how == "finished"]
        done = sum(record.how == "finished" and warm < record.end <= seconds for report in own for record in report.records)
        row: Figures = {
            "host": host,
            "clients": len(own),
            "images_per_s": done / (seconds - warm),
            "requests": dict(Counter(record.how for record in due)),
            "latency_ms": quantiles([record.seconds for record in finished]),
            "first_picture_ms": quantiles([record.preview - record.at for record in finished if record.preview is not None]),
            "late_ms": quantiles([record.sent - record.at for record in due], (50, 99)),
        }
        found.append(row)
    return found


def hops(records: Iterable[Record]) -> list[Figures]:
    """Of requests that went one at a time: how many bytes came into each stage, and how long after the end of the one before."""
    spells = [spell for record in records if record.how == "finished" for spell in record.spells]
    found = []
    for stage in STAGES:
        own = [spell for spell in spells if spell.stage == stage]
        if own:
            size, seconds = median(s.bytes_in for s in own), median(s.queued for s in own)
            speed = size / seconds if size and seconds else None
            found.append({"into": stage, "bytes": round(size), "ms": round(1000 * seconds, 3), "bytes_per_s": speed and round(speed)})
    return found


def repeated(runs: Sequence[Figures]) -> Figures:
    """The figures that runs are compared by: each with its values, mean, and 95 % interval (None: one run tells none)."""
    found: Figures = {}
    for name, (pick, better) in COMPARED.items():
        values = [value for value in map(pick, runs) if value is not None]
        if values:
            found[name] = {**told(interval(values)), "values": [round(value, 4) for value in values], "better": better}
    return found


def told(known: Interval) -> Figures:
    """As it is written: without a half that nobody knows."""
    sure = known.half != float("inf")
    low, high = (round(max(0.0, known.low), 4), round(known.high, 4)) if sure else (None, None)  # none of them can be below nought
    return {"mean": round(known.mean, 4), "low": low, "high": high}


def _of(name: str, part: str) -> Any:
    return lambda run: run.get(name, {}).get(part)


COMPARED: Mapping[str, tuple[Any, str]] = {
    "images_per_s": (lambda run: run["images_per_s"], "more"),
    "goodput_per_s": (lambda run: run.get("goodput_per_s"), "more"),
    "efficiency": (lambda run: run["efficiency"], "more"),
    "latency_p50_ms": (_of("latency_ms", "p50_ms"), "less"),
    "latency_p95_ms": (_of("latency_ms", "p95_ms"), "less"),
    "latency_p99_ms": (_of("latency_ms", "p99_ms"), "less"),
    "first_picture_p50_ms": (_of("first_picture_ms", "p50_ms"), "less"),
}


def _stages(done: Iterable[Record], seats: Sequence[Seat], span: float) -> list[Figures]:
    spells = [spell for record in done for spell in record.spells]
    found = []
    for stage in STAGES:
        own = [spell for spell in spells if spell.stage == stage]
        if not own:
            continue
        slots = sum(seat.slots for seat in seats if seat.stage == stage)
        work = mean([spell.run for spell in own])
        row: Figures = {
            "stage": stage,
            "workers": sum(seat.stage == stage for seat in seats),
            "slots": slots,
            "queued_ms": quantiles([spell.queued for spell in own], (50, 95)),
            "run_ms": {"mean_ms": round(1000 * work, 3), **quantiles([spell.run for spell in own], (50, 95))},
            "bytes_in": round(mean([spell.bytes_in for spell in own])),
            "bytes_out": round(mean([spell.bytes_out for spell in own])),
            "busy": _busy(own, slots, span),
            "bound_per_s": slots / work if work else None,
        }
        found.append(row)
    return found


def _bound(stages: Sequence[Figures]) -> tuple[float | None, str]:
    """Images per second that the slowest stage lets through, and which it is."""
    known = [(row["bound_per_s"], row["stage"]) for row in stages if row["bound_per_s"]]
    return min(known) if known else (None, "")


def _workers(done: Iterable[Record], seats: Sequence[Seat], span: float) -> list[Figures]:
    spells = [spell for record in done for spell in record.spells]
    found = []
    for seat in seats:
        own = [spell for spell in spells if spell.worker == seat.name]
        row = {"worker": seat.name, "stage": seat.stage, "host": seat.host, "device": seat.device}
        found.append({**row, "images": len(own), "busy": _busy(own, seat.slots, span)})
    return found


def _busy(spells: Iterable[Spell], slots: int, span: float) -> float | None:
    """The part of the time that they were at work."""
    return sum(spell.run for spell in spells) / (span * slots) if slots else None


def _middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None

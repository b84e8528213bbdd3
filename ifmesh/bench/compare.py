"""`ifmesh bench compare`: is B better than A, as far as their runs can tell?  Pure.

Each figure that both have is compared by the means of its independent runs, with Welch's 95 % interval of their difference: runs may
vary more in one than in the other.  Where that interval holds nought, nobody knows; with a single run there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ifmesh.bench.statistics import mean, student, variance
from ifmesh.bench.tables import NAMES, Table, flat, number

Report = Mapping[str, Any]
Verdict = Literal["better", "worse", "no difference seen", "one run: nobody knows"]


@dataclass(frozen=True, slots=True)
class Change:
    """Of one figure.  part, low, high: how much more B has than A, as a part of A; low and high None: nobody knows."""

    name: str
    a: float
    b: float
    part: float
    low: float | None
    high: float | None
    verdict: Verdict


def changes(a: Report, b: Report) -> list[Change]:
    """Of everything that both have measured.  ValueError: they are reports of different kinds."""
    if a["kind"] != b["kind"]:
        raise ValueError(f"one is a report of `bench {a['kind']}`, the other of `bench {b['kind']}`: they have nothing to compare")
    ours, theirs = measured(a), measured(b)
    return [change(name, ours[name][0], theirs[name][0], ours[name][1]) for name in ours if name in theirs]


def change(name: str, a: Sequence[float], b: Sequence[float], better: str) -> Change:
    """better: "more" or "less".  Neither list is empty, and A's mean is not 0."""
    ours, theirs = mean(a), mean(b)
    part = theirs / ours - 1
    if len(a) < 2 or len(b) < 2:
        return Change(name, ours, theirs, part, None, None, "one run: nobody knows")
    half = welch(a, b) / abs(ours)
    low, high = part - half, part + half
    if low <= 0 <= high:
        return Change(name, ours, theirs, part, low, high, "no difference seen")
    return Change(name, ours, theirs, part, low, high, "better" if (part > 0) == (better == "more") else "worse")


def welch(a: Sequence[float], b: Sequence[float]) -> float:
    """Half the 95 % interval of the difference of their means.  At least two values each."""
    ours, theirs = variance(a) / len(a), variance(b) / len(b)
    if ours + theirs == 0:
        return 0.0
    freedom = (ours + theirs) ** 2 / (ours**2 / (len(a) - 1) + theirs**2 / (len(b) - 1))
    return student(max(1.0, freedom)) * math.sqrt(ours + theirs)


def measured(report: Report) -> dict[str, tuple[list[float], str]]:
    """By name: the values of independent runs, and what is better, "more" or "less"."""
    found: dict[str, tuple[list[float], str]] = {}
    match report["kind"]:
        case "load":
            found = {NAMES.get(name, name): (row["values"], row["better"]) for name, row in report["figures"].items()}
        case "sweep":
            for point in report["points"]:
                for name, row in point["figures"].items():
                    found[f"{report['asked']['what']} {point['said']}: {NAMES.get(name, name)}"] = row["values"], row["better"]
        case "mesh":
            for transport, by in report["mesh"].items():
                for count, row in by.items():
                    for name, better in (("p50_ms", "less"), ("requests_per_s", "more")):
                        found[f"{transport}, {count} in flight: {name}"] = row["rounds"][name], better
        case "peers" | "baseline":
            for row in report["rows"]:
                for key, _ in report["columns"]:
                    if row.get(key) is not None:
                        better = "more" if key.endswith(("_per_s", "times")) else "less"
                        found[f"{row['name']}: {key}"] = row.get("rounds", {}).get(key, [row[key]]), better
    return {name: (values, better) for name, (values, better) in found.items() if values and mean(values)}


def differences(a: Report, b: Report) -> list[tuple[str, str, str]]:
    """What was not the same about the two measurements: key, in A, in B.  Only where it may matter."""
    ours, theirs = (
        {key: str(value) for key, value in flat({part: report[part] for part in ("machine", "versions", "configuration", "asked")})
         if key not in ("machine.load", "machine.memory")}
        for report in (a, b)
    )  # fmt: skip
    return [(key, ours.get(key, "-"), theirs.get(key, "-")) for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]


def tables(a: Report, b: Report) -> list[Table]:
    """For a reader.  ValueError, as `changes`."""
    found = changes(a, b)
    rows = tuple((c.name, number(c.a), number(c.b), f"{c.part:+.1%}", _within(c), c.verdict) for c in found)
    made = [Table("", ("", "A", "B", "change", "95 % interval", "B is"), rows, (said(found),))]
    if different := differences(a, b):
        made.append(Table("Not the same in both", ("", "A", "B"), tuple(different)))
    return made


def said(found: Sequence[Change]) -> str:
    """The verdict in one sentence."""
    counts = {verdict: sum(change.verdict == verdict for change in found) for verdict in ("better", "worse")}
    if not found:
        return "They have measured nothing that can be compared."
    if all(change.verdict == "one run: nobody knows" for change in found):
        return "Each has a single run: whether a difference is one, only more of them can tell (--repeat)."
    if not any(counts.values()):
        return f"Of {len(found)} figures, none differs by more than the runs themselves do."
    return f"Of {len(found)} figures, B is better in {counts['better']} and worse in {counts['worse']}."


def _within(change: Change) -> str:
    return "-" if change.low is None or change.high is None else f"{change.low:+.1%} to {change.high:+.1%}"

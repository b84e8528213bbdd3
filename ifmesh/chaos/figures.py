"""How long things took, and what was run twice: from the history alone.  Pure.

"moved" lines are the coordinator's own log, as the supervisor heard it: (job, stage, cause, why), the causes of `job.Cause`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

REACH = 60.0
"""Seconds after a kill within which what was lost by it counts as its consequence."""


def figures(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds as {"p50", "p99", "most", "count"}; steps, and shares of 1."""
    told = sorted((r for r in records if r["what"] in KNOWN), key=lambda r: r["t"])
    kills = {r["name"]: [] for r in told if r["what"] == "killed worker"}  # type: dict[str, list[float]]
    downs = [r["t"] for r in told if r["what"] == "killed coordinator"]
    for record in told:
        if record["what"] == "killed worker":
            kills[record["name"]].append(record["t"])
    moves = [r for r in told if r["what"] == "moved"]
    noticed, regrants, elsewhere = _regrants(moves, kills, downs)
    grants, adopted, held = _restarts(moves, kills, downs)
    run, twice = _steps(told)
    times = {r["job"]: r["t"] for r in reversed(told) if r["what"] == "invoked"}
    waits = [r["t"] - times[r["job"]] for r in told if r["what"] == "over" and r["job"] in times]
    return {
        "kill_to_noticed_s": spread(noticed),
        "kill_to_regrant_s": spread(regrants),
        "kill_to_regrant_elsewhere_s": spread(elsewhere),
        "coordinator_kill_to_first_grant_s": spread(grants),
        "adopted": adopted,
        "held_at_coordinator_kills": held,
        "adopted_share": round(adopted / held, 4) if held else None,
        "asked_to_ended_s": spread(waits),
        "steps_run": run,
        "steps_run_twice": twice,
    }


OVER = ("completed", "exhausted", "cancelled", "expired")
"""The causes with which a job ends."""
KNOWN = ("killed worker", "killed coordinator", "moved", "stepped", "invoked", "over")


def spread(seconds: Sequence[float]) -> dict[str, float | int | None]:
    """Of so many measurements; None where there are none."""
    found = sorted(seconds)
    if not found:
        return {"p50": None, "p99": None, "most": None, "count": 0}
    return {
        "p50": round(found[len(found) // 2], 3),
        "p99": round(found[min(len(found) - 1, int(len(found) * 0.99))], 3),
        "most": round(found[-1], 3),
        "count": len(found),
    }


def _regrants(
    moves: Sequence[Mapping[str, Any]], kills: Mapping[str, Sequence[float]], downs: Sequence[float]
) -> tuple[list[float], list[float], list[float]]:
    """From the kill of a worker until the broker takes each job back that it had; until its next grant; until that, where it is to
    another worker: it had not to wait for the successor of the dead one.  Of the first and the last, those while the coordinator lived.
    """
    lost: dict[str, tuple[float, str]] = {}
    noticed, every, elsewhere = [], [], []
    for move in moves:
        name = move["why"].split(" ")[0]
        if move["cause"] == "retried":
            before = bisect_right(kills.get(name, ()), move["t"])
            if before and move["t"] - (at := kills[name][before - 1]) < REACH:
                lost[move["job"]] = at, name
                if bisect_right(downs, move["t"]) == bisect_right(downs, at):
                    noticed.append(move["t"] - at)
        elif move["cause"] in ("assigned", "adopted"):
            if (known := lost.pop(move["job"], None)) is not None:
                at, dead = known
                every.append(move["t"] - at)
                if name != dead and bisect_right(downs, move["t"]) == bisect_right(downs, at):
                    elsewhere.append(move["t"] - at)
        else:
            lost.pop(move["job"], None)
    return noticed, every, elsewhere


def _restarts(
    moves: Sequence[Mapping[str, Any]], kills: Mapping[str, Sequence[float]], downs: Sequence[float]
) -> tuple[list[float], int, int]:
    """After each kill of the coordinator: seconds to its first new grant; how many granted jobs it left with their workers, of how many.

    Those whose worker was killed as well, before the new coordinator had met it, do not count.
    """
    grants: list[float] = []
    granted: dict[str, tuple[str, str, float]] = {}  # by job: at which stage which worker has it, since when
    pending: dict[str, tuple[str, str, float]] = {}
    adopted = held = 0
    todo = list(reversed(downs))
    down: float | None = None
    for move in moves:
        while todo and todo[-1] <= move["t"]:
            down = todo.pop()
            pending, granted = pending | granted, {}
        job, cause, now = move["job"], move["cause"], move["t"]
        name = move["why"].split(" ")[0]
        if job in pending and (cause in OVER or cause == "assigned" or (cause, move["stage"]) == ("adopted", pending[job][0])):
            _, had, since = pending.pop(job)  # a stage before it may be found first, and be adopted as well: that says nothing yet
            struck = kills.get(had, ())
            if cause not in OVER and bisect_right(struck, now) == bisect_right(struck, since):
                held += 1
                adopted += cause == "adopted"
        if cause == "assigned" and down is not None:
            grants.append(now - down)
            down = None
        if cause in ("assigned", "adopted"):
            granted[job] = (move["stage"], name, now)
        else:
            granted.pop(job, None)
    return grants, adopted, held


def _steps(told: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """All steps that ran, and those of them that had run before."""
    ran: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for record in told:
        if record["what"] == "stepped":
            ran[record["job"], record["by"]][record["step"]] += 1
    every = sum(steps.total() for steps in ran.values())
    return every, every - sum(len(steps) for steps in ran.values())

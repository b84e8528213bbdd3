"""How long things took, and what was run twice: from the history alone.  Pure.

"moved" lines are the coordinator's own log, as the supervisor heard it: (job, stage, cause, why), the causes of `job.Cause`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

REACH = 60.0
"""Seconds after a kill within which what was lost by it counts as its consequence."""


def figures(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds as {"p50", "p99", "most", "count"}; steps, and shares of 1."""
    told = sorted((r for r in records if r["what"] in KNOWN), key=lambda r: r["t"])
    kills: dict[str, list[float]] = defaultdict(list)
    seen = {(r["name"], r["t"]) for r in told if r["what"] == "killed worker" and r.get("how") == "child"}
    downs = [r["t"] for r in told if r["what"] == "killed coordinator"]
    for record in told:
        if record["what"] == "killed worker":
            kills[record["name"]].append(record["t"])
    moves = [r for r in told if r["what"] == "moved"]
    regrants = _regrants(moves, kills, downs, seen)
    grants, adopted, held = _restarts(moves, kills, downs, _begun(told))
    run, twice = _steps(told)
    times = {r["job"]: r["t"] for r in reversed(told) if r["what"] == "invoked"}
    waits = [r["t"] - times[r["job"]] for r in told if r["what"] == "over" and r["job"] in times]
    return {
        **{name: spread(found) for name, found in regrants.items()},
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
    moves: Sequence[Mapping[str, Any]], kills: Mapping[str, Sequence[float]], downs: Sequence[float], seen: Set[tuple[str, float]]
) -> dict[str, list[float]]:
    """From the kill of a worker to the next grant of each job that it had.  And while the coordinator lived: until the broker takes
    the job back, of kills with a witness (its parent, which lives on) and without one; with one, to the next grant, where that is to
    another worker: it had not to wait for the successor of the dead one.

    seen: the kills with a witness, (name, t).
    """
    found: dict[str, list[float]] = {
        name: [] for name in ("kill_to_regrant_s", "witnessed_to_noticed_s", "unwitnessed_to_noticed_s", "witnessed_to_regrant_elsewhere_s")
    }
    granted: dict[str, tuple[str, float]] = {}  # by job: which worker has it, since when
    lost: dict[str, tuple[str, float]] = {}  # by job: which worker had it, and when that was killed
    for move in moves:
        job, now = move["job"], move["t"]
        name, since = granted.pop(job, ("", 0.0))
        struck = kills.get(name, ())
        before = bisect_right(struck, now)
        if move["cause"] == "retried":
            if before and since <= (at := struck[before - 1]) and now - at < REACH and move["why"].startswith(f"{name} "):
                lost[job] = name, at
                if bisect_right(downs, now) == bisect_right(downs, at):
                    found["witnessed_to_noticed_s" if (name, at) in seen else "unwitnessed_to_noticed_s"].append(now - at)
            continue
        if move["cause"] in ("assigned", "adopted"):
            granted[job] = move["why"].split(" ")[0], now
            if job in lost:
                dead, at = lost[job]
                found["kill_to_regrant_s"].append(now - at)
                if (dead, at) in seen and granted[job][0] != dead and bisect_right(downs, now) == bisect_right(downs, at):
                    found["witnessed_to_regrant_elsewhere_s"].append(now - at)
        lost.pop(job, None)
    return found


def _restarts(
    moves: Sequence[Mapping[str, Any]],
    kills: Mapping[str, Sequence[float]],
    downs: Sequence[float],
    begun: Mapping[tuple[str, str], Sequence[float]],
) -> tuple[list[float], int, int]:
    """After each kill of the coordinator: seconds to its first new grant; how much running work it left with its workers, of how much.

    What was on its way to a worker had not begun, and does not count; nor does that whose worker was killed as well, before the new
    coordinator had met it.  begun: by job and stage, when it was stepped; nothing: nobody wrote that down, and all that was granted
    counts.
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
            pending |= {
                job: (at, had, since) for job, (at, had, since) in granted.items() if not begun or _within(begun, job, at, since, down)
            }
            granted = {}
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


def _begun(told: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in told:
        if record["what"] == "stepped":
            found[record["job"], record["by"]].append(record["t"])
    return found


def _within(begun: Mapping[tuple[str, str], Sequence[float]], job: str, stage: str, since: float, until: float) -> bool:
    times = begun.get((job, stage), ())
    return bisect_right(times, until) > bisect_left(times, since)


def _steps(told: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """All steps that ran, and those of them that had run before."""
    ran: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for record in told:
        if record["what"] == "stepped":
            ran[record["job"], record["by"]][record["step"]] += 1
    every = sum(steps.total() for steps in ran.values())
    return every, every - sum(len(steps) for steps in ran.values())

"""The proof, from the history alone: whatever was accepted has ended, once, and as it should.  Pure: records in, a verdict out.

What must hold of each request:
  every one that was asked for ended                                     else lost
  all who ever looked saw one ending, and one result                     else twice
  every picture, early ones too, is that of the undisturbed stages       else different
  only what was bound to fail failed, only what was cancelled was        else innocents_failed
    cancelled, only what had a deadline expired, and not before it
  what was bound to fail failed, and as it should                        else misjudged
  one that kills its workers killed at most four                         poison_kills_max
    (of which anybody could know: not those where chaos killed that very process meanwhile, or its parent before it was heard; those
    are told as poison_unwitnessed)
And no coordinator and no client ended of itself                         else fell
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

POISON_KILLS = 4
NAMED = 20
"""Faults of one kind that are told in words; all are counted."""
EARLY = 0.1
"""Seconds by which two processes' readings of the clock, taken around a deadline, may seem to disagree."""

BOUND = {"poison": "poison", "raise": "error", "bad": "request"}
"""By fate, the cause with which such a request must fail."""
DONE = {
    "killed worker": "worker_kills",
    "killed coordinator": "coordinator_kills",
    "killed client": "client_kills",
    "paused": "pauses",
    "partitioned": "partitions",
    "deafened": "data_partitions",
    "threw": "strangers",
}
"""What chaos says that it has done, and the figure that counts it."""
RIGHT = ("lost", "twice", "different", "innocents_failed", "misjudged", "fell", "unasked", "torn")
"""The figures that must be 0."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """figures: by name; faults: what is wrong, in words."""

    figures: Mapping[str, int]
    faults: tuple[str, ...]

    @property
    def right(self) -> bool:
        f = self.figures
        return f["requests"] > 0 and not any(f[name] for name in RIGHT) and f["poison_kills_max"] <= POISON_KILLS


@dataclass(slots=True)
class Asked:
    """What the history says of one job."""

    planned: dict[str, Any] = field(default_factory=dict)
    invoked: float | None = None
    accepted: bool = False
    cancelled: bool = False
    endings: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict)  # each that differs: when first seen
    fetched: set[str] = field(default_factory=set)
    previews: set[tuple[str, str]] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    poisoned: list[Mapping[str, Any]] = field(default_factory=list)
    unwitnessed: int = 0

    @property
    def kills(self) -> int:
        return len(self.poisoned) - self.unwitnessed


def check(records: Iterable[Mapping[str, Any]]) -> Verdict:
    """records: in any order, as `history.read` gives them; they are gone through once."""
    jobs: dict[str, Asked] = {}
    done: Counter[str] = Counter()
    fell: list[str] = []
    struck: dict[int, float] = {}  # by chaos: when, at the latest
    wanted = torn = 0
    for record in records:
        what = record["what"]
        if what == "torn":
            torn += 1
        elif what == "began":
            wanted = record["requests"]
        elif what in DONE:
            done[DONE[what]] += 1
            struck |= {pid: max(record["t"], struck.get(pid, 0.0)) for pid in record.get("pids", ())}
        elif what == "fell" and record["name"].split("-")[0] in ("coordinator", "client"):
            fell.append(f"{record['name']}: {record['why']}")
        elif what in SAID:
            SAID[what](jobs.setdefault(record["job"], Asked()), record)
    jobs = {job: asked for job, asked in jobs.items() if asked.planned}
    for asked in jobs.values():
        asked.unwitnessed = sum(max(struck.get(r["pid"], 0.0), struck.get(r["parent"], 0.0)) >= r["t"] for r in asked.poisoned)
    faults: dict[str, list[str]] = {name: [] for name in (*RIGHT, "poison")}
    for job, asked in sorted(jobs.items()):
        for kind, words in _wrong(asked):
            faults[kind].append(f"{job}: {words}")
    faults["fell"] += fell
    faults["unasked"] += [f"{wanted - len(jobs)} requests were never made"] * (wanted > len(jobs))
    faults["torn"] += [f"{torn} lines of the history cannot be read"] * bool(torn)
    ended = Counter(next(iter(asked.endings.values()))[1]["how"] for asked in jobs.values() if asked.endings)
    figures = {
        "requests": len(jobs),
        "accepted": sum(asked.accepted or bool(asked.endings) for asked in jobs.values()),
        **{how: ended[how] for how in ("finished", "failed", "cancelled")},
        **{name: done[name] for name in DONE.values()},
        **{name: len(faults[name]) for name in RIGHT},
        "unasked": max(0, wanted - len(jobs)),
        "torn": torn,
        "poison": sum(asked.planned["fate"] == "poison" for asked in jobs.values()),
        "poison_kills_max": max((asked.kills for asked in jobs.values()), default=0),
        "poison_unwitnessed": sum(asked.unwitnessed for asked in jobs.values()),
    }
    return Verdict(figures, tuple(f"{kind}: {words}" for kind, all_of in faults.items() for words in all_of[:NAMED]))


def _wrong(asked: Asked) -> Iterable[tuple[str, str]]:
    """What is wrong with one request: the kind, and in words."""
    if asked.kills > POISON_KILLS:
        yield "poison", f"killed {asked.kills} workers"
    if asked.refused:
        yield "lost", f"refused: {asked.refused[0]}"
    elif not asked.endings:
        yield "lost", "accepted, and never ended" if asked.accepted else "asked for, and never answered"
    if len(asked.endings) > 1:
        yield "twice", f"ended as {' and as '.join(asked.endings)}"
    if len(asked.fetched) > 1:
        yield "twice", f"{len(asked.fetched)} different results were fetched"
    yield from _drawn(asked)
    for first, ending in asked.endings.values():
        yield from _judged(asked, first, ending)


def _drawn(asked: Asked) -> Iterable[tuple[str, str]]:
    """Are the pictures those of the undisturbed stages?"""
    expected = asked.planned["pictures"]
    for fetched in asked.fetched:
        came = json.loads(fetched)
        if not expected:
            yield "different", "it cannot be checked: nobody said what it must give"
        elif asked.planned["whole"]:
            if came != expected:
                yield "different", f"its pictures are {_apart(came, expected)}"
        elif len(came) != 1 or not came.items() <= expected.items():
            yield "different", f"its picture is {_apart(came, expected)}"
    for stage, picture in asked.previews:
        if expected and expected.get(stage) != picture:
            yield "different", f"an early picture of {stage} is another"


def _apart(came: Mapping[str, str], expected: Mapping[str, str]) -> str:
    others = [stage for stage in came if came[stage] != expected.get(stage)]
    return f"another, of {', '.join(others)}" if others else f"of {', '.join(came) or 'nothing'}, and not of {', '.join(expected)}"


def _judged(asked: Asked, first: float, ending: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Did it end as it may?  first: when this ending was first seen."""
    fate, how, cause = asked.planned["fate"], ending["how"], ending.get("cause", "")
    deadline = asked.planned["deadline"]
    if how == "finished":
        if fate in BOUND:
            yield "misjudged", f"finished, and was to fail: {fate}"
        elif not asked.fetched:
            yield "lost", "finished, and its result was never fetched"
    elif how == "cancelled":
        if not asked.cancelled:
            yield "innocents_failed", "cancelled, and nobody had asked for that"
    elif cause == "expired":
        if deadline is None:
            yield "innocents_failed", "expired, and had no deadline"
        elif asked.invoked is not None and first - asked.invoked < deadline - EARLY:
            yield "innocents_failed", f"expired after {first - asked.invoked:.2f} s; its deadline was {deadline:g} s"
    elif fate not in BOUND:
        yield "innocents_failed", f"failed: {cause}: {ending.get('error', '')}"
    elif cause != BOUND[fate]:
        yield "misjudged", f"failed as {cause}, and was to fail as {BOUND[fate]}: {ending.get('error', '')}"


# ---- what each line says of its job


def _planned(asked: Asked, record: Mapping[str, Any]) -> None:
    asked.planned = dict(record)


def _invoked(asked: Asked, record: Mapping[str, Any]) -> None:
    asked.invoked = min(asked.invoked or record["t"], record["t"])


def _accepted(asked: Asked, record: Mapping[str, Any]) -> None:
    asked.accepted = True


def _cancelled(asked: Asked, record: Mapping[str, Any]) -> None:
    asked.cancelled = True


def _ended(asked: Asked, record: Mapping[str, Any]) -> None:
    key = " ".join(str(record[name]) for name in ("how", "cause", "digest") if record.get(name))
    known = asked.endings.get(key)
    if known is None or record["t"] < known[0]:
        asked.endings[key] = (record["t"], dict(record))


def _fetched(asked: Asked, record: Mapping[str, Any]) -> None:
    asked.fetched.add(json.dumps(record["pictures"], sort_keys=True))


def _previewed(asked: Asked, record: Mapping[str, Any]) -> None:
    asked.previews.add((record["stage"], record["picture"]))


def _refused(asked: Asked, record: Mapping[str, Any]) -> None:
    asked.refused.append(record["error"])


def _poisoned(asked: Asked, record: Mapping[str, Any]) -> None:
    asked.poisoned.append(record)


SAID = {
    "planned": _planned,
    "invoked": _invoked,
    "accepted": _accepted,
    "thought better": _cancelled,
    "ended": _ended,
    "fetched": _fetched,
    "previewed": _previewed,
    "refused": _refused,
    "poisoned": _poisoned,
}

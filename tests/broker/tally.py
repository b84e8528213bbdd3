"""Many worlds, and what happened in them: `python -m tests.broker.world --seeds 0 50000 --json`.

A violation is printed when it is found, with the seed that replays it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

from ifmesh.protocol import Failed
from tests.broker.world import World

CHUNK = 25
"""Seeds of one task of a process."""

MOST = ("poison_kills_max",)
"""Figures of which the greatest counts; the others add up."""

Tally = dict[str, float]


def counted(world: World) -> Tally:
    """What happened in a world that has run.  partitions: cuts of any kind, between any two.

    steps_*: of worlds with checkpoints, and without.
    """
    happened, rows = world.weather.happened, world.hub.disk.rows.values()
    failed = [row for row in rows if isinstance(row.ending, Failed)]
    poison = {job: kills for job, kills in world.proved.items() if job.startswith("poison")}
    kind = "with" if world.every and world.policy.checkpoints else "without"
    return {
        "worlds": 1,
        "requests": len(rows),
        "finished": sum(type(row.ending).__name__ == "Finished" for row in rows),
        "cancelled": sum(type(row.ending).__name__ == "Cancelled" for row in rows),
        "expired": sum(row.ending.cause == "expired" for row in failed if isinstance(row.ending, Failed)),
        "failed_otherwise": sum(row.ending.cause != "expired" for row in failed if isinstance(row.ending, Failed)),
        "innocents_failed": world.innocents,
        "worker_kills": world.kills,
        "coordinator_crashes": world.hub.crashes,
        "pauses": happened["paused"] + happened["coordinator_paused"],
        "hangs": happened["hung"],
        "partitions": sum(happened[cut] for cut in ("cut", "swizzled", "hole", "isolated", "severed")),
        "client_crashes": happened["vanished"],
        "lost_messages": world.links.lost,
        "duplicated_messages": world.links.doubled,
        "corrupted_bags": world.links.spoilt,
        "unsynced_writes_lost": world.hub.unsynced,
        "relayed_bags": world.relays,
        "resumed_stages": world.resumed,
        "worlds_in_swap": bool(world.needs),
        "loads": world.loads.total(),
        "loads_denied_by_the_host": world.denied,
        "virtual_hours": world.now / 3600,
        "turns": world.events,
        "steps": world.steps,
        "steps_twice": world.steps_twice,
        f"steps_{kind}_checkpoints": world.steps,
        f"steps_twice_{kind}_checkpoints": world.steps_twice,
        "poison_kills_max": max((kills - world.hub.disk.rows[job].given_back for job, kills in poison.items()), default=0),
        "violations": 0,
    }


def added(one: Mapping[str, float], other: Mapping[str, float]) -> Tally:
    return {
        name: max(one.get(name, 0), other.get(name, 0)) if name in MOST else one.get(name, 0) + other.get(name, 0)
        for name in dict.fromkeys((*one, *other))
    }


def ran(seeds: range, every: int | None = None) -> tuple[Tally, list[str]]:
    """The figures of these worlds, and what was violated in which."""
    sum_: Tally = {}
    wrong: list[str] = []
    for seed in seeds:
        world = World(seed, every=every)
        try:
            world.run()
        except Exception as error:
            wrong.append(f"seed {seed}: {type(error).__name__}: {error}")
            sum_ = added(sum_, {"worlds": 1, "violations": 1, "innocents_failed": world.innocents})
        else:
            sum_ = added(sum_, counted(world))
    return sum_, wrong


def runs(first: int, last: int, jobs: int, every: int | None) -> Iterator[tuple[int, Tally, list[str]]]:
    """So many seeds are through, their figures, and what was violated; again and again, until all are."""
    chunks = (range(start, min(start + CHUNK, last)) for start in range(first, last, CHUNK))
    if jobs == 1:
        for chunk in chunks:
            yield (len(chunk), *ran(chunk, every))
        return
    with ProcessPoolExecutor(jobs) as pool:
        while some := list(islice(chunks, 4 * jobs)):
            for chunk, found in zip(some, pool.map(ran, some, [every] * len(some)), strict=True):
                yield (len(chunk), *found)


def told(tally: Mapping[str, float]) -> str:
    """For people."""
    lines = [f"{name.replace('_', ' '):32} {value:14,.1f}" if value % 1 else f"{name.replace('_', ' '):32} {value:14,.0f}"
             for name, value in tally.items()]  # fmt: skip
    for name in ("steps_twice", "steps_twice_with_checkpoints", "steps_twice_without_checkpoints"):
        steps = tally.get(name.replace("_twice", ""), 0)
        if steps:
            lines.append(f"{name.replace('_', ' ') + ', of all':32} {100 * tally[name] / steps:13.2f}%")
    return "\n".join(lines)


def main() -> int:
    """0: nothing was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.broker.world", description="Run many simulated meshes, or replay one.")
    parser.add_argument("seed", type=int, nargs="?", help="Replay this one, and tell everything that happens in it.")
    parser.add_argument("--seeds", type=int, nargs=2, metavar=("A", "B"), help="Run the worlds from A to B, B not included.")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="Processes.")
    parser.add_argument("--every", type=int, metavar="K", help="Checkpoints after each K steps, 0: none; without it, as the seed has it.")
    parser.add_argument("--json", action="store_true", help="Print the figures as JSON.")
    parser.add_argument("--progress", type=Path, metavar="FILE", help="Write the figures there, too, again and again.")
    asked = parser.parse_args()
    if asked.seeds is None:
        if asked.seed is None:
            parser.error("a seed, or --seeds A B")
        print(told(counted(World(asked.seed, trace=print, every=asked.every).run())))
        return 0
    first, last = asked.seeds
    began, through, tally = time.monotonic(), 0, dict[str, float]()
    violations: list[str] = []
    for seeds, more, wrong in runs(first, last, max(1, asked.jobs), asked.every):
        through, tally = through + seeds, added(tally, more)
        violations += wrong
        for line in wrong:
            print(line, file=sys.stderr, flush=True)
        report = {"first_seed": first, "seeds": through, "of": last - first, "seconds": round(time.monotonic() - began, 1)} | tally
        if asked.progress is not None:
            part = asked.progress.with_suffix(".part")
            part.write_text(json.dumps(report | {"wrong": violations}, indent=1) + "\n")
            part.replace(asked.progress)
        if sys.stderr.isatty():
            print(f"\r{through} of {last - first} seeds, {len(violations)} violations", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(json.dumps(report) if asked.json else told(report))
    return bool(violations)

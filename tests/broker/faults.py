"""The minds, broken on purpose, one line at a time: does a story differ, or a world fail?

`python -m tests.broker.faults` tries every fault of `fault_list` and prints by what each was noticed, and the totals.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ifmesh
from ifmesh import caller
from tests.broker.fault_list import FAULTS
from tests.broker.script import play
from tests.broker.world import Minds, World

SOURCES = Path(ifmesh.__file__).parent
STORIES = sorted((Path(__file__).parent / "stories").glob("*.txt"))
BROKER = (
    "waiting",
    "roster",
    "job",
    "uploads",
    "ledger",
    "dispatch",
    "phases",
    "desk",
    "vigil",
    "crew",
    "survey",
    "broker",
)  # what the coordinator's mind is made of, in order of import
SEEDS = 200
"""Worlds in one of which a fault must show, if no story differs."""


def _executed(name: str, source: str) -> ModuleType:
    module = ModuleType(f"ifmesh.{name}")
    sys.modules[module.__name__] = module  # dataclasses look themselves up, and the next layer imports it
    exec(compile(source, f"{name}.py, broken", "exec"), module.__dict__)
    return module


def broken(name: str, old: str, new: str) -> Minds:
    """The minds with that one change.  The values that they exchange stay the same types."""
    texts = {n: (SOURCES / f"{n}.py").read_text() for n in {*BROKER, name}}
    assert texts[name].count(old) == 1, f"{old!r} is {texts[name].count(old)} times in {name}.py: write this fault anew"
    texts[name] = texts[name].replace(old, new)
    before = dict(sys.modules)
    try:
        if name == "keeper":
            return Minds(keeper=_executed(name, texts[name]).Keeper)
        if name == "caller":
            module: Any = _executed(name, texts[name])
            for command in ("Send", "Tell", "Upload", "Rebuild"):
                setattr(module, command, getattr(caller, command))
            return Minds(caller=module.Caller)
        made = [_executed(n, texts[n]) for n in BROKER]
        return Minds(broker=made[-1].Broker)
    finally:
        for n in (*BROKER, "keeper", "caller"):
            sys.modules[f"ifmesh.{n}"] = before[f"ifmesh.{n}"]


def differing_story(minds: Minds) -> str:
    for story in STORIES:
        text = story.read_text()
        try:
            if play(text, minds) != text:
                return story.stem
        except Exception:
            return story.stem
    return ""


def failing_seed(minds: Minds, seeds: int = SEEDS) -> int | None:
    for seed in range(seeds):
        try:
            World(seed, minds).run()
        except Exception:
            return seed
    return None


def main() -> int:
    """0: all were noticed."""
    by_story, by_seed, missed = 0, [], []
    for fault, change in FAULTS.items():
        minds = broken(*change)
        story = differing_story(minds)
        seed = None if story else failing_seed(minds)
        by_story += bool(story)
        by_seed += [] if seed is None else [seed]
        missed += [fault] if not story and seed is None else []
        noticed = f"story {story}" if story else "NOBODY" if seed is None else f"seed {seed}"
        print(f"{change[0]:10} {fault:60} {noticed}", flush=True)
    latest = max(by_seed, default=-1) + 1
    print(
        f"{len(FAULTS)} faults: {by_story} noticed by a story, {len(by_seed)} by one of the first {latest} worlds, {len(missed)} by nobody"
    )
    for fault in missed:
        print(f"nobody notices that {fault}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())

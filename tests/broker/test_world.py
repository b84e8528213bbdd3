"""Safety and liveness over many seeds: hours of deaths, partitions and restarts in a minute."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from tests.broker.weather import Weather
from tests.broker.world import World

SEEDS, CHUNK, LOOKED_AT = 400, 25, 40


@cache
def ended(seed: int) -> World:
    """For the tests that look at the same one."""
    return World(seed).run()


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_everything_ends_once_and_right(first: int) -> None:
    for seed in range(first, first + CHUNK):
        try:
            ended(seed) if seed < LOOKED_AT else World(seed).run()
        except Exception as wrong:
            wrong.add_note(f"seed {seed}: replay it with: python -m tests.broker.world {seed}")
            raise


def test_the_same_seed_is_the_same_world() -> None:
    stories: list[list[str]] = [[], []]
    for lines in stories:
        World(7, trace=lines.append).run()
    assert stories[0] == stories[1]


def test_all_kinds_of_weather_happen() -> None:
    """A world without storms would prove nothing."""
    worlds = [ended(seed) for seed in range(LOOKED_AT)]
    happened: Counter[str] = sum((w.weather.happened for w in worlds), Counter())
    assert min(happened[kind] for kind in Weather.kinds()) >= 10, happened
    assert sum(w.hub.crashes for w in worlds) >= 20
    assert sum(w.refused for w in worlds) >= 20
    assert sum(w.links.lost for w in worlds) >= 1000
    assert sum(w.uploads for w in worlds) >= 200
    assert sum(w.onwards for w in worlds) >= 50, "jobs that went on from what another has kept"
    assert sum(w.resumed for w in worlds) >= 5, "stages that went on from a checkpoint"
    assert sum(w.relays for w in worlds) >= 10, "bags by way of the coordinator"
    assert sum(w.previews for w in worlds) >= 50
    assert sum(w.loose for w in worlds) >= 5, "tied jobs that were cut loose"
    assert sum(len(w.hub.disk.rotten) for w in worlds) >= 5, "uploads that the disk has lost"

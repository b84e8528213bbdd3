"""What a death costs with checkpoints, and without: steps that are done again, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from ifmesh.protocol import Finished
from ifmesh.request import Request
from tests.broker.patron import Wish
from tests.broker.world import World


def disturbed(seed: int, every: int) -> tuple[World, int]:
    """Some jobs, and now and then a kill of somebody who works and holds nothing for others.  And how many kills."""
    world = World(seed, rate=inf)  # on a slow link a checkpoint is still on its way when its maker dies
    world.length = 1
    world.every, world.mixed, world.checkpoint_bytes = every, False, 1 << 20
    world.policy = replace(world.policy, checkpoints=every > 0)
    for service in world.services:
        service.pace = 0.2  # far slower than any message
    kills = 0

    def kill() -> None:
        nonlocal kills
        busy = [s for s in world.services if s.life and s.task and s.step and not (s.task.preview or s.keeper.outbox)]
        if busy:
            kills += 1
            world.rng.choice(busy).die("killed", "signal 9")

    for n in range(200):
        world.at(1.0 + 0.5 * n, kill)
    wishes = [Wish(f"fox-{n}", Request("fox:nowhere", n)) for n in range(6)]
    world.calm(*wishes, limit=140.0)
    assert all(isinstance(wish.ending, Finished) for wish in wishes)
    return world, kills


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_death_costs_no_more_steps_than_lie_between_two_checkpoints(every: int) -> None:
    resumed = killed = 0
    for seed in range(6):
        world, kills = disturbed(seed, every)
        assert world.steps_twice <= kills * every, f"seed {seed}: {kills} deaths, and {world.steps_twice} steps were done again"
        resumed, killed = resumed + world.resumed, killed + kills
    assert killed >= 30
    assert resumed >= 10


def test_without_them_it_costs_more() -> None:
    twice = {every: sum(disturbed(seed, every)[0].steps_twice for seed in range(4)) for every in (0, 1)}
    assert twice[0] > 2 * twice[1], twice

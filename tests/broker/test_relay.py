"""A cable between two workers is cut, and only that one: what they have for each other goes by way of the coordinator, or to another.

Row 43 of the failure matrix, in virtual time.
"""

from __future__ import annotations

from math import inf

import pytest

from ifmesh.cascade import IF
from ifmesh.protocol import Finished
from ifmesh.request import Request
from tests.broker.patron import Wish
from tests.broker.world import World

BEAT = 1.2
"""Seconds from one look at a worker's held set to the next, at most: the beat and its way."""


def foxes(world: World, count: int) -> list[Wish]:
    return [Wish(f"fox-{n}", Request("fox:nowhere", n)) for n in range(count)]


def slow(world: World) -> float:
    """Seconds of the stages themselves, for one job on the slowest of each."""
    return sum(max(s.pace for s in world.services if s.stage == spec.name) * 9 * world.length for spec in IF.stages)


def severed(seed: int, back: bool) -> World:
    """No worker of one stage reaches a worker of the next."""
    world = World(seed)
    order = [spec.name for spec in IF.stages]
    for one in world.services:
        for other in world.services:
            if order.index(other.stage) == order.index(one.stage) + 1:
                world.links.hole(one.name, other.name, inf, back)
    return world


@pytest.mark.parametrize("back", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("seed", range(10))
def test_a_cut_between_two_workers_is_gone_round(seed: int, back: bool) -> None:
    """Each hand-over costs the tries on the straight way and no more; nobody else is asked for it, and nothing runs twice."""
    world = severed(seed, back)
    tries = world.policy.transfers * (world.policy.transfer + BEAT)
    (wish,) = foxes(world, 1)
    world.calm(wish, limit=(len(IF.stages) - 1) * tries + slow(world) + 2.0)
    assert isinstance(wish.ending, Finished)
    assert world.relays == len(IF.stages) - 1
    assert [run.runs for run in wish.ending.runs] == [1] * len(IF.stages)


def gone_round(seed: int, wish: Wish) -> World:
    """One worker a stage, none of which reaches the next, as a first job has found out."""
    world = severed(seed, True)
    world.services = [next(s for s in world.services if s.stage == spec.name) for spec in IF.stages]
    tries = world.policy.transfers * (world.policy.transfer + BEAT)
    return world.calm(wish, limit=(len(IF.stages) - 1) * tries + slow(world) + 2.0)


def goes_at_once(world: World, wish: Wish) -> None:
    since = world.now
    world.patrons[0].submit(wish)
    world.run_until(since + slow(world) + 1.0)
    assert isinstance(wish.ending, Finished), f"it took more than {world.now - since:.1f} s"


@pytest.mark.parametrize("seed", range(10))
def test_the_next_ones_do_not_wait(seed: int) -> None:
    """What had to be relayed once between two workers is relayed at once from then on."""
    first, second = foxes(World(seed), 2)
    world = gone_round(seed, first)
    goes_at_once(world, second)
    assert world.relays == 2 * (len(IF.stages) - 1)


@pytest.mark.parametrize("seed", range(10))
def test_successors_do_not_wait_either(seed: int) -> None:
    """A process that is started anew stands where its forerunner stood."""
    first, second = foxes(World(seed), 2)
    world = gone_round(seed, first)
    for service in world.services:
        service.die("killed", "by the test")
    world.until(world.now + 25.0, world.all_here)
    goes_at_once(world, second)
    assert world.relays == 2 * (len(IF.stages) - 1)


@pytest.mark.parametrize("seed", range(10))
def test_a_way_that_is_whole_again_is_taken_again(seed: int) -> None:
    """After a while, and nothing is lost by the try."""
    first, second = foxes(World(seed), 2)
    world = gone_round(seed, first)
    world.links.mend()
    world.until(world.now + world.policy.detour)
    goes_at_once(world, second)
    assert world.relays == len(IF.stages) - 1


@pytest.mark.parametrize("seed", range(10))
def test_whom_nobody_reaches_is_left_for_another(seed: int) -> None:
    """Not even the coordinator: once for each worker that is cut off so, and never twice."""
    world = severed(seed, True)
    order = [spec.name for spec in IF.stages]
    away = [others[0] for stage in order[1:] if len(others := [s for s in world.services if s.stage == stage]) > 1]
    for service in away:
        world.links.hole("hub", service.name, inf, back=False)
    (wish,) = foxes(world, 1)
    tries = (world.policy.transfers + 1) * (world.policy.transfer + BEAT)
    world.calm(wish, limit=2 * (len(IF.stages) - 1) * tries + slow(world) + 2.0)
    assert isinstance(wish.ending, Finished)
    assert not {run.worker for run in wish.ending.runs} & {service.name for service in away}
    assert max(run.runs for run in wish.ending.runs) <= 2

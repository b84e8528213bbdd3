"""Links on which each bag takes longer than `transfer`: all comes, and nothing is sent twice for that.  Row 46, in virtual time."""

from __future__ import annotations

import pytest

from ifmesh.cascade import IF
from ifmesh.protocol import Finished
from ifmesh.request import Request
from tests.broker.patron import Wish
from tests.broker.world import World


@pytest.mark.parametrize("seed", range(10))
def test_each_bag_is_sent_once(seed: int) -> None:
    """20 bytes at 2 bytes a second: two or more times `transfer`, and workers that have a second bag on its way besides."""
    world = World(seed, rate=2.0, every=0)
    foxes = [Wish(f"fox-{n}", Request("fox:nowhere", n)) for n in range(6)]
    world.calm(*foxes, limit=600.0)
    assert all(isinstance(fox.ending, Finished) for fox in foxes)
    again = {bag: times for bag, times in world.links.poured.items() if times > 1}
    assert not again, again
    assert sum(kind in ("bag", "result") for kind, _, _ in world.links.poured) == (len(IF.stages) + 1) * len(foxes)
    assert world.relays == 0
    assert {run.runs for fox in foxes if isinstance(fox.ending, Finished) for run in fox.ending.runs} == {1}


@pytest.mark.parametrize("seed", range(2))
def test_a_link_that_is_slower_than_told_carries_it_in_the_end(seed: int) -> None:
    """Eight times slower: the first grants are given up too early, and each has more time than the one before."""
    world = World(seed, rate=2.0, every=0)
    world.links.rate = 0.25
    fox = Wish("fox-0", Request("fox:nowhere", 0, last_stage="stage_one"))
    world.calm(fox, limit=3000.0)
    assert isinstance(fox.ending, Finished)
    assert max(run.runs for run in fox.ending.runs) > 1

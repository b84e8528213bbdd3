"""When the requests of an open loop are due."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest

from ifmesh.bench.schedules import dealt, due, shared


def test_a_constant_rate_is_even_and_ends_in_time() -> None:
    assert due("constant", 4.0, 1.0) == (0.0, 0.25, 0.5, 0.75)
    assert due("constant", 3.0, 0.1) == (0.0,)
    assert due("constant", 0.1, 30.0) == (0.0, 10.0, 20.0)


def test_poisson_has_its_rate_its_spread_and_its_seed() -> None:
    found = due("poisson", 50.0, 200.0, seed=3)
    gaps = [b - a for a, b in pairwise(found)]
    assert len(found) == pytest.approx(10_000, rel=0.05)
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.05)  # of an exponential, the mean
    assert found == due("poisson", 50.0, 200.0, seed=3) != due("poisson", 50.0, 200.0, seed=4)
    assert list(found) == sorted(found)
    assert found[-1] < 200.0


def test_several_clients_ask_together_what_one_would() -> None:
    parts = shared("constant", 4.0, 2.0, 3)
    assert sorted(at for part in parts for at in part) == list(due("constant", 4.0, 2.0))
    assert len({part[0] for part in parts}) == 3, "not all at once"
    random = shared("poisson", 50.0, 100.0, 4)
    assert sum(map(len, random)) == pytest.approx(5_000, rel=0.06)
    assert len(set(random)) == 4, "each has its own"


def test_the_in_flight_are_dealt_evenly() -> None:
    assert dealt(8, 3) == (3, 3, 2)
    assert dealt(2, 4) == (1, 1, 0, 0)

"""Safety and liveness over many seeds: hours of deaths, partitions and restarts in a minute."""

from __future__ import annotations

import pytest

from tests.broker.world import World

SEEDS, CHUNK = 1000, 25


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_everything_ends_once_and_right(first: int) -> None:
    for seed in range(first, first + CHUNK):
        try:
            World(seed).run()
        except Exception as wrong:
            wrong.add_note(f"seed {seed}: replay it with: python -m tests.broker.world {seed}")
            raise

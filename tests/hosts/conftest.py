"""Hosts for each test that asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.hosts import kit

why_not = cache(kit.missing)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[kit.Hosts]:
    """A switch, to which hosts are added; skipped with the reason where there can be none."""
    if why_not():
        pytest.skip(why_not())
    with kit.Hosts(tmp_path / "hosts") as made:
        yield made

"""Seeds for the scenes, figures from the processes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.matrix.gates import Gates
from tests.mesh.conftest import mesh

__all__ = ["mesh"]

Figure = Callable[[str, float], None]

ROW = re.compile(r"test_row_(\d\d)_")


@pytest.fixture(params=range(3))
def seed(request: pytest.FixtureRequest) -> int:
    """Of the small delays in a scene: what holds by luck does not hold three times."""
    number: int = request.param
    return number


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(tmp_path / "gates")


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Note a duration (seconds) that was really measured; all of them are shown at the end, and nothing is asserted of them."""
    return record_property


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured, and how much of the matrix ran."""
    reports = [r for outcome in ("passed", "failed") for r in terminalreporter.stats.get(outcome, []) if r.when == "call"]
    ran = [r for r in reports if "tests/matrix" in r.nodeid or "tests/hosts" in r.nodeid]
    for report in ran:
        for what, seconds in report.user_properties:
            terminalreporter.write_line(f"{seconds:8.3f} s  {what}  ({report.nodeid.partition('::')[2]})")
    rows = {found[1] for r in ran if (found := ROW.search(r.nodeid))}
    terminalreporter.write_line(f"failure matrix: {len(ran)} tests of {len(rows)} rows ran")

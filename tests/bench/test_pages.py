"""The page of a report: whole, by itself, and safe to open."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from ifmesh.bench import plots
from ifmesh.bench.head import head
from ifmesh.bench.load import Wanted
from ifmesh.bench.merge import Goal, figures, hops, repeated
from ifmesh.bench.page import page
from ifmesh.bench.sweep import finished, point
from ifmesh.bench.tables import number, share, size, sure, tables
from tests.bench.test_merge import SEATS, record, steady


def load() -> dict[str, Any]:
    run = figures([steady(0), steady(1)], SEATS, 2.0, 12.0, Goal(95, 2.0))
    alone = {"requests": 2, "latency_ms": {"p50_ms": 1500.0}, "hops": hops([record(0, 1)])}
    asked = {"in_flight": 8, "seconds": Wanted().seconds}
    return {
        **head("load", None),
        "asked": asked,
        "figures": repeated([run, run]),
        "runs": [run, run],
        "unloaded": alone,
        "latency_ms_by_percent": [15.0 * percent for percent in range(101)],
        "interrupted": True,
    }


def mesh() -> dict[str, Any]:
    row = {"p50_ms": 3.0, "p95_ms": 4.0, "requests_per_s": 300.0, "requests": 60}
    by = {"ipc": {"1": row, "16": row}}
    return {
        **head("mesh", None),
        "asked": {"in_flight": [1, 16]},
        **dict.fromkeys(("floor", "mesh", "chain", "guarded"), by),
        "durable": {"ipc": {"1": row}},
        "ratios": {"ipc": {"1": {"p50": 1.4, "p95": 1.2, "requests_per_s": 0.7}}},
        "durable_write_ms": {"4096": {"p50_ms": 4.0, "p95_ms": 5.0}},
        "durable_writes": {"ipc": 4.5},
        "curve_ms": {"1": 2.5},
        "skipped": {"tcp": "no <namespace> here"},
        "interrupted": False,
    }


def sweep() -> dict[str, Any]:
    points = [point(n, load()) for n in (1, 2, 4)]
    return {**head("sweep", None), **finished("copies of stage_one", points), "interrupted": False}


def peers() -> dict[str, Any]:
    columns = [("p50_ms", "p50, ms"), ("requests_per_s", "requests/s")]
    rows = [{"name": "ifmesh", "p50_ms": 5.0, "requests_per_s": 200.0}, {"name": "ray", "p50_ms": 15.0, "requests_per_s": None}]
    return {**head("peers", None), "columns": columns, "rows": rows, "skipped": {"mosec": "not installed"}, "interrupted": False}


KINDS = [load, mesh, sweep, peers]


class Seen(HTMLParser):
    """Every tag is closed, nothing is fetched, nothing runs."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "img")
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith("#")
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("make", KINDS)
def test_a_page_needs_nothing_else(make: Any) -> None:
    report = make()
    seen = Seen()
    seen.feed(page(report))
    assert seen.open == []
    text = " ".join(seen.text)
    for table in tables(report):
        for cell in (cell for row in table.rows for cell in row):
            assert cell in text
    assert report["command"] in text
    assert report["versions"]["libzmq"] in text


@pytest.mark.parametrize("make", KINDS)
def test_plots_are_the_same_for_the_same_report(make: Any) -> None:
    pytest.importorskip("matplotlib")
    first, lacking = plots.plots(report := make())
    assert first
    assert not lacking
    assert all(svg.startswith("<svg") for svg in first)
    assert first == plots.plots(report)[0]


def test_without_matplotlib_there_are_tables_and_a_line_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = page(load())
    assert "<svg" not in text
    assert "pip install" in text
    assert "stage_one" in text


def test_what_a_report_says_cannot_become_markup() -> None:
    report = {**load(), "command": "ifmesh <script>alert(1)</script>", "configuration": {"a": '"><img src=x>'}}
    seen = Seen()
    seen.feed(page(report))
    assert "<script>alert(1)</script>" in " ".join(seen.text)


def test_a_kind_that_is_not_known_here_is_shown_as_it_is() -> None:
    assert [table.rows for table in tables({**head("links", None), "a": {"b": 1}})] == [(("a.b", "1"),)]
    assert "a.b" in page({**head("links", None), "a": {"b": 1}})


def test_an_interruption_is_said() -> None:
    assert any("interrupted" in note for table in tables(load()) for note in table.notes)


def test_where_the_knee_is() -> None:
    def swept(*rates: float) -> Any:
        points = [{**point(2**i, load()), "figures": {"images_per_s": {"mean": rate}}} for i, rate in enumerate(rates)]
        return finished("requests in flight", points)

    found = swept(1.0, 1.9, 2.0, 2.01)
    assert found["knee"]["said"] == "4"
    assert [p["times"] for p in found["points"]] == [1.0, 1.9, 2.0, 2.01]
    assert swept(1.0, 2.0, 4.0)["knee"] is None, "it still rises"
    assert swept(1.0, 2.0)["knee"] is None, "two points have no knee"


def test_numbers_are_readable() -> None:
    assert [number(value) for value in (None, 0.0, 0.01234, 12.345, 1234.5, 1e-6)] == ["-", "0", "0.0123", "12.3", "1234", "1.0e-06"]
    assert [size(count) for count in (12, 1_261_568, 3e9)] == ["12 B", "1.3 MB", "3.0 GB"]
    assert (share(0.974), share(None)) == ("97.4%", "-")
    assert sure({"mean": 2.0, "low": 1.5, "high": 2.5}) == "2 (1.5 to 2.5)"
    assert not re.search("e[+]", number(123456789.0))

"""Clients on other hosts: what they saw, by host; and how the far end knows that nobody asks any more."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ifmesh.bench import tables
from ifmesh.bench.hosted import Ear
from ifmesh.bench.load import Wanted
from ifmesh.bench.merge import crews, figures
from ifmesh.bench.orders import Report
from tests.bench.test_merge import SEATS, record, steady


def test_what_each_host_saw_adds_up() -> None:
    reports = [steady(0), steady(1), Report((record(3.0, 9.0), record(4.0, 4.1, "refused")), 9.0)]
    rows = crews(reports, ["two", "two", "three"], 2.0, 12.0)
    whole = figures(reports, SEATS, 2.0, 12.0)
    assert [(row["host"], row["clients"], row["requests"]) for row in rows] == [
        ("two", 2, {"finished": 40}),
        ("three", 1, {"finished": 1, "refused": 1}),
    ]
    assert sum(row["images_per_s"] for row in rows) == pytest.approx(whole["images_per_s"])
    assert [row["latency_ms"]["p50_ms"] for row in rows] == [1500, 6000]
    shown = tables._crews(rows)
    assert [row[:3] for row in shown.rows] == [("two", "2", "40"), ("three", "1", "2")]


def test_every_client_of_every_host_gets_its_part() -> None:
    wanted = Wanted(in_flight=7, clients=2, hosts=("two", "three"))
    assert wanted.places == ["two", "two", "three", "three"]
    assert [run.in_flight for run in wanted.runs(0)] == [2, 2, 2, 1]
    assert len({run.seed for run in wanted.runs(0)}) == 4
    assert Wanted(clients=3).places == ["", "", ""]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_orders_are_heard_line_by_line(pipe: tuple[int, int]) -> None:
    hear, say = pipe
    ear = Ear(hear)
    os.write(say, b'{"run": [')
    assert ear.now() is None
    os.write(say, b']}\n\n{"stop": true}\n')
    assert ear.now() == {"run": []}
    assert ear.next() == {"stop": True}


def test_a_long_silence_is_the_end_and_an_empty_line_is_none(pipe: tuple[int, int]) -> None:
    hear, say = pipe
    ear = Ear(hear, silence=0.3)
    os.write(say, b"\n")
    assert ear.now() is None
    with pytest.raises(EOFError):
        ear.next()
    with pytest.raises(EOFError):
        ear.now()

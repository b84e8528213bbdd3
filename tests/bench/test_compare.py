"""Is B better than A?  Only where the runs can tell."""

from __future__ import annotations

from typing import Any

import pytest

from ifmesh.bench.compare import change, changes, differences, said, tables, welch
from ifmesh.bench.merge import told
from ifmesh.bench.statistics import interval, mean


def report(images: list[float], latency: list[float], **more: Any) -> dict[str, Any]:
    figures = {
        "images_per_s": {**told(interval(images)), "values": images, "better": "more"},
        "latency_p50_ms": {**told(interval(latency)), "values": latency, "better": "less"},
    }
    base = {"machine": {"processors": 2, "load": 0.5}, "versions": {"ifmesh": "0.1.0"}, "configuration": {}, "asked": {"in_flight": 8}}
    return {"kind": "load", **base, "figures": figures, **more}


def test_more_images_are_better_and_more_time_is_worse() -> None:
    a, b = report([10.0, 10.1, 9.9], [100.0, 101.0, 99.0]), report([12.0, 12.1, 11.9], [120.0, 121.0, 119.0])
    images, latency = changes(a, b)
    assert (images.verdict, latency.verdict) == ("better", "worse")
    assert images.part == pytest.approx(0.2)
    assert images.low is not None
    assert images.high is not None
    assert images.low < 0.2 < images.high
    assert said([images, latency]) == "Of 2 figures, B is better in 1 and worse in 1."


def test_what_differs_less_than_the_runs_do_is_no_difference() -> None:
    found = changes(report([10.0, 12.0, 8.0], [100.0, 130.0, 80.0]), report([10.5, 12.5, 8.5], [95.0, 125.0, 75.0]))
    assert {c.verdict for c in found} == {"no difference seen"}
    assert "none differs" in said(found)


def test_of_single_runs_nobody_knows() -> None:
    found = changes(report([10.0], [100.0]), report([20.0], [50.0]))
    assert {c.verdict for c in found} == {"one run: nobody knows"}
    assert "--repeat" in said(found)


def test_welch_is_that_of_the_text_books() -> None:
    # a common example: means 20.8 and 23.0, t = -2.46 with 25.0 degrees of freedom (of which those below count), so 0.9 is the deviation
    a = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
    b = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]
    deviation = (mean(b) - mean(a)) / 2.46
    assert welch(a, b) == pytest.approx(2.064 * deviation, rel=0.005)
    assert change("x", a, b, "more").verdict == "better"


def test_where_nothing_varies_any_difference_is_one() -> None:
    assert welch([1.0, 1.0], [2.0, 2.0]) == 0.0
    assert change("x", [1.0, 1.0], [2.0, 2.0], "more").verdict == "better"


def test_different_kinds_have_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        changes(report([1.0], [1.0]), {"kind": "mesh"})


def test_what_was_not_the_same_is_told_but_for_what_does_not_matter() -> None:
    b = report([1.0], [1.0], machine={"processors": 64, "load": 9.9}, configuration={"mesh.curve": False})
    assert differences(report([1.0], [1.0]), b) == [("machine.processors", "2", "64"), ("configuration.mesh.curve", "-", "False")]
    assert [table.title for table in tables(report([1.0], [1.0]), b)] == ["", "Not the same in both"]


def test_sweeps_meshes_and_bars_are_compared_point_by_point() -> None:
    row = {"p50_ms": 3.0, "p95_ms": 4.0, "requests_per_s": 100.0, "rounds": {"p50_ms": [3.0, 3.1], "requests_per_s": [99.0, 101.0]}}
    mesh = {"kind": "mesh", "mesh": {"ipc": {"1": row}}}
    assert [c.name for c in changes(mesh, mesh)] == ["ipc, 1 in flight: p50_ms", "ipc, 1 in flight: requests_per_s"]
    point = {"said": "4", "figures": report([5.0, 6.0], [1.0, 2.0])["figures"]}
    sweep = {"kind": "sweep", "asked": {"what": "requests in flight"}, "points": [point]}
    assert [c.name for c in changes(sweep, sweep)] == ["requests in flight 4: images/s", "requests in flight 4: latency p50, ms"]
    peers = {"kind": "peers", "columns": [("p50_ms", "p50, ms")], "rows": [{"name": "ifmesh", "p50_ms": 3.0}]}
    assert [c.verdict for c in changes(peers, peers)] == ["one run: nobody knows"]


def test_of_a_baseline_more_images_and_less_of_all_else_are_better() -> None:
    keys = ("images_per_s", "seconds_per_image", "processor_s_per_image", "ram_gb", "times")

    def baseline(factor: float) -> dict[str, Any]:
        rounds = {key: [factor, 1.01 * factor] for key in keys}
        return {
            "kind": "baseline",
            "columns": [(key, key) for key in keys],
            "rows": [{"name": "ifmesh", "rounds": rounds, **dict.fromkeys(keys, factor)}],
        }

    told = {c.name.partition(": ")[2]: c.verdict for c in changes(baseline(1.0), baseline(2.0))}
    assert told == {key: "better" if key in ("images_per_s", "times") else "worse" for key in keys}

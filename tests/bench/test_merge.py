"""What clients saw, put together: whoever's clock it was."""

from __future__ import annotations

import pytest

from ifmesh.bench.merge import Goal, Seat, figures, hops, repeated
from ifmesh.bench.orders import How, Record, Report, Spell

SEATS = [Seat("encoder-0", "encoder", "h1", "cpu"), Seat("one-0", "stage_one", "h1", "cuda:0"), Seat("one-1", "stage_one", "h2", "cuda:0")]


def record(at: float, end: float, how: How = "finished", late: float = 0.0, preview: float | None = None, worker: str = "one-0") -> Record:
    spells = (Spell("encoder", "encoder-0", "cpu", 0.01, 0.1, 0, 1000), Spell("stage_one", worker, "cuda:0", 0.05, 0.4, 1000, 24))
    return Record(at, at + late, end, how, preview, 2.0 if how == "refused" else 0.0, "", spells if how == "finished" else ())


def steady(client: int) -> Report:
    """Two images a second from second 0 to 12, each takes 1.5 s; whoever adds a client's number to its clock is seen."""
    return Report(tuple(record(n / 2, n / 2 + 1.5, worker=f"one-{client}") for n in range(24)), 13.0)


def test_rates_of_clients_add_up_and_latencies_are_pooled() -> None:
    found = figures([steady(0), steady(1)], SEATS, warm=2.0, seconds=12.0)
    assert found["images_per_s"] == pytest.approx(4.0, rel=0.06)
    assert found["latency_ms"]["p50_ms"] == found["latency_ms"]["p99_ms"] == pytest.approx(1500)
    assert found["requests"] == {"finished": 40}
    assert found["devices"] == 3
    assert found["images_per_s_per_device"] == pytest.approx(found["images_per_s"] / 3)


def test_the_slowest_stage_sets_the_bound() -> None:
    found = figures([steady(0), steady(1)], SEATS, 2.0, 12.0)
    assert found["bottleneck"] == "stage_one"  # 0.4 s with two workers: 5 a second; the encoder: 10
    assert found["bound_images_per_s"] == pytest.approx(5.0)
    assert found["efficiency"] == pytest.approx(found["images_per_s"] / 5)


def test_busy_is_the_part_of_the_time_of_stage_and_worker() -> None:
    found = figures([steady(0), steady(1)], SEATS, 2.0, 12.0)
    busy = {row["stage"]: row["busy"] for row in found["stages"]}
    assert busy == {"encoder": pytest.approx(0.4, rel=0.06), "stage_one": pytest.approx(0.8, rel=0.06)}
    assert [row["images"] for row in found["workers"]] == [40, 20, 20]
    assert found["workers"][1]["busy"] == pytest.approx(0.8, rel=0.06)


def test_a_latency_counts_from_when_the_request_was_due() -> None:
    """Coordinated omission: a client that was held up asks late, and must not make the mesh look quick."""
    found = figures([Report((record(1.0, 9.0, late=7.5),), 9.0)], SEATS, 0.0, 10.0)
    assert found["latency_ms"]["p50_ms"] == 8000
    assert found["late_ms"]["p50_ms"] == 7500


def test_what_is_due_while_warming_up_is_not_counted_and_what_ends_later_has_its_latency() -> None:
    rows = (record(0.5, 2.5), record(3.0, 4.0), record(9.5, 30.0), record(10.5, 11.0))
    found = figures([Report(rows, 30.0)], SEATS, 2.0, 10.0)
    assert found["requests"] == {"finished": 2}
    assert found["latency_ms"]["p99_ms"] == pytest.approx(20_305)
    assert found["images_per_s"] == pytest.approx(2 / 8)  # two ended in the steady part


def test_the_refused_have_no_latency_and_goodput_is_what_kept_to_the_goal() -> None:
    rows = (record(1.0, 2.0), record(2.0, 7.0), record(3.0, 3.1, "refused"), record(4.0, 5.0, preview=4.25))
    found = figures([Report(rows, 8.0)], SEATS, 0.0, 10.0, Goal(95, 2.0))
    assert found["requests"] == {"finished": 3, "refused": 1}
    assert found["retry_after_s"] == 2.0
    assert found["goodput_per_s"] == pytest.approx(0.2)
    assert found["slo"] == {"percent": 95, "seconds": 2.0, "seen": pytest.approx(4.6), "met": False}
    assert found["first_picture_ms"]["p50_ms"] == pytest.approx(250)


def test_a_goal_is_not_kept_by_those_who_did_not_get_their_picture() -> None:
    rows = (record(1.0, 2.0), record(2.0, 3.0, "failed"))
    assert figures([Report(rows, 8.0)], SEATS, 0.0, 10.0, Goal(95, 2.0))["slo"]["met"] is False


def test_nothing_at_all_is_told_as_nothing() -> None:
    found = figures([Report((), 0.0)], SEATS, 0.0, 10.0)
    assert (found["images_per_s"], found["efficiency"], found["latency_ms"], found["stages"]) == (0.0, None, {}, [])


def test_hops_are_what_came_in_and_how_long_after_the_stage_before() -> None:
    found = {row["into"]: row for row in hops([record(0, 1), record(1, 2), record(2, 3, "failed")])}
    assert found["stage_one"] == {"into": "stage_one", "bytes": 1000, "ms": 50.0, "bytes_per_s": 20_000}
    assert found["encoder"]["bytes_per_s"] is None


def test_repeats_have_intervals_and_one_has_none() -> None:
    run = figures([steady(0)], SEATS, 2.0, 12.0)
    one = repeated([run])["images_per_s"]
    assert (one["low"], one["high"]) == (None, None)
    three = repeated([{**run, "images_per_s": value} for value in (1.0, 2.0, 3.0)])["images_per_s"]
    assert three == {"mean": 2.0, "low": 0.0, "high": pytest.approx(4.4845, abs=1e-3), "values": [1.0, 2.0, 3.0], "better": "more"}
    assert "goodput_per_s" not in repeated([run])

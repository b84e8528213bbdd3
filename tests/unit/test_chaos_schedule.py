"""One seed, one schedule and one list of requests; and every kind of both is in them."""

from __future__ import annotations

from collections import Counter

import pytest

from ifmesh.cascade import IF
from ifmesh.chaos.asks import FATES, FATES_REAL, TASKS, asks, made
from ifmesh.chaos.schedule import RATES, STRANGERS, schedule

WORKERS = ("encoder-0", "stage_one-0", "stage_one-1", "guard-0")
CLIENTS = ("client-0", "client-1")


def test_one_seed_replays_one_schedule() -> None:
    first, again, other = (schedule(seed, 600, 1.2, WORKERS, CLIENTS) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_the_schedule_keeps_its_rates_its_time_and_its_order() -> None:
    events = schedule(1, 1200, 1.2, WORKERS, CLIENTS)
    kinds = Counter(event.kind for event in events)
    assert kinds == {kind: round(1000 * rate) for kind, rate in RATES.items()}
    assert kinds["kill"] + kinds["kill busy"] >= 1000
    assert kinds["kill coordinator"] >= 100
    assert kinds["pause"] >= 100
    assert kinds["partition"] >= 50
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert 0 <= events[0].at <= events[-1].at <= 1200
    assert len(schedule(1, 1200, 2.4, WORKERS, CLIENTS)) == pytest.approx(len(events) / 2, abs=len(RATES))


def test_some_pauses_and_partitions_outlast_the_silence_and_most_do_not() -> None:
    events = schedule(3, 1200, 1.2, WORKERS, CLIENTS, silence=2.0)
    lasting = [e.seconds for e in events if e.kind in ("pause", "partition", "deafen")]
    assert 0.15 < sum(seconds > 2.0 for seconds in lasting) / len(lasting) < 0.45
    assert {e.how for e in events if e.kind == "partition"} == {"both", "up", "down", "cut"}
    assert {e.how for e in events if e.kind == "bytes"} == set(STRANGERS)
    assert {e.target for e in events if e.kind == "kill"} == set(WORKERS)


def test_one_seed_asks_for_the_same() -> None:
    assert asks(7, 50, 60, 3, real=False) == asks(7, 50, 60, 3, real=False)
    assert asks(7, 50, 60, 3, real=False) != asks(8, 50, 60, 3, real=False)
    first, again = (made(asks(7, 50, 60, 3, real=False)[4]) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("real", [False, True])
def test_every_kind_of_request_is_asked_for_and_can_work(real: bool) -> None:
    found = asks(2, 600, 60, 3, real)
    assert {ask.fate for ask in found} == set(FATES_REAL if real else FATES)
    assert {ask.task for ask in found} == set(TASKS) - ({"alone"} if real else set())
    assert {ask.size for ask in found} == ({64, 256} if real else {64, 256, 1024})
    assert len({ask.job for ask in found}) == 600
    assert any(len(ask.clients) == 2 for ask in found)
    for ask in found[:200]:
        request, brought = made(ask)
        assert ask.stage in IF.route(request)
        assert request.deadline == ask.deadline
        assert request.upload == brought.digest
        assert ask.job in request.prompt


def test_one_client_has_no_twin() -> None:
    assert {ask.clients for ask in asks(1, 100, 10, 1, real=False)} == {(0,)}

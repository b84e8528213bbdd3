"""Who has room: right, and small however long the mesh lives."""

from __future__ import annotations

from ifmesh.protocol import Hello
from ifmesh.roster import Roster, Worker


def worker(life: str, stage: str = "encoder", capacity: int = 2) -> Worker:
    return Worker(Hello(stage, life, life.partition(".")[0], 1, "h", "cpu", (), capacity, "n"), life.encode(), 0.0, 0.0, 0.0, state="ready")


def test_the_least_loaded_with_room_comes_first() -> None:
    roster = Roster(("encoder",))
    one, two = worker("one.1"), worker("two.1")
    for each in (one, two):
        roster.add(each)
        roster.offer(each)
    one.tasks["a"] = (1, 1)
    roster.offer(one)
    assert roster.least_loaded("encoder") is two
    two.tasks |= {"b": (1, 2), "c": (1, 3)}
    roster.offer(two)
    assert roster.least_loaded("encoder") is one
    one.full = True
    assert roster.least_loaded("encoder") is None


def test_a_day_of_beats_leaves_no_trace() -> None:
    roster = Roster(("encoder",))
    idle = worker("idle.1")
    roster.add(idle)
    for _ in range(86400):
        roster.offer(idle)
    assert len(roster._free["encoder"]) <= 65
    assert roster.least_loaded("encoder") is idle


def test_a_life_that_changed_its_stage_is_not_taken_for_the_old_one() -> None:
    roster = Roster(("encoder", "guard"))
    before = worker("one.1", "encoder")
    roster.add(before)
    roster.offer(before)
    roster.remove(before)
    roster.add(worker("one.1", "guard"))
    assert roster.least_loaded("encoder") is None

"""Who has room: right, and small however long the mesh lives."""

from __future__ import annotations

import random
from math import inf

from ifmesh.protocol import Hello
from ifmesh.roster import Roster, Worker

PRIORITY = {"a": 0, "b": 0, "c": 5}.__getitem__


def worker(life: str, stage: str = "encoder", capacity: int = 2) -> Worker:
    return Worker(Hello(stage, life, life.partition(".")[0], 1, "h", "cpu", (), capacity, "n"), life.encode(), 0.0, 0.0, 0.0, state="ready")


def test_the_least_loaded_with_room_comes_first() -> None:
    roster = Roster(("encoder",), PRIORITY)
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
    roster = Roster(("encoder",), PRIORITY)
    idle = worker("idle.1")
    roster.add(idle)
    for _ in range(86400):
        roster.offer(idle)
    assert len(roster._free["encoder"]) <= 65
    assert roster.least_loaded("encoder") is idle


def test_a_life_that_changed_its_stage_is_not_taken_for_the_old_one() -> None:
    roster = Roster(("encoder", "guard"), PRIORITY)
    before = worker("one.1", "encoder")
    roster.add(before)
    roster.offer(before)
    roster.remove(before)
    roster.add(worker("one.1", "guard"))
    assert roster.least_loaded("encoder") is None


def test_urgency_is_that_of_the_most_urgent_task() -> None:
    roster = Roster(("encoder",), PRIORITY)
    one = worker("one.1")
    roster.add(one)
    for tasks, urgency in (((), -inf), (("a",), 0), (("a", "c"), 5), (("b",), 0)):
        one.tasks = dict.fromkeys(tasks, (1, 1))
        roster.offer(one)
        assert one.urgency == urgency


def test_a_place_more_is_for_those_who_ask_for_it_and_not_where_nothing_is_taken() -> None:
    one = worker("one.1", capacity=1)
    one.tasks["a"] = (1, 1)
    assert (one.room, one.takes(2)) == (False, True)
    for name, value in (("full", True), ("reserved", "b"), ("state", "draining")):
        usual = getattr(one, name)
        setattr(one, name, value)
        assert not one.takes(2), name
        setattr(one, name, usual)
    assert one.slots == 1


def test_the_calmest_is_found_as_by_looking_at_all() -> None:
    dice, roster = random.Random(5), Roster(("encoder",), PRIORITY)
    for number in range(3000):
        life = f"w{dice.randrange(6)}.1"
        if life not in roster.lives:
            roster.add(worker(life))
        elif dice.random() < 0.1:
            roster.remove(roster.lives[life])
            continue
        one = roster.lives[life]
        one.tasks = dict.fromkeys(dice.sample("abc", dice.randrange(3)), (1, number))
        roster.offer(one)
        assert roster.calmest("encoder") == min((w.urgency for w in roster.lives.values() if w.tasks), default=inf)
        assert len(roster._calm["encoder"]) <= 65

"""The life of a job: the whole table, row by row, and every missing row."""

from __future__ import annotations

from itertools import product

import pytest

from ifmesh.job import MOVES, Cause, IllegalMove, Job, State
from ifmesh.request import Request

TABLE = """
queued  assigned  running
queued  adopted   running
running advanced  queued
running retried   queued
running completed finished
running exhausted failed
queued  cancelled cancelled
running cancelled cancelled
queued  expired   failed
running expired   failed
"""
ROWS = {(State(before), Cause(cause)): State(after) for before, cause, after in map(str.split, TABLE.split("\n")[1:-1])}


def job(state: State = State.QUEUED) -> Job:
    return Job("a", Request("a fox", 1), ("encoder", "stage_one", "guard"), accepted=10.0, order=0, state=state)


def test_the_table_is_this_one() -> None:
    assert MOVES == ROWS


@pytest.mark.parametrize(("before", "cause"), list(product(State, Cause)), ids=lambda x: x.value)
def test_every_pair_of_state_and_cause(before: State, cause: Cause) -> None:
    it = job(before)
    it.tell(11.0, "what happened before")
    if (before, cause) in ROWS:
        it.move(12.5, cause, "because")
        assert it.state is ROWS[before, cause]
        assert it.story == [(1.0, "what happened before"), (2.5, f"encoder: {cause.value}: because")]
    else:
        with pytest.raises(IllegalMove, match=f"^a: {before.value}, but {cause.value}; so far .*what happened before"):
            it.move(12.5, cause, "because")
        assert it.state is before
        assert len(it.story) == 1


def test_what_has_ended_never_moves_again() -> None:
    assert not {before for before, _ in MOVES} & {State.FINISHED, State.FAILED, State.CANCELLED}


def test_every_state_can_be_reached_and_every_life_can_end() -> None:
    assert set(MOVES.values()) == set(State)
    for state in (State.QUEUED, State.RUNNING):
        assert {MOVES.get((state, cause)) for cause in (Cause.CANCELLED, Cause.EXPIRED)} == {State.CANCELLED, State.FAILED}


def test_a_long_story_keeps_its_beginning_and_its_end() -> None:
    it = job()
    for n in range(1000):
        it.tell(10.0 + n, str(n))
    assert len(it.story) == 200
    assert [text for _, text in it.story[:100]] == [str(n) for n in range(100)]
    assert [text for _, text in it.story[100:]] == [str(n) for n in range(900, 1000)]


def test_a_move_without_a_reason_tells_just_the_cause() -> None:
    it = job()
    it.move(10.0, Cause.ASSIGNED)
    assert it.story == [(0.0, "encoder: assigned")]


def test_what_is_below_the_floor_exists_twice_above_it() -> None:
    it = job()
    it.stage = 2
    assert (it.at, it.last, it.floor) == ("guard", 2, 0)
    it.received = True
    assert it.floor == 1

"""How long things took, told from a history whose times are known."""

from __future__ import annotations

import pytest

from ifmesh.chaos.figures import figures, spread
from ifmesh.chaos.history import Record


def moved(t: float, job: str, stage: str, cause: str, why: str = "") -> Record:
    return {"t": t, "by": "coordinator", "what": "moved", "job": job, "stage": stage, "cause": cause, "why": why}


def killed(t: float, name: str, how: str = "child") -> Record:
    return {"t": t, "by": "chaos", "what": "killed coordinator" if name == "coordinator" else "killed worker", "name": name, "how": how}


def test_from_the_kill_of_a_worker_to_the_next_grant() -> None:
    found = figures(
        [
            moved(1.0, "a", "guard", "assigned", "guard-0"),
            moved(1.0, "b", "guard", "assigned", "guard-1"),
            moved(1.5, "c", "encoder", "assigned", "encoder-0"),
            killed(2.0, "guard-0"),
            killed(2.1, "encoder-0", "both"),
            moved(2.2, "a", "guard", "retried", "guard-0 killed: SIGKILL"),
            moved(2.7, "a", "guard", "assigned", "guard-1"),
            moved(3.0, "b", "guard", "retried", "raised on guard-1"),  # nobody was killed for that
            moved(3.1, "b", "guard", "assigned", "guard-0"),
            moved(3.2, "b", "guard", "retried", "guard-0 crashed: SIGABRT"),  # nor for that: it is the next process of that name
            moved(3.3, "b", "guard", "assigned", "guard-1"),
            moved(4.0, "c", "encoder", "retried", "encoder-0 a newer process runs under its name"),
            moved(4.4, "c", "encoder", "assigned", "encoder-0"),  # its successor
        ]
    )
    assert found["kill_to_regrant_s"] == {"p50": 2.3, "p99": 2.3, "most": 2.3, "count": 2}
    assert found["witnessed_to_noticed_s"] == {"p50": 0.2, "p99": 0.2, "most": 0.2, "count": 1}
    assert found["unwitnessed_to_noticed_s"] == {"p50": 1.9, "p99": 1.9, "most": 1.9, "count": 1}
    assert found["witnessed_to_regrant_elsewhere_s"] == {"p50": 0.7, "p99": 0.7, "most": 0.7, "count": 1}


def test_a_restart_in_between_is_told_apart() -> None:
    found = figures(
        [
            moved(1.0, "a", "guard", "assigned", "guard-0"),
            killed(2.0, "guard-0"),
            moved(2.2, "a", "guard", "retried", "guard-0 killed: SIGKILL"),
            killed(2.3, "coordinator"),
            moved(9.0, "a", "guard", "assigned", "guard-0"),
        ]
    )
    assert found["kill_to_regrant_s"]["count"] == 1
    assert found["witnessed_to_regrant_elsewhere_s"]["count"] == 0
    assert found["coordinator_kill_to_first_grant_s"] == {"p50": 6.7, "p99": 6.7, "most": 6.7, "count": 1}


@pytest.mark.parametrize(
    ("after", "adopted", "held"),
    [
        ([moved(6.0, "a", "stage_two", "adopted", "stage_two-0 has it already")], 1, 1),
        ([moved(5.0, "a", "encoder", "adopted", "x"), moved(6.0, "a", "stage_two", "adopted", "stage_two-0 has it already")], 1, 1),
        ([moved(6.0, "a", "stage_two", "assigned", "stage_two-1")], 0, 1),
        ([moved(6.0, "a", "encoder", "assigned", "encoder-0")], 0, 1),
        ([killed(5.0, "stage_two-0"), moved(6.0, "a", "stage_two", "assigned", "stage_two-1")], 0, 0),  # it could not be adopted
        ([moved(6.0, "a", "encoder", "cancelled")], 0, 0),
    ],
)
def test_what_a_restarted_coordinator_adopts(after: list[Record], adopted: int, held: int) -> None:
    found = figures([moved(1.0, "a", "stage_two", "assigned", "stage_two-0"), killed(2.0, "coordinator"), *after])
    assert (found["adopted"], found["held_at_coordinator_kills"]) == (adopted, held)


@pytest.mark.parametrize(("stepped", "held"), [(1.5, 1), (0.5, 0), (2.5, 0)])
def test_what_had_not_begun_is_not_to_be_adopted(stepped: float, held: int) -> None:
    found = figures(
        [
            {"t": stepped, "by": "stage_two", "what": "stepped", "job": "a", "step": 1, "of": 5},
            moved(1.0, "a", "stage_two", "assigned", "stage_two-0"),
            killed(2.0, "coordinator"),
            moved(6.0, "a", "stage_two", "assigned", "stage_two-1"),
        ]
    )
    assert (found["adopted"], found["held_at_coordinator_kills"]) == (0, held)


def test_steps_that_ran_twice() -> None:
    steps = [(stage, step) for stage in ("encoder", "guard") for step in (1, 2, 3)] + [("guard", 1), ("guard", 2)]
    found = figures({"t": 1.0, "by": stage, "what": "stepped", "job": "a", "step": step, "of": 3} for stage, step in steps)
    assert (found["steps_run"], found["steps_run_twice"]) == (8, 2)


def test_of_nothing_there_is_no_spread() -> None:
    assert spread([]) == {"p50": None, "p99": None, "most": None, "count": 0}
    assert spread([3.0, 1.0, 2.0]) == {"p50": 2.0, "p99": 3.0, "most": 3.0, "count": 3}

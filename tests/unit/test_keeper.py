"""The worker's mind, rule by rule.  Whole days of it are told in tests/broker/stories/keeper_*.txt."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import pytest

from ifmesh.cascade import IF
from ifmesh.chores import Carry, Command, Forget, Rebuild, Send, Stop, Task
from ifmesh.keeper import EARLY, Keeper
from ifmesh.looks import LOOKS
from ifmesh.protocol import (
    Beat,
    Bye,
    Done,
    Drain,
    Drop,
    Endpoint,
    Header,
    Hello,
    Look,
    Push,
    Raised,
    Received,
    Refused,
    Release,
    Run,
    Step,
    Token,
    Verdicts,
    Who,
)
from ifmesh.request import Request

FOX = Request("a fox", 1)
ELK = Request("an elk", 2, priority=5)
NEXT = (Endpoint("", "tcp://next"),)
HUB = (Endpoint("", "tcp://hub"),)


def ready(outbox_bytes: int = 1 << 30, stage: str = "encoder", slots: int = 1) -> Keeper:
    keeper = Keeper(Hello(stage, "enc.1", "enc", 1, "here", "cpu", (), 1 + slots, ""), outbox_bytes)
    keeper.start(0.0)
    keeper.loaded(0.0, "cpu")
    return keeper


def bag(job: str, token: Token) -> Header:
    return Header("bag", job, "encoder", token, "d")


def given(keeper: Keeper, job: str, token: Token, request: Request = FOX) -> None:
    """Granted, and the bag is there."""
    keeper.receive(0.0, Run(job, token, request))
    keeper.arrived(0.0, bag(job, token), b"in")


def busy() -> Keeper:
    """Its one slot is taken, by job "z"."""
    keeper = ready()
    given(keeper, "z", (1, 0))
    keeper.take(0.0)
    return keeper


def finished(keeper: Keeper, job: str, token: Token, frame: bytes = b"out") -> list[Command]:
    given(keeper, job, token)
    task, _ = keeper.take(0.0)
    assert task is not None
    return keeper.completed(0.0, job, token, frame, "digest", 1.5)


def beat(keeper: Keeper, now: float) -> Beat:
    messages = [c.message for c in keeper.tick(now) if isinstance(c, Send)]
    (found,) = [m for m in messages if isinstance(m, Beat)]
    return found


def test_it_says_hello_before_anything_else_and_again_when_its_class_is_known() -> None:
    keeper = Keeper(Hello("encoder", "enc.1", "enc", 1, "here", "cpu", (), 2, ""))
    assert keeper.start(5.0) == [Send(keeper.hello), Send(Beat("enc.1", 1, "loading", ()))]
    said = keeper.loaded(6.0, "cpu fp32")
    assert keeper.hello.numeric == "cpu fp32"
    assert said == [Send(keeper.hello), Send(Beat("enc.1", 2, "ready", ()))]


def test_asked_who_it_is_it_says_all_of_it() -> None:
    keeper = ready()
    assert keeper.receive(0.5, Who()) == [Send(keeper.hello), Send(Beat("enc.1", 3, "ready", ()))]


def test_the_beat_holds_everything_in_all_four_states() -> None:
    keeper = ready()
    finished(keeper, "d", (1, 1))
    given(keeper, "c", (1, 2))
    keeper.take(0.0)
    keeper.advanced(0.0, "c", (1, 2), 3, 9)
    given(keeper, "b", (1, 3))
    keeper.receive(0.0, Run("a", (1, 4), FOX))
    held = {h.job: h for h in beat(keeper, 1.0).held}
    assert {job: h.state for job, h in held.items()} == {"a": "waiting", "b": "ready", "c": "running", "d": "done"}
    assert (held["c"].step, held["c"].steps) == (3, 9)
    assert (held["d"].digest, held["d"].size, held["d"].seconds) == ("digest", 3, 1.5)


def test_beats_are_numbered_and_come_each_second() -> None:
    keeper = ready()
    assert keeper.wakeup() == 1.0
    assert [beat(keeper, float(t)).number for t in (1, 2)] == [3, 4]
    assert keeper.tick(2.5) == []


def test_the_outbox_has_a_limit_in_bytes() -> None:
    keeper = ready(outbox_bytes=8)
    finished(keeper, "a", (1, 1), b"1234567")
    assert not beat(keeper, 1.0).full
    finished(keeper, "b", (1, 2), b"1")
    assert beat(keeper, 2.0).full
    keeper.receive(2.1, Release("a", (1, 1)))
    assert not beat(keeper, 3.0).full


@pytest.mark.parametrize("early", [True, False])
def test_a_bag_may_come_before_its_run_or_after(early: bool) -> None:
    keeper = busy()
    run, here = Run("a", (1, 1), FOX), Send(Received("enc.1", "a", (1, 1)))
    if early:
        assert keeper.arrived(0.0, bag("a", (1, 1)), b"in") == []
        assert keeper.receive(0.0, run) == [here]
    else:
        assert keeper.receive(0.0, run) == []
        assert keeper.arrived(0.0, bag("a", (1, 1)), b"in") == [here]
    keeper.completed(0.0, "z", (1, 0), b"out", "d", 1.0)
    task, _ = keeper.take(0.0)
    assert task is not None
    assert (task.job, task.token, task.request, task.frame) == ("a", (1, 1), FOX, b"in")


def test_one_whose_bag_is_being_packed_leaves_its_slot() -> None:
    keeper = busy()
    given(keeper, "a", (1, 1))
    assert keeper.take(0.0, urgent=True) == (None, [])
    keeper.over("z", (1, -1))
    assert keeper.take(0.0) == (None, []), "of another grant"
    keeper.over("z", (1, 0))
    task, _ = keeper.take(0.0)
    assert task is not None
    assert (task.job, task.urgent) == ("a", False)
    assert [(h.job, h.state) for h in beat(keeper, 1.0).held] == [("z", "running"), ("a", "running")]
    assert keeper.completed(1.0, "z", (1, 0), b"out", "d", 1.0) == [Send(Done("enc.1", "z", (1, 0), "d", 3, 0, 1.0))]


def test_bags_for_nobody_do_not_pile_up() -> None:
    keeper = busy()
    for n in range(3 * EARLY):
        keeper.arrived(0.0, bag(f"job{n}", (1, n)), b"in")
    there = [n for n in range(3 * EARLY) if keeper.receive(0.0, Run(f"job{n}", (1, n), FOX))]
    assert there == list(range(2 * EARLY, 3 * EARLY))


def test_a_bag_of_another_grant_is_not_taken() -> None:
    keeper = ready()
    keeper.receive(0.0, Run("a", (1, 5), FOX))
    assert keeper.arrived(0.0, bag("a", (1, 4)), b"stale") == []
    assert keeper.take(0.0) == (None, [])
    keeper.arrived(0.0, bag("a", (1, 5)), b"right")
    task, _ = keeper.take(0.0)
    assert task is not None
    assert task.frame == b"right"


def test_priority_first_then_the_older_grant() -> None:
    keeper = ready(slots=3)
    given(keeper, "late", (1, 9))
    given(keeper, "first", (1, 2))
    given(keeper, "urgent", (1, 10), ELK)
    taken = [task.job for task, _ in (keeper.take(0.0), keeper.take(0.0), keeper.take(0.0)) if task is not None]
    assert taken == ["urgent", "first", "late"]
    assert keeper.take(0.0) == (None, [])


def test_without_a_slot_only_what_is_more_urgent_than_all_that_runs() -> None:
    keeper = ready()
    given(keeper, "a", (1, 1))
    assert keeper.take(0.0, urgent=True) == (None, []), "nothing runs: it has a slot, and will ask"
    keeper.take(0.0)
    given(keeper, "b", (1, 2))
    assert keeper.take(0.0, urgent=True) == (None, [])
    given(keeper, "c", (1, 3), ELK)
    task, said = keeper.take(0.0, urgent=True)
    assert task == Task("c", (1, 3), ELK, b"in", urgent=True)
    assert said == [Send(Step("enc.1", "c", (1, 3), 0, 0))]
    given(keeper, "d", (1, 4), ELK)
    assert keeper.take(0.0, urgent=True) == (None, []), "an equal waits"
    keeper.receive(0.0, Drop("c", (1, 3)))
    task, _ = keeper.take(0.0, urgent=True)
    assert task is not None
    assert task.job == "d"


def test_a_slot_that_comes_free_late_is_for_none_but_the_more_urgent() -> None:
    """One came beyond the slots while another was ending: the slot that is offered then is taken already."""
    keeper = ready()
    for job, token, request in (("a", (1, 1), FOX), ("b", (1, 2), FOX)):
        given(keeper, job, token, request)
    keeper.take(0.0)
    given(keeper, "c", (1, 3), ELK)
    assert keeper.take(0.0, urgent=True)[0] is not None
    keeper.completed(0.0, "a", (1, 1), b"out", "d", 1.0)
    assert keeper.take(0.0) == (None, [])
    given(keeper, "d", (1, 4), ELK)
    assert keeper.take(0.0) == (None, []), "an equal waits"
    given(keeper, "e", (1, 5), replace(ELK, priority=9))
    assert keeper.take(0.0)[0] == Task("e", (1, 5), replace(ELK, priority=9), b"in", urgent=True), "and the slot is still offered"
    for job, token in (("e", (1, 5)), ("c", (1, 3))):
        assert keeper.take(0.0) == (None, [])
        keeper.completed(0.0, job, token, b"out", "d", 1.0)
    assert keeper.take(0.0)[0] == Task("d", (1, 4), ELK, b"in")


def test_no_picture_is_looked_at_where_something_runs_in_every_slot() -> None:
    keeper = ready(stage="guard")
    given(keeper, "a", (1, 1))
    keeper.take(0.0)
    shown(keeper, "b")
    assert keeper.take(0.0) == (None, [])
    keeper.completed(0.0, "a", (1, 1), b"out", "d", 1.0)
    assert keeper.take(0.0) == (preview("b"), [])


def test_no_picture_is_looked_at_without_a_slot() -> None:
    keeper = ready(stage="guard")
    keeper.receive(0.0, Look("a", "stage_one", (1, 1), HUB))
    keeper.arrived(0.0, Header("preview", "a", "stage_one", (1, 1), "d"), b"in")
    assert keeper.take(0.0, urgent=True) == (None, [])
    task, _ = keeper.take(0.0)
    assert task is not None
    assert task.preview


def test_a_newer_grant_takes_the_place_of_the_older() -> None:
    keeper = ready()
    given(keeper, "a", (1, 1))
    keeper.take(0.0)
    assert keeper.receive(0.1, Run("a", (2, 1), FOX)) == [Forget("a", (1, 1))]
    assert keeper.completed(0.2, "a", (1, 1), b"out", "d", 1.0) == []
    assert keeper.raised(0.2, "a", (1, 1), "late", "stage") == []
    assert keeper.advanced(0.2, "a", (1, 1), 1, 2) == []
    assert [(h.job, h.token, h.state) for h in beat(keeper, 1.0).held] == [("a", (2, 1), "waiting")]


def test_done_once_a_repeated_run_is_not_done_again() -> None:
    keeper = ready()
    assert finished(keeper, "a", (1, 1)) == [Send(Done("enc.1", "a", (1, 1), "digest", 3, 0, 1.5))]
    assert keeper.receive(0.1, Run("a", (1, 1), FOX)) == []
    assert [(h.job, h.state) for h in beat(keeper, 1.0).held] == [("a", "done")]


def test_a_grant_after_its_own_output_is_new_work() -> None:
    keeper = ready()
    finished(keeper, "a", (1, 1))
    given(keeper, "a", (1, 2))
    task, _ = keeper.take(0.0)
    assert task is not None
    assert task.token == (1, 2)


def test_steps_are_told_ten_times_a_second_at_most_and_the_beginning_always() -> None:
    keeper = ready()
    given(keeper, "a", (1, 1))
    assert keeper.take(1.0)[1] == [Send(Step("enc.1", "a", (1, 1), 0, 0))]
    told = [step for step in range(101) if keeper.advanced(1.0 + step / 100, "a", (1, 1), step, 100)]
    assert told[0] == 10
    assert 9 <= len(told) <= 11
    assert [(h.step, h.steps) for h in beat(keeper, 2.5).held] == [(100, 100)], "the Beat says it, too"
    assert keeper.advanced(9.0, "a", (1, 1), 100, 100) == [Send(Step("enc.1", "a", (1, 1), 100, 100))]


def test_pushed_and_kept_until_released() -> None:
    keeper = ready()
    finished(keeper, "a", (1, 1))
    order = Push("a", (1, 2), "one.1", NEXT)
    carry = Carry("one.1", NEXT, Header("bag", "a", "encoder", (1, 2), "digest"), b"out")
    assert keeper.receive(0.1, order) == [carry]
    assert keeper.receive(0.2, order) == [carry]
    keeper.receive(0.3, Release("a", (1, 0)))  # of an older grant
    assert keeper.receive(0.3, order) == [carry]
    keeper.receive(0.4, Release("a", (1, 1)))
    assert keeper.receive(0.5, order) == []


def test_verdicts_drop_and_release() -> None:
    keeper = ready()
    finished(keeper, "a", (1, 1))
    given(keeper, "b", (1, 2))
    keeper.take(0.0)
    assert keeper.receive(0.1, Verdicts(2, (("b", (1, 2)),), (("a", (1, 1)),))) == [Forget("b", (1, 2))]
    assert beat(keeper, 1.0).held == ()


def test_a_drop_of_an_older_grant_leaves_the_newer() -> None:
    keeper = ready()
    given(keeper, "a", (1, 5))
    assert keeper.receive(0.1, Drop("a", (1, 4))) == []
    assert keeper.receive(0.2, Drop("a", (1, 5))) == [Forget("a", (1, 5))]


def test_spoiled_twice_is_waited_for_and_the_third_time_raised() -> None:
    keeper = ready()
    keeper.receive(0.0, Run("a", (1, 1), FOX))
    for n in range(3):
        keeper.arrived(0.0, bag("a", (1, 1)), b"in")
        assert keeper.take(0.0)[0] is not None
        said = keeper.spoiled(0.0, "a", (1, 1), "no rng")
        assert said == ([] if n < 2 else [Send(Raised("enc.1", "a", (1, 1), "the bag is spoiled: no rng", "stage"))])
    assert keeper.take(0.0) == (None, [])


def test_a_silent_coordinator_makes_it_try_another_socket_again_and_again() -> None:
    keeper = ready()
    rebuilt = [now for now in range(1, 12) if any(isinstance(c, Rebuild) for c in keeper.tick(float(now)))]
    assert rebuilt == [3, 6, 9]
    keeper.receive(11.5, Verdicts(1))
    assert not any(isinstance(c, Rebuild) for c in keeper.tick(14.0))


def test_refused_is_the_end() -> None:
    assert ready().receive(1.0, Refused("", "conflict", "you are over")) == [Stop("you are over")]


def test_draining_it_goes_when_nothing_is_held_and_says_so_once() -> None:
    keeper = ready()
    finished(keeper, "a", (1, 1))
    given(keeper, "b", (1, 2))
    said = keeper.receive(0.1, Drain())
    assert [type(c) for c in said] == [Send]
    assert keeper.drain(0.2) == []
    assert keeper.receive(0.3, Drop("b", (1, 2))) == [Forget("b", (1, 2))]
    assert keeper.receive(0.4, Release("a", (1, 1))) == [Send(Bye("enc.1")), Stop("")]
    assert keeper.receive(0.5, Release("a", (1, 1))) == []


def test_draining_with_nothing_in_hand_it_goes_at_once() -> None:
    assert ready().drain(0.1)[-2:] == [Send(Bye("enc.1")), Stop("")]


# ---- early pictures


def look(job: str, token: Token = (1, 1), stage: str = "stage_one", to: tuple[Endpoint, ...] = HUB) -> Look:
    return Look(job, stage, token, to)


def picture(job: str, token: Token = (1, 1), stage: str = "stage_one") -> Header:
    return Header("preview", job, stage, token, "d")


def shown(keeper: Keeper, job: str, token: Token = (1, 1), stage: str = "stage_one", frame: bytes = b"in") -> list[Command]:
    """Asked for, and the picture is there."""
    return keeper.receive(0.0, look(job, token, stage)) + keeper.arrived(0.0, picture(job, token, stage), frame)


def preview(job: str, token: Token = (1, 1), stage: str = "stage_one", frame: bytes = b"in") -> Task:
    request = Request("preview", 0, first_stage=stage, last_stage=stage, stages=False)
    return Task(f"{job}.{stage}", token, request, frame, preview=True)


def taken(keeper: Keeper) -> list[Task]:
    """All that can be started now."""
    found = []
    while (task := keeper.take(0.0)[0]) is not None:
        found.append(task)
    return found


def silent(keeper: Keeper, now: float) -> bool:
    """Nothing that the coordinator would ever hear of."""
    return beat(keeper, now).held == () and not keeper.tasks and not keeper.outbox


@pytest.mark.parametrize("early", [True, False])
def test_a_picture_may_come_before_its_look_or_after(early: bool) -> None:
    keeper = ready(stage="guard")
    halves: list[Callable[[], list[Command]]] = [lambda: keeper.arrived(0.0, picture("a"), b"in"), lambda: keeper.receive(0.0, look("a"))]
    first, second = halves if early else halves[::-1]
    assert first() == []
    assert keeper.take(0.0) == (None, []), "half of it is nothing"
    assert second() == []
    assert keeper.take(0.0) == (preview("a"), []), "nobody is told that it begins"
    assert keeper.take(0.0) == (None, [])


@pytest.mark.parametrize("stage", ["stage_one", "stage_two", "upscaler"])
def test_a_preview_is_a_job_of_one_stage_to_the_cascade(stage: str) -> None:
    keeper = ready(stage="guard")
    shown(keeper, "a", stage=stage)
    (task,) = taken(keeper)
    assert task == preview("a", stage=stage)
    image = {"stage_one": "image64", "stage_two": "image256", "upscaler": "image1024"}[stage]
    assert [b.name for b in IF.enters(task.request, "guard")] == [image]
    assert {b.name for b in IF.carries(task.request, "guard")} == {f"picture_{stage}", "flagged"}


def test_a_preview_that_is_made_goes_to_the_coordinator_and_leaves_no_trace() -> None:
    keeper = ready(stage="guard")
    shown(keeper, "a")
    keeper.take(0.0)
    assert silent(keeper, 1.0)
    assert keeper.advanced(1.0, "a.stage_one", (1, 1), 0, 1) == []
    made = keeper.completed(1.5, "a.stage_one", (1, 1), b"png", "e", 0.1)
    assert made == [Carry("", HUB, Header("preview", "a", "stage_one", (1, 1), "e"), b"png")]
    assert silent(keeper, 2.0)
    assert keeper.completed(2.0, "a.stage_one", (1, 1), b"png", "e", 0.1) == [], "once"
    assert keeper.take(2.0) == (None, [])


def test_a_preview_that_fails_is_forgotten() -> None:
    for how in ("raised", "spoiled"):
        keeper = ready(stage="guard")
        shown(keeper, "a")
        keeper.take(0.0)
        if how == "raised":
            assert keeper.raised(0.0, "a.stage_one", (1, 1), "no such colour", "stage") == []
        else:
            assert keeper.spoiled(0.0, "a.stage_one", (1, 1), "no picture") == []
        assert silent(keeper, 1.0)
        keeper.arrived(1.0, picture("a"), b"in")
        assert keeper.take(1.0) == (None, []), "not tried again"
        keeper.receive(1.0, look("a"))
        assert keeper.take(1.0)[0] == preview("a"), "unless somebody asks again"


def test_a_picture_is_looked_at_only_when_no_task_is_ready() -> None:
    keeper = ready(stage="guard", slots=2)
    shown(keeper, "a")
    given(keeper, "late", (1, 9))
    keeper.receive(0.0, Run("waits", (1, 8), FOX))
    assert [task.job for task in taken(keeper)] == ["late", "a.stage_one"], "a task without its bag holds up no picture"


def test_the_oldest_picture_is_looked_at_first() -> None:
    keeper = ready(stage="guard")
    for job in ("b", "a", "c"):
        keeper.receive(0.0, look(job))
    for job in ("c", "a", "b"):
        keeper.arrived(0.0, picture(job), b"in")
    assert [task.job for task in taken(keeper)] == ["b.stage_one", "a.stage_one", "c.stage_one"]


def test_two_stages_of_a_job_and_the_job_itself_are_three_things() -> None:
    keeper = ready(stage="guard", slots=2)
    shown(keeper, "a", (1, 1), "stage_one", b"64")
    shown(keeper, "a", (1, 2), "stage_two", b"256")
    given(keeper, "a", (1, 3))
    assert [task.job for task in taken(keeper)] == ["a", "a.stage_one", "a.stage_two"]
    assert len(keeper.completed(0.0, "a.stage_two", (1, 2), b"png", "e", 0.1)) == 1
    assert [type(c.message) for c in keeper.completed(0.0, "a", (1, 3), b"out", "e", 0.1) if isinstance(c, Send)] == [Done]
    assert len(keeper.completed(0.0, "a.stage_one", (1, 1), b"png", "e", 0.1)) == 1


def test_pictures_for_nobody_do_not_pile_up() -> None:
    for both in (True, False):
        keeper = ready(stage="guard")
        for n in range(3 * LOOKS):
            if both:
                shown(keeper, f"job{n}")
            else:
                keeper.arrived(0.0, picture(f"job{n}"), b"in")
        if not both:
            assert taken(keeper) == []
            for n in range(3 * LOOKS - 1, 2 * LOOKS - 1, -1):  # the newest first: none is pushed out by an older one
                keeper.receive(0.0, look(f"job{n}"))
        assert [task.job for task in taken(keeper)] == [f"job{n}.stage_one" for n in range(2 * LOOKS, 3 * LOOKS)]


def test_a_flood_of_looks_does_not_stop_the_one_that_runs() -> None:
    keeper = ready(stage="guard")
    shown(keeper, "a")
    keeper.take(0.0)
    for n in range(100):
        assert shown(keeper, f"job{n}") == []
    assert len(keeper.completed(1.0, "a.stage_one", (1, 1), b"png", "e", 0.1)) == 1
    assert [task.job for task in taken(keeper)] == [f"job{n}.stage_one" for n in range(93, 100)]


def test_a_newer_drawing_takes_the_place_of_the_older() -> None:
    four: list[Look | Header] = [look("a", (1, 1)), look("a", (1, 2)), picture("a", (1, 1)), picture("a", (1, 2))]
    for events in permutations(four):
        keeper = ready(stage="guard")
        for event in events:
            assert (keeper.receive(0.0, event) if isinstance(event, Look) else keeper.arrived(0.0, event, str(event.token).encode())) == []
        assert taken(keeper) == [preview("a", (1, 2), frame=b"(1, 2)")], events


def test_the_compute_thread_drops_a_picture_whose_stage_was_drawn_anew() -> None:
    for event in (look("a", (2, 1)), picture("a", (2, 1))):
        keeper = ready(stage="guard")
        shown(keeper, "a", (1, 1))
        keeper.take(0.0)
        said = keeper.receive(0.1, event) if isinstance(event, Look) else keeper.arrived(0.1, event, b"new")
        assert said == [Forget("a.stage_one", (1, 1))]
        shown(keeper, "a", (2, 1), frame=b"new")
        assert taken(keeper) == [preview("a", (2, 1), frame=b"new")]
        assert keeper.completed(0.2, "a.stage_one", (1, 1), b"png", "e", 0.1) == [], "it was too quick: still stale"
        assert len(keeper.completed(0.3, "a.stage_one", (2, 1), b"png", "e", 0.1)) == 1


def test_asked_again_while_it_runs_it_runs_once() -> None:
    keeper = ready(stage="guard")
    shown(keeper, "a")
    keeper.take(0.0)
    elsewhere = (Endpoint("", "tcp://another"),)
    assert keeper.receive(0.1, look("a", to=elsewhere)) == []
    assert keeper.arrived(0.1, picture("a"), b"in") == []
    assert keeper.take(0.1) == (None, [])
    (carry,) = keeper.completed(0.2, "a.stage_one", (1, 1), b"png", "e", 0.1)
    assert isinstance(carry, Carry)
    assert carry.to == elsewhere, "to where it was last asked for"


def test_what_no_stage_draws_is_no_picture() -> None:
    keeper = ready(stage="guard")
    for stage in ("encoder", "guard", "stage_9", ""):
        assert shown(keeper, "a", stage=stage) == []
    assert taken(keeper) == []


def test_a_preview_bag_is_no_bag_and_a_bag_no_preview() -> None:
    keeper = ready(stage="guard")
    keeper.receive(0.0, Run("a", (1, 1), FOX))
    keeper.receive(0.0, look("b"))
    assert keeper.arrived(0.0, picture("a"), b"in") == []
    assert keeper.arrived(0.0, bag("b", (1, 1)), b"in") == []
    assert taken(keeper) == []


def test_draining_is_not_held_up_by_pictures_and_takes_none() -> None:
    keeper = ready(stage="guard")
    shown(keeper, "running")
    keeper.take(0.0)
    shown(keeper, "waiting")
    given(keeper, "a", (1, 9))
    keeper.drain(0.1)
    assert shown(keeper, "new") == []
    assert [task.job for task in taken(keeper)] == ["a"]
    keeper.completed(0.3, "a", (1, 9), b"out", "e", 0.1)
    assert keeper.receive(0.4, Release("a", (1, 9))) == [Send(Bye("enc.1")), Stop("")]
    alone = ready(stage="guard")
    shown(alone, "a")
    assert alone.drain(0.1)[-2:] == [Send(Bye("enc.1")), Stop("")]


@pytest.mark.parametrize(("stage", "only"), [("stage_one", "image64"), ("stage_two", "image256"), ("upscaler", "image1024")])
def test_who_drew_it_sends_the_picture_alone(stage: str, only: str) -> None:
    keeper = ready(stage=stage)
    finished(keeper, "a", (1, 1))
    header = Header("preview", "a", stage, (1, 1), "digest")
    assert keeper.receive(0.1, Push("a", (1, 1), "guard.1", NEXT, "preview")) == [Carry("guard.1", NEXT, header, b"out", only)]
    (whole,) = keeper.receive(0.2, Push("a", (1, 2), "two.1", NEXT))
    assert isinstance(whole, Carry)
    assert (whole.only, whole.frame) == ("", b"out"), "and keeps the bag, whole"


def test_no_picture_is_sent_that_is_not_the_one_that_was_meant() -> None:
    keeper = ready(stage="stage_one")
    finished(keeper, "a", (1, 2))
    assert keeper.receive(0.1, Push("a", (1, 1), "guard.1", NEXT, "preview")) == []
    assert keeper.receive(0.1, Push("b", (1, 2), "guard.1", NEXT, "preview")) == []
    encoder = ready(stage="encoder")
    finished(encoder, "a", (1, 2))
    assert encoder.receive(0.1, Push("a", (1, 2), "guard.1", NEXT, "preview")) == [], "embeddings are no picture"


@pytest.mark.parametrize("seed", range(200))
def test_looks_in_any_order(seed: int) -> None:
    """Few are remembered, only a newer drawing stops what runs, no two of one name run, and nobody ever hears of it in a Beat."""
    dice, keeper = random.Random(seed), ready(stage="guard")
    running: dict[str, Token] = {}
    for _ in range(300):
        job, stage = f"job{dice.randrange(12)}", dice.choice(["stage_one", "stage_two"])
        token = (1, dice.randrange(1, 6))
        said: list[Command] = []
        match dice.randrange(5):
            case 0 | 1 as half:
                said = (
                    keeper.receive(0.0, look(job, token, stage))
                    if half
                    else keeper.arrived(0.0, picture(job, token, stage), b"%d" % token[1])
                )
            case 2 | 3:
                task, told = keeper.take(0.0)
                assert told == []
                if task is not None:
                    assert task.job not in running
                    assert task.frame == b"%d" % task.token[1]
                    running[task.job] = task.token
            case _ if running:
                name = dice.choice(sorted(running))
                end = dice.choice(["completed", "raised", "spoiled"])
                if end == "completed":
                    (carry,) = keeper.completed(0.0, name, running[name], b"png", "e", 0.1)
                    assert isinstance(carry, Carry)
                    assert f"{carry.header.job}.{carry.header.stage}" == name
                    assert carry.header.token == running[name]
                elif end == "raised":
                    assert keeper.raised(0.0, name, running[name], "no", "stage") == []
                else:
                    assert keeper.spoiled(0.0, name, running[name], "no") == []
                del running[name]
        for command in said:
            assert isinstance(command, Forget)
            assert running.pop(command.job) == command.token < token
        assert len(keeper._looks) <= LOOKS
    assert silent(keeper, 1.0)

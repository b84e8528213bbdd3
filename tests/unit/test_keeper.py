"""The worker's mind, rule by rule.  Whole days of it are told in tests/broker/stories/keeper_*.txt."""

from __future__ import annotations

import pytest

from ifmesh.keeper import EARLY, Carry, Command, Forget, Keeper, Rebuild, Send, Stop
from ifmesh.protocol import (
    Beat,
    Bye,
    Done,
    Drain,
    Drop,
    Endpoint,
    Header,
    Hello,
    Push,
    Raised,
    Received,
    Refused,
    Release,
    Request,
    Run,
    Step,
    Token,
    Verdicts,
    Who,
)

FOX = Request("a fox", 1)
ELK = Request("an elk", 2, priority=5)
NEXT = (Endpoint("", "tcp://next"),)


def ready(outbox_bytes: int = 1 << 30) -> Keeper:
    keeper = Keeper(Hello("encoder", "enc.1", "enc", 1, "here", "cpu", (), 2, ""), outbox_bytes)
    keeper.start(0.0)
    keeper.loaded(0.0, "cpu")
    return keeper


def bag(job: str, token: Token) -> Header:
    return Header("bag", job, "encoder", token, "d")


def given(keeper: Keeper, job: str, token: Token, request: Request = FOX) -> None:
    """Granted, and the bag is there."""
    keeper.receive(0.0, Run(job, token, request))
    keeper.arrived(0.0, bag(job, token), b"in")


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
    keeper = ready()
    run, here = Run("a", (1, 1), FOX), Send(Received("enc.1", "a", (1, 1)))
    if early:
        assert keeper.arrived(0.0, bag("a", (1, 1)), b"in") == []
        assert keeper.receive(0.0, run) == [here]
    else:
        assert keeper.receive(0.0, run) == []
        assert keeper.arrived(0.0, bag("a", (1, 1)), b"in") == [here]
    task, _ = keeper.take(0.0)
    assert task is not None
    assert (task.job, task.token, task.request, task.frame) == ("a", (1, 1), FOX, b"in")


def test_bags_for_nobody_do_not_pile_up() -> None:
    keeper = ready()
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
    keeper = ready()
    given(keeper, "late", (1, 9))
    given(keeper, "first", (1, 2))
    given(keeper, "urgent", (1, 10), ELK)
    taken = [task.job for task, _ in (keeper.take(0.0), keeper.take(0.0), keeper.take(0.0)) if task is not None]
    assert taken == ["urgent", "first", "late"]
    assert keeper.take(0.0) == (None, [])


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


def test_steps_are_told_ten_times_a_second_at_most_but_the_first_always() -> None:
    keeper = ready()
    given(keeper, "a", (1, 1))
    keeper.take(1.0)
    told = [step for step in range(101) if keeper.advanced(1.0 + step / 100, "a", (1, 1), step, 100)]
    assert told[0] == 0
    assert 9 <= len(told) <= 11
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

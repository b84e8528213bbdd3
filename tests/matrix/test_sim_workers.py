"""Rows 18 to 22, 29 to 33, 36 to 38 and 49 in the simulator: workers die, stall, sleep, come back, and leave."""

from __future__ import annotations

from typing import Literal

import pytest

from ifmesh.protocol import Beat, Done, Drop, Received, Refused, Release, Step, Who
from tests.broker.service import Service
from tests.matrix.scene import AGAIN, BEAT, PATIENCE, Scene

DEAD = 5.0
"""Seconds of silence until a worker counts as dead."""

WHOLE = dict.fromkeys(("encoder", "stage_one", "stage_two", "upscaler", "guard"), 1)


def kill(service: Service) -> None:
    service.die("killed", "SIGKILL")


def test_row_18_a_worker_dies_at_step_n(seed: int) -> None:
    scene = Scene(seed, copies={"stage_two": 2}, steps={"stage_two": 20}).begin()
    scene.submit("a")
    scene.wait(scene.running("a", "stage_two", 5), 20.0)
    victim = scene.where("a")
    kill(scene[victim])
    scene.wait(lambda: scene.where("a") not in ("", victim), 1.0)
    scene.over(20.0)
    assert scene.begun("a") == {**WHOLE, "stage_two": 2}
    assert scene.hub.disk.rows["a"].blame == 0
    assert not [line for line in scene.story("a") if "blamed" in line]


@pytest.mark.parametrize("cause", ["killed", "crashed"])
def test_row_19_a_worker_dies_with_one_running_and_one_prefetched(seed: int, cause: Literal["killed", "crashed"]) -> None:
    """Both are back within a second; if the death was of its own making, it is held against the one that ran."""
    scene = Scene(seed, steps={"stage_one": 20}).begin()
    for job in ("a", "b"):
        scene.submit(job)
    scene.wait(lambda: scene.running("a", "stage_one")() and scene["stage_one-0"].keeper.tasks.keys() == {"a", "b"}, 20.0)
    scene["stage_one-0"].die(cause, "SIGSEGV")
    scene.wait(lambda: not scene.where("a") and not scene.where("b"), 1.0)
    scene.over(30.0)
    assert [scene.hub.disk.rows[job].blame for job in ("a", "b")] == [int(cause == "crashed"), 0]
    assert scene.begun("a") == {**WHOLE, "stage_one": 2}
    assert scene.begun("b") == WHOLE


def test_row_20_a_worker_dies_between_its_last_step_and_done(seed: int) -> None:
    scene = Scene(seed).begin()
    scene.cue(Done, lambda: kill(scene["stage_one-0"]), lambda who, m: who.startswith("stage_one"), lost=True)
    scene.submit("a")
    scene.over(20.0)
    assert scene.begun("a") == {**WHOLE, "stage_one": 2}


def test_row_21_a_worker_dies_with_the_only_copy(seed: int) -> None:
    """Done was said, and the next stage does not have the bag yet: exactly one stage runs again, never the prompt."""
    scene = Scene(seed).begin()
    scene.cue("bag", lambda: kill(scene["stage_one-0"]), lambda who, m: who == "stage_one-0 > stage_two-0", lost=True)
    scene.submit("a")
    scene.over(20.0)
    assert scene.begun("a") == {**WHOLE, "stage_one": 2}


def test_row_22_two_neighbours_die_while_the_bag_is_on_its_way(seed: int) -> None:
    """The one before them still has its own: back to there."""
    scene = Scene(seed).begin()

    def both() -> None:
        kill(scene["stage_two-0"])
        kill(scene["upscaler-0"])

    scene.cue("bag", both, lambda who, m: who == "stage_two-0 > upscaler-0", lost=True)
    scene.submit("a")
    scene.over(20.0)
    assert scene.begun("a") == {**WHOLE, "stage_two": 2}


def test_row_22_both_copies_die(seed: int) -> None:
    """The bag was in two places, and they die together: nothing older lives, so it begins anew."""
    scene = Scene(seed, steps={"upscaler": 20}).begin()
    scene.submit("a")
    scene.wait(scene.running("a", "upscaler", 3), 20.0)
    kill(scene["stage_two-0"])
    kill(scene["upscaler-0"])
    scene.over(40.0)
    assert scene.begun("a") == {**dict.fromkeys(WHOLE, 2), "guard": 1}


def test_row_29_a_worker_spins(seed: int) -> None:
    """Its heartbeats are fine, and nothing advances: killed by its parent, blamed, granted again."""
    scene = Scene(seed, copies={"stage_one": 2}, steps={"stage_one": 20}).begin()
    scene.submit("a")
    scene.wait(scene.running("a", "stage_one", 3), 20.0)
    victim = scene.where("a")
    scene[victim].hung = True
    scene.wait(lambda: scene.where("a") not in ("", victim), PATIENCE + BEAT + 1.0)
    assert scene.hub.broker.jobs["a"].blame == 1
    scene.wait(lambda: not scene[victim].hung, 5.0)  # another life of it
    scene.over(20.0)
    assert scene.begun("a") == {**WHOLE, "stage_one": 2}


def test_row_30_a_worker_sleeps_longer_than_the_dead(seed: int) -> None:
    """Its task went to another; what it still says of it does not count, and it is one of us again."""
    scene = Scene(seed, copies={"stage_one": 2}, steps={"stage_one": 150}).begin()
    scene.submit("a")
    scene.wait(scene.running("a", "stage_one", 3), 20.0)
    victim = scene[scene.where("a")]
    life = victim.life
    victim.pause(12.0)
    scene.wait(lambda: scene.where("a") not in ("", victim.name), DEAD + 0.1)
    newest = scene.hub.broker.jobs["a"].token
    scene.wait(lambda: not victim.paused, 12.0)
    scene.wait(lambda: life in scene.hub.broker.roster.lives and victim.task is None, AGAIN + 2 * BEAT)
    assert scene.hub.broker.jobs["a"].token == newest
    scene.over(60.0)
    assert scene.begun("a") == {**WHOLE, "stage_one": 2}
    assert victim.life == life


def test_row_30_its_late_done_is_fenced(seed: int) -> None:
    """It falls asleep between its last step and Done; meanwhile another has done it, and the job is further on."""
    scene = Scene(seed, copies={"stage_one": 2}, steps={"stage_two": 200}).begin()
    scene.cue(Done, lambda: scene[scene.where("a")].pause(12.0), lambda who, m: who.startswith("stage_one"), lost=True)
    scene.submit("a")
    scene.wait(scene.running("a", "stage_two"), 20.0)
    scene.over(60.0)
    assert scene.begun("a") == {**WHOLE, "stage_one": 2}


@pytest.mark.parametrize("late", ["running", "done"])
def test_row_30_what_is_under_an_older_token_does_not_count(seed: int, late: str) -> None:
    """Even when nobody has the task now: the one who was granted it meanwhile is dead.  It is granted anew."""
    scene = Scene(seed, copies={"stage_one": 2}, steps={"stage_one": 40}).begin()
    if late == "done":
        scene.cue(Done, lambda: scene[scene.where("a")].pause(12.0), lambda who, m: who.startswith("stage_one"), lost=True)
    scene.submit("a")
    scene.wait(scene.running("a", "stage_one", 3), 20.0)
    victim = scene.where("a")
    if late == "running":
        scene[victim].pause(12.0)
    scene.wait(lambda: scene.where("a").startswith("stage_one") and scene.where("a") != victim, 20.0)
    other = scene[scene.where("a")]
    scene.wait(scene.running("a", "stage_one", 3), 5.0)
    other.gone = True
    kill(other)
    scene.wait(lambda: not scene[victim].paused, 12.0)
    scene.over(60.0)
    assert scene.begun("a") == {**WHOLE, "stage_one": 3}


@pytest.mark.parametrize("late", ["running", "done"])
def test_row_31_a_worker_sleeps_and_nobody_could_take_over(seed: int, late: str) -> None:
    """What it has when it wakes counts."""
    scene = Scene(seed, steps={"stage_one": 20}).begin()
    victim = scene["stage_one-0"]
    if late == "done":
        scene.cue(Done, lambda: victim.pause(12.0), lambda who, m: who.startswith("stage_one"), lost=True)
    scene.submit("a")
    if late == "running":
        scene.wait(scene.running("a", "stage_one", 3), 20.0)
        victim.pause(12.0)
    scene.wait(lambda: victim.paused, 20.0)
    scene.wait(lambda: not scene.hub.broker.jobs["a"].life, DEAD + BEAT)
    scene.wait(lambda: not victim.paused, 12.0)
    if late == "running":
        scene.wait(lambda: scene.where("a") == victim.name, AGAIN + 2 * BEAT)
    else:
        scene.wait(lambda: scene.where("a") == "stage_two-0", AGAIN + 2 * BEAT)
    scene.over(30.0)
    assert scene.begun("a") == WHOLE


def test_row_32_a_worker_is_back_before_it_counts_as_dead(seed: int) -> None:
    scene = Scene(seed, steps={"stage_one": 20}).begin()
    scene.submit("a")
    scene.wait(scene.running("a", "stage_one", 3), 20.0)
    victim = scene["stage_one-0"]
    victim.die("killed", "SIGKILL", witness=False)
    scene.later(0.1, victim.start)
    scene.wait(lambda: victim.life, 0.2)
    scene.wait(lambda: scene.hub.broker.jobs["a"].life == victim.life, 1.0)
    scene.over(20.0)
    assert scene.begun("a") == {**WHOLE, "stage_one": 2}


def test_row_33_an_old_life_still_speaks(seed: int) -> None:
    """Whatever it says: nothing changes, and it is told to end."""
    scene = Scene(seed, steps={"stage_one": 40}).begin()
    scene.submit("a")
    scene.wait(scene.running("a", "stage_one", 3), 20.0)
    victim = scene["stage_one-0"]
    old, token, beat = victim.life, scene.hub.broker.jobs["a"].token, victim.keeper._number
    victim.die("killed", "SIGKILL", witness=False)
    scene.later(0.1, victim.start)
    scene.wait(lambda: victim.life and scene.hub.broker.jobs["a"].life == victim.life and scene.running("a", "stage_one")(), 5.0)
    before = scene.hub.broker.jobs["a"].token
    for message in (
        Beat(old, beat + 1, "ready", ()),  # that it has lost everything
        Step(old, "a", token, 39, 40),
        Received(old, "a", token),
        Done(old, "a", token, "0" * 32, 100, 40, 1.0),
    ):
        scene.hub.hears(old.encode(), message)
    scene.pass_by(0.1)
    assert (scene.hub.broker.jobs["a"].token, scene.hub.broker.jobs["a"].life) == (before, victim.life)
    assert scene.hub.broker.jobs["a"].step < 39
    assert {type(p.message) for p in scene.said(Refused, old)} == {Refused}
    scene.over(20.0)
    assert scene.begun("a") == {**WHOLE, "stage_one": 2}


def test_row_36_poison(seed: int) -> None:
    scene = Scene(seed, copies={"stage_one": 2}).begin()
    scene.submit("poison-a", "poison:stage_one")
    others = [f"fox-{n}" for n in range(6)]
    for job in others:
        scene.submit(job)
    scene.over(60.0)
    ending = scene.failed("poison-a")
    assert ending.cause == "poison"
    assert "crashed: signal 6" in ending.error
    assert scene.begun("poison-a")["stage_one"] == scene.deaths <= 4
    assert scene.finished(*others)
    assert all(scene.hub.disk.rows[job].blame == 0 for job in others)


def test_row_37_a_request_that_makes_the_stage_raise(seed: int) -> None:
    """Out of memory, for its size: three tries, and the workers live."""
    scene = Scene(seed, copies={"stage_one": 2}).begin()
    scene.submit("raises-a", "raises:stage_one")
    scene.submit("fox-b")
    scene.over(30.0)
    assert (scene.failed("raises-a").cause, scene.begun("raises-a")["stage_one"]) == ("error", 3)
    assert scene.finished("fox-b")
    assert scene.deaths == 0


def test_row_38_a_bad_worker(seed: int) -> None:
    """It kills whatever it is given; after three different requests it is put aside, and they are given back their tries."""
    scene = Scene(seed, copies={"stage_one": 2}, steps={"stage_one": 10}).begin()
    scene["stage_one-0"].cursed = True
    jobs = [f"fox-{n}" for n in range(12)]
    for job in jobs:
        scene.submit(job)
    scene.over(120.0)
    assert scene.hub.broker.roster.aside == {"stage_one-0"}
    assert scene.finished(*jobs)
    rows = [scene.hub.disk.rows[job] for job in jobs]
    assert sum(row.given_back for row in rows) >= 1
    assert all(row.blame < scene.policy.alone for row in rows)
    assert scene.deaths <= 6


def test_row_49_drained_while_it_runs(seed: int) -> None:
    scene = Scene(seed, steps={"stage_one": 20}).begin()
    for job in ("a", "b"):
        scene.submit(job)
    scene.wait(scene.running("a", "stage_one", 3), 20.0)
    victim = scene["stage_one-0"]
    victim.gone = True  # it is not started again
    victim.drain()
    scene.wait(lambda: not victim.life, 90.0)
    assert scene.drained == 1
    assert scene.begun("a")["stage_one"] == 1
    victim.come_back()
    scene.over(20.0)
    assert all(run == 1 for job in ("a", "b") for run in scene.begun(job).values())


def test_row_49_drained_with_something_in_the_outbox(seed: int) -> None:
    """There is nobody yet to take it: it waits, and leaves when it has been handed over."""
    scene = Scene(seed, copies={"stage_two": 0}).begin()
    scene.submit("a")
    victim = scene["stage_one-0"]
    scene.wait(lambda: "a" in victim.keeper.outbox, 20.0)
    victim.gone = True
    victim.drain()
    scene.pass_by(60.0)
    assert victim.life
    scene.hire("stage_two-0", "stage_two").start()
    scene.wait(lambda: not victim.life, 30.0)
    assert scene.drained == 1
    victim.come_back()
    scene.over(30.0)
    assert scene.begun("a") == WHOLE


def test_row_49_told_to_end_a_second_time(seed: int) -> None:
    """It leaves things undone; that is held against nobody."""
    scene = Scene(seed, steps={"stage_one": 20}).begin()
    scene.submit("a")
    scene.wait(scene.running("a", "stage_one", 3), 20.0)
    victim = scene["stage_one-0"]
    victim.drain()
    scene.pass_by(0.2)
    victim.die("ended", "exit code 75")
    scene.wait(lambda: not scene.hub.broker.jobs["a"].life, 1.0)
    scene.over(30.0)
    assert scene.hub.disk.rows["a"].blame == 0
    assert scene.begun("a") == {**WHOLE, "stage_one": 2}


def test_strangers_are_asked_who_they_are(seed: int) -> None:
    """The scenes show what they should: a silent Who, Drop or Release would go unnoticed in most of them."""
    scene = Scene(seed, steps={"stage_one": 20}).begin()
    scene.submit("a")
    scene.wait(scene.running("a", "stage_one"), 20.0)
    scene.crash()
    scene.over(30.0)
    assert scene.said(Who)
    assert scene.said(Release)
    assert not scene.said(Drop)
    assert len(scene.grants()) == 5

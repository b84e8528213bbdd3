"""Rows 42 to 44 and 48 in the simulator: partitions."""

from __future__ import annotations

import pytest

from ifmesh.protocol import Run
from ifmesh.request import STAGES
from tests.matrix.scene import AGAIN, BEAT, Scene

WHOLE = dict.fromkeys(STAGES, 1)


@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("seconds", [3.0, 20.0, 120.0])
def test_row_42_a_worker_is_cut_off_from_the_coordinator(seed: int, seconds: float, spare: bool) -> None:
    """Three seconds: nothing is granted again.  Longer: another takes it; where there is none, it is adopted.  One result."""
    scene = Scene(seed, copies={"stage_one": 1 + spare}, steps={"stage_one": 60}).begin()
    scene.submit("a")
    scene.wait(scene.running("a", "stage_one", 3), 20.0)
    victim = scene.where("a")
    scene.cut(victim, seconds)
    if seconds > 10 and spare:
        scene.wait(lambda: scene.where("a") not in ("", victim), scene.policy.silence + BEAT)
    scene.over(seconds + 60.0, rest=seconds + 12.0)
    assert len(scene.grants("stage_one")) == (2 if seconds > 10 and spare else 1)
    assert scene.begun("a") == {**WHOLE, "stage_one": 2 if seconds > 10 and spare else 1}


@pytest.mark.parametrize("seconds", [20.0, 120.0])
def test_row_42_it_is_there_again_three_seconds_after_the_heal(seed: int, seconds: float) -> None:
    scene = Scene(seed).begin()
    life = scene["stage_one-0"].life
    scene.cut("stage_one-0", seconds)
    scene.wait(lambda: life not in scene.hub.broker.roster.lives, scene.policy.silence + 2 * BEAT)
    scene.wait(lambda: life in scene.hub.broker.roster.lives, seconds + 3.0)
    scene.submit("a")
    scene.over(20.0)


def test_row_43_two_neighbours_are_cut_off_from_each_other(seed: int) -> None:
    """After three tries the bag goes by the coordinator, although there is another of that stage."""
    scene = Scene(seed, copies={"stage_two": 2}).begin()
    scene.cue(Run, lambda: scene.links.hole("stage_one-0", scene.where("a"), 1e6), lambda who, m: who.startswith("stage_two"))
    scene.submit("a")
    scene.wait(lambda: "stage_two" in scene.where("a"), 20.0)
    victim = scene.where("a")
    scene.wait(lambda: scene.said("relay"), 3 * (scene.policy.transfer + BEAT) + 0.1)
    scene.wait(scene.running("a", "stage_two", 0), 0.1)
    assert scene.where("a") == victim
    scene.over(20.0)
    assert scene.begun("a") == WHOLE
    assert len(scene.said("bag", "stage_one-0 >")) == 3


def test_row_43_nor_is_there_a_way_by_the_coordinator(seed: int) -> None:
    """Then another of that stage gets it."""
    scene = Scene(seed, copies={"stage_two": 2}).begin()

    def cut_off() -> None:
        for other in ("stage_one-0", "hub"):
            scene.links.hole(other, scene.where("a"), 1e6)

    scene.cue(Run, cut_off, lambda who, m: who.startswith("stage_two"))
    scene.submit("a")
    scene.wait(lambda: "stage_two" in scene.where("a"), 20.0)
    victim = scene.where("a")
    scene.wait(lambda: scene.where("a") not in ("", victim), 4 * (scene.policy.transfer + BEAT) + 0.1)
    assert len(scene.said("relay")) == 1
    scene.over(20.0)
    assert scene.begun("a") == WHOLE


def test_row_43_two_neighbours_are_cut_off_and_there_is_no_other(seed: int) -> None:
    """The bag goes by the coordinator, and that of the next job at once."""
    scene = Scene(seed).begin()
    scene.links.hole("stage_one-0", "stage_two-0", 1e6)
    scene.submit("a")
    scene.wait(lambda: scene.said(Run, "stage_two"), 20.0)
    scene.wait(scene.running("a", "stage_two", 0), 3 * (scene.policy.transfer + BEAT) + 0.1)
    scene.submit("b")
    scene.over(10.0)
    assert scene.begun("a") == scene.begun("b") == WHOLE
    assert len(scene.said("bag", "stage_one-0 >")) == 3


def test_row_44_the_answers_do_not_come_through(seed: int) -> None:
    """The heartbeats do.  The worker makes its socket anew; it keeps its task."""
    scene = Scene(seed, steps={"stage_one": 150}).begin()
    scene.submit("a")
    scene.wait(scene.running("a", "stage_one", 3), 20.0)
    scene.cut("stage_one-0", 4.0, up=False)
    scene.wait(lambda: scene.rebuilds, 5.0)
    scene.wait(lambda: scene.links.open(scene["stage_one-0"].link.peer), 5.0)
    scene.over(40.0)
    assert len(scene.grants("stage_one")) == 1
    assert scene.begun("a") == WHOLE


def test_row_44_for_a_while(seed: int) -> None:
    """Nor does a new connection come up: then another gets the task, and there is one result."""
    scene = Scene(seed, copies={"stage_one": 2}, steps={"stage_one": 60}).begin()
    scene.submit("a")
    scene.wait(scene.running("a", "stage_one", 3), 20.0)
    scene.cut(scene.where("a"), 30.0, up=False)
    scene.over(60.0, rest=45.0)
    assert scene.begun("a") == {**WHOLE, "stage_one": 2}


def test_row_48_swizzle(seed: int) -> None:
    """One link after the other is cut, clients' and bags' too, and they heal in another order."""
    scene = Scene(seed, copies=2, clients=2, pace=0.05).begin()
    jobs = [f"fox-{n}" for n in range(6)]
    for n, job in enumerate(jobs):
        scene.submit(job, client=n % 2)
    names = [s.name for s in scene.services]
    order = scene.rng.sample(range(len(names)), len(names))
    for place, name in zip(order, names, strict=True):
        scene.cut(name, 12.0 - 1.1 * place + 0.5 * names.index(name))
        scene.links.hole(name, names[place], 8.0 + place / 10)
        scene.pass_by(0.5)
    for patron, seconds in zip(scene.patrons, (7.0, 3.0), strict=True):
        scene.links.cut(patron.link, seconds, up=True, down=True)
    scene.pass_by(12.0)
    scene.links.heal()
    scene.over(10.0 + AGAIN)
    assert scene.finished(*jobs)

"""Rows 1 to 5, 40 and 41 in the simulator: what a client says, and when it stops waiting."""

from __future__ import annotations

import pytest

from ifmesh.protocol import Accepted, Cancelled, Drop, Finished, Submit
from tests.matrix.scene import Scene

WHOLE = dict.fromkeys(("encoder", "stage_one", "stage_two", "upscaler", "guard"), 1)


def test_row_01_a_submit_is_lost(seed: int) -> None:
    scene = Scene(seed).begin()
    scene.lose(Submit)
    wish = scene.submit("a")
    scene.wait(lambda: wish.accepted, 5.0)
    scene.over(15.0)
    assert len(scene.said(Submit)) == 2
    assert scene.begun("a") == WHOLE


def test_row_02_accepted_is_lost(seed: int) -> None:
    """And all else that would tell the client of it."""
    scene = Scene(seed).begin()
    wish = scene.submit("a")
    scene.links.mute = lambda way, who: way == "down" and who.startswith("client")
    scene.wait(lambda: "a" in scene.hub.disk.rows, 1.0)
    scene.pass_by(0.5)
    assert not wish.accepted
    scene.links.mute = lambda way, who: False
    scene.wait(lambda: wish.accepted, 5.0)
    scene.over(15.0)
    assert scene.grants("encoder") == ["a"]
    assert scene.begun("a") == WHOLE


@pytest.mark.parametrize("away", [0.5, 30.0])
def test_row_03_a_client_dies_after_accepted(seed: int, away: float) -> None:
    """And comes back with its job id, before the end or after it."""
    scene = Scene(seed, pace=0.05).begin()
    wish = scene.submit("a")
    scene.wait(lambda: wish.accepted, 1.0)
    (patron,) = scene.patrons
    patron.vanish()
    scene.pass_by(away)
    patron.start()
    scene.wait(lambda: wish.fetched, 5.0)
    scene.over(1.0)
    assert scene.begun("a") == WHOLE


def test_row_05_two_clients_submit_the_same_id_at_the_same_moment(seed: int) -> None:
    scene = Scene(seed, clients=2).begin()
    wishes = [scene.submit("a", client=client) for client in (0, 1)]
    scene.wait(lambda: all(wish.accepted for wish in wishes), 0.1)
    assert len(scene.said(Accepted)) == 2
    scene.over(15.0)
    assert wishes[0].ending == wishes[1].ending
    assert scene.begun("a") == WHOLE


def test_row_40_cancelled_while_queued(seed: int) -> None:
    scene = Scene(seed, steps=20).begin()
    for job in ("a", "b", "c"):
        scene.submit(job, last_stage="encoder", task="encode")
    scene.wait(lambda: scene.hub.broker.queues["encoder"], 1.0)
    (patron,) = scene.patrons
    patron.cancel("c")
    scene.wait(lambda: patron.wishes["c"].ending, 0.1)
    assert isinstance(patron.wishes["c"].ending, Cancelled)
    scene.over(20.0)
    assert scene.begun("c") == {}


def test_row_40_cancelled_while_running(seed: int) -> None:
    scene = Scene(seed, steps=50).begin()
    wish = scene.submit("a")
    scene.wait(scene.running("a", "stage_one", 3), 20.0)
    scene.patrons[0].cancel("a")
    scene.wait(lambda: scene["stage_one-0"].task is None, 1.5 * scene.pace)  # a step may take so long
    scene.wait(lambda: wish.ending, 0.1)
    assert isinstance(wish.ending, Cancelled)
    scene.over(1.0)


@pytest.mark.parametrize("committed", [False, True])
def test_row_40_cancelled_while_it_is_published(seed: int, committed: bool) -> None:
    """Its result wins only if that was committed first."""
    scene = Scene(seed).begin()
    wish = scene.submit("a")
    if committed:  # the Cancel is on its way when the ending is on disk, and not yet told
        scene.cue(Finished, lambda: scene.patrons[0].cancel("a"))
    else:
        scene.cue("result", lambda: scene.patrons[0].cancel("a"))
    scene.over(15.0)
    assert isinstance(wish.ending, Finished if committed else Cancelled)
    assert isinstance(scene.hub.disk.rows["a"].ending, Finished if committed else Cancelled)


def test_row_41_the_deadline_passes_while_queued(seed: int) -> None:
    scene = Scene(seed, steps=200).begin()
    scene.submit("a", last_stage="encoder", task="encode")
    scene.submit("b", last_stage="encoder", task="encode")
    hurry = scene.submit("hurry-c", last_stage="encoder", task="encode", deadline=3.0)
    scene.wait(lambda: hurry.ending, 4.0)
    assert scene.failed("hurry-c").cause == "expired"
    scene.over(60.0)
    assert scene.begun("hurry-c") == {}


def test_row_41_the_deadline_passes_while_running(seed: int) -> None:
    """And the worker is free within a step."""
    scene = Scene(seed, steps=100).begin()
    hurry = scene.submit("hurry-a", deadline=3.0)
    scene.wait(lambda: hurry.ending, 4.0)
    assert scene.failed("hurry-a").cause == "expired"
    scene.wait(lambda: scene["encoder-0"].task is None, 1.5 * scene.pace)
    assert len(scene.said(Drop)) == 1
    scene.over(1.0)


def test_row_41_the_deadline_passes_while_its_bag_is_on_the_way(seed: int) -> None:
    scene = Scene(seed).begin()
    scene.lose("bag", times=100, fits=lambda who, m: m.stage == "encoder" and not who.startswith("hub"))
    hurry = scene.submit("hurry-a", deadline=3.0)
    scene.wait(lambda: hurry.ending, 4.0)
    ending = scene.failed("hurry-a")
    assert (ending.cause, ending.stage) == ("expired", "stage_one")
    scene.over(2.0)
    assert scene.begun("hurry-a") == {"encoder": 1}


def test_row_41_the_deadline_of_waiting_passes(seed: int) -> None:
    scene = Scene(seed, steps=200).begin()
    scene.submit("a", last_stage="encoder", task="encode")
    scene.submit("b", last_stage="encoder", task="encode")
    hurry = scene.submit("hurry-c", last_stage="encoder", task="encode", deadline_queued=3.0)
    scene.wait(lambda: hurry.ending, 4.0)
    assert scene.failed("hurry-c").cause == "expired"
    scene.over(60.0)


def test_row_41_the_deadline_of_running_passes(seed: int) -> None:
    """It counts from the beginning of the first stage, however long it has waited before."""
    scene = Scene(seed, steps=30).begin()
    scene.submit("a", last_stage="encoder", task="encode")
    hurry = scene.submit("hurry-b", deadline_running=5.0)
    scene.wait(scene.running("hurry-b", "encoder"), 10.0)
    took = scene.wait(lambda: hurry.ending, 6.0)
    assert took > 4.0
    assert scene.failed("hurry-b").cause == "expired"
    scene.over(10.0)

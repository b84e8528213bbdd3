"""Rows 24 to 27, 34 and 35 in the simulator: bags and results on their way."""

from __future__ import annotations

from typing import Any

from ifmesh.protocol import Header, Received, Release, Run
from tests.broker.toyland import digest
from tests.matrix.scene import BEAT, Scene

WHOLE = dict.fromkeys(("encoder", "stage_one", "stage_two", "upscaler", "guard"), 1)


def to_stage_two(who: str, message: Any) -> bool:
    return who.startswith("stage_one") and "> stage_two" in who


def test_row_24_the_receiver_dies_while_its_bag_is_in_flight(seed: int) -> None:
    scene = Scene(seed, copies={"stage_two": 2}).begin()
    victims: list[str] = []

    def strike() -> None:
        victims.append(scene.where("a"))
        scene[victims[0]].die("killed", "SIGKILL")

    scene.cue("bag", strike, to_stage_two)
    scene.submit("a")
    scene.wait(lambda: victims, 20.0)
    scene.wait(lambda: scene.said(Received, "stage_two"), scene.policy.transfer)
    first, second = (p for p in scene.said("bag") if to_stage_two(p.who, p.message))
    assert second.who != first.who
    assert second.message.token > first.message.token
    scene.over(20.0)
    assert scene.begun("a") == WHOLE


def test_row_25_a_bag_is_spoilt_on_its_way(seed: int) -> None:
    """The digest says so; the same grant gets it again."""
    scene = Scene(seed).begin()
    cue = scene.cue("bag", fits=to_stage_two, spoilt=True)
    scene.submit("a")
    scene.wait(lambda: cue.met, 20.0)
    scene.wait(lambda: scene.said(Received, "stage_two"), scene.policy.transfer + BEAT + 0.1)
    first, second = (p for p in scene.said("bag") if to_stage_two(p.who, p.message))
    assert second.message == first.message
    scene.over(20.0)
    assert scene.begun("a") == WHOLE


def test_row_26_a_bag_comes_before_its_run(seed: int) -> None:
    """It is kept, and used as soon as the Run is said again, with the next heartbeat; it is not sent a second time."""
    scene = Scene(seed).begin()
    cue = scene.lose(Run, fits=lambda who, m: who.startswith("stage_two"))
    scene.submit("a")
    scene.wait(lambda: cue.met, 20.0)
    scene.wait(lambda: scene.said(Received, "stage_two"), BEAT + 0.1)
    assert len([p for p in scene.said("bag") if to_stage_two(p.who, p.message)]) == 1
    scene.over(20.0)
    assert scene.begun("a") == WHOLE


def test_row_27_a_bag_under_an_old_token(seed: int) -> None:
    """Before, while and after the true one is there: dropped, and nothing runs of it."""
    scene = Scene(seed, steps={"stage_two": 20}).begin()
    scene.cue("bag", lambda: scene["stage_two-0"].die("killed", "SIGKILL"), to_stage_two)
    scene.submit("a")
    scene.wait(scene.running("a", "stage_two"), 20.0)
    old = next(p for p in scene.said("bag") if to_stage_two(p.who, p.message)).message
    receiver, newest = scene["stage_two-0"], scene.hub.broker.jobs["a"].token
    assert old.token < newest
    forged = b"another bag altogether"
    received = len(scene.said(Received))
    for header in (
        old,
        Header("bag", "a", "stage_one", old.token, digest(forged)),
        Header("bag", "a", "stage_one", newest, digest(forged)),
    ):
        receiver.arrives(receiver.life, header, forged)
    receiver.arrives("stage_two-0.1", old, forged)  # to the life before
    scene.pass_by(0.1)
    assert len(scene.said(Received)) == received
    scene.over(20.0)
    assert scene.begun("a") == {**WHOLE, "stage_two": 1}


def test_row_34_the_result_is_lost(seed: int) -> None:
    """Twice.  It is asked for again when it can no longer be under way."""
    scene = Scene(seed).begin()
    lost = scene.lose("result", times=2)
    scene.submit("a")
    scene.wait(lambda: lost.met, 20.0)
    for _ in range(2):
        before = len(scene.said("result"))
        scene.wait(lambda before=before: len(scene.said("result")) > before, scene.policy.transfer + BEAT + 0.1)  # type: ignore[misc]
    scene.over(2 * BEAT)
    assert len(scene.said("result")) == 3
    assert scene.begun("a") == WHOLE


def test_row_35_the_result_comes_twice(seed: int) -> None:
    """The second changes nothing; both are followed by Release."""
    scene = Scene(seed).begin()
    scene.cue("result", twice=True)
    scene.submit("a")
    scene.wait(lambda: "a" in scene.hub.disk.results, 20.0)
    scene.over(2.0)
    assert len(scene.said(Release, "guard")) == 1
    assert scene.begun("a") == WHOLE

"""Rows 6 to 12, 14, 16, 51 and 59 in the simulator: the coordinator dies, sleeps, or its disk does."""

from __future__ import annotations

import pytest

from ifmesh.commands import Blame, Book, Close, Send
from ifmesh.protocol import Finished, Refused, Run, Verdicts, Welcome
from tests.broker.patron import Wish
from tests.matrix.scene import AGAIN, BEAT, Scene

DEAD = 5.0
"""Seconds of grace after a restart, and of silence until a worker counts as dead."""

WHOLE = dict.fromkeys(("encoder", "stage_one", "stage_two", "upscaler", "guard"), 1)


def test_row_06_the_coordinator_dies_between_submit_and_commit(seed: int) -> None:
    """The client's half: it is not told what is not so, and its own repeat brings the job through."""
    scene = Scene(seed).begin()
    scene.crash_at("before the commit", lambda commands: any(isinstance(c, Book) for c in commands))
    wish = scene.submit("a")
    scene.wait(lambda: not scene.hub.alive, 1.0)
    assert not scene.hub.disk.rows
    scene.wait(lambda: scene.hub.alive, 2.0)
    assert not wish.accepted
    scene.wait(lambda: wish.accepted, 5.0)
    scene.over(15.0)
    assert scene.begun("a") == WHOLE


def test_row_07_the_coordinator_dies_between_commit_and_accepted(seed: int) -> None:
    scene = Scene(seed).begin()
    scene.crash_at("after the commit", lambda commands: any(isinstance(c, Book) for c in commands))
    wish = scene.submit("a")
    scene.wait(lambda: not scene.hub.alive, 1.0)
    assert list(scene.hub.disk.rows) == ["a"]
    assert not wish.accepted
    scene.wait(lambda: scene.hub.alive, 2.0)
    scene.wait(lambda: wish.accepted, 3.0 + 1.0)  # and a second for the connection
    scene.over(20.0)
    assert scene.begun("a") == WHOLE


def test_row_08_the_coordinator_dies_between_a_grant_and_its_run(seed: int) -> None:
    scene = Scene(seed, copies={"encoder": 0})
    scene.begin()
    late = scene.hire("encoder-0", "encoder")
    wish = scene.submit("a")
    scene.wait(lambda: wish.accepted, 1.0)
    scene.crash_at("after the commit", lambda commands: any(isinstance(c, Send) and isinstance(c.message, Run) for c in commands))
    late.start()
    scene.wait(lambda: not scene.hub.alive, 5.0)
    assert not scene.said(Run)
    scene.wait(lambda: scene.hub.alive, 2.0)
    scene.wait(lambda: scene.said(Run), DEAD + 0.1)
    assert scene.said(Run)[0].message.token[0] == 2
    scene.over(15.0)
    assert scene.begun("a") == WHOLE


def test_row_09_the_coordinator_dies_while_eight_tasks_run(seed: int) -> None:
    scene = Scene(seed, copies={"stage_one": 8}, steps={"stage_one": 150}).begin()
    jobs = [f"fox-{n}" for n in range(8)]
    for job in jobs:
        scene.submit(job, last_stage="stage_one")
    scene.wait(lambda: all(scene.running(job, "stage_one")() for job in jobs), 150.0)
    tokens = {job: scene.hub.broker.jobs[job].token for job in jobs}
    scene.crash()
    scene.wait(lambda: scene.hub.alive, 2.0)
    scene.wait(lambda: all(scene.running(job, "stage_one")() for job in jobs), AGAIN + 2 * BEAT)
    assert {job: scene.hub.broker.jobs[job].token for job in jobs} == tokens, "adopted, under their own tokens"
    scene.over(60.0)
    for job in jobs:
        assert scene.begun(job) == {"encoder": 1, "stage_one": 1, "guard": 1}


def test_row_10_the_coordinator_dies_between_the_result_on_disk_and_its_commit(seed: int) -> None:
    scene = Scene(seed).begin()
    scene.crash_at("before the commit", lambda commands: any(isinstance(c, Close) for c in commands))
    scene.submit("a")
    scene.wait(lambda: not scene.hub.alive, 15.0)
    before = dict(scene.hub.disk.results)
    assert list(before) == ["a"]
    assert scene.hub.disk.rows["a"].ending is None
    scene.wait(lambda: scene.hub.alive, 2.0)
    scene.wait(lambda: scene.hub.disk.rows["a"].ending, AGAIN + 2 * BEAT + 0.5)
    scene.over(5.0)
    assert scene.hub.disk.results == before
    assert len(scene.said("result")) == 2
    assert scene.begun("a") == WHOLE


def test_row_11_the_coordinator_dies_between_the_published_commit_and_its_news(seed: int) -> None:
    scene = Scene(seed).begin()
    scene.crash_at("after the commit", lambda commands: any(isinstance(c, Close) for c in commands))
    wish = scene.submit("a")
    scene.wait(lambda: not scene.hub.alive, 15.0)
    assert wish.ending is None
    assert scene.finished("a")
    scene.wait(lambda: scene.hub.alive, 2.0)
    scene.wait(lambda: wish.ending and not scene["guard-0"].held, 4.0)
    scene.over(2.0)
    assert scene.begun("a") == WHOLE


@pytest.mark.parametrize("stage", ["stage_one", "stage_two", "guard"])
def test_row_12_what_was_not_on_disk_is_lost(seed: int, stage: str) -> None:
    """Grants and hand-overs are in no journal at all; of what is in it, blame is lost here.  The next epoch adopts, or runs again."""
    scene = Scene(seed, steps=20).begin()
    scene.submit("a")
    scene.wait(scene.running("a", stage), 30.0)
    scene.hub.disk.rows["a"].blame = 0
    scene.crash()
    if stage == "stage_two":  # and its worker is gone, too
        scene[f"{stage}-0"].die("killed", "SIGKILL")
    scene.wait(lambda: scene.hub.alive, 2.0)
    scene.wait(lambda: scene.hub.broker.jobs["a"].life, DEAD + BEAT)
    scene.over(60.0)
    assert scene.begun("a") == {**WHOLE, "stage_two": 2 if stage == "stage_two" else 1}
    tokens = [run.message.token for run in scene.said(Run)]
    assert tokens == sorted(tokens)


def test_row_12_blame_that_is_lost_does_not_save_the_poison(seed: int) -> None:
    scene = Scene(seed, pace=0.05).begin()
    scene.submit("poison-a", "poison:stage_one", last_stage="stage_one")
    scene.crash_at("before the commit", lambda commands: any(isinstance(c, Blame) and c.count == 2 for c in commands))
    scene.over(60.0)
    assert scene.failed("poison-a").cause == "poison"
    assert scene.begun("poison-a")["stage_one"] <= scene.policy.blames + 1


def disk_fails(scene: Scene) -> Wish:
    """It takes nothing, a job runs, and another one has just been submitted: that is what the coordinator waits for."""
    scene.submit("old")
    scene.wait(scene.running("old", "stage_one"), 10.0)
    scene.hub.full = True
    waits = scene.submit("waits")
    scene.wait(lambda: scene.hub.bider.waiting, 1.0)
    return waits


def untold(scene: Scene, seconds: float) -> None:
    """Nobody is told what is not on disk, of new jobs that there is no room, and nobody is given up."""
    lives, before = set(scene.hub.broker.roster.lives), len(scene.links.passed)
    new = scene.submit("new")
    scene.wait(lambda: new.refused, 0.1)
    scene.pass_by(seconds)
    told = {type(p.message) for p in scene.links.passed[before:] if p.way == "down"}
    assert told <= {Verdicts, Welcome, Refused}
    (refused, *_) = [p.message for p in scene.said(Refused)]
    assert (refused.job, refused.reason) == ("new", "busy")
    assert "the disk does not take the journal" in refused.detail
    assert {p.message.job for p in scene.said(Refused)} == {"new"}, "what is already booked, or about to be, is not refused"
    assert not new.accepted
    assert set(scene.hub.broker.roster.lives) == lives
    assert scene.hub.disk.rows.keys() == {"old"}
    assert scene.hub.disk.rows["old"].ending is None


@pytest.mark.parametrize("seconds", [1.0, 30.0])
def test_row_14_the_disk_takes_nothing_for_a_while(seed: int, seconds: float) -> None:
    """What could not be committed was told to nobody; new jobs are refused; when there is room again, all of it goes on."""
    scene = Scene(seed, steps=10).begin()
    waits = disk_fails(scene)
    untold(scene, seconds)
    assert not waits.accepted
    scene.hub.full = False
    scene.wait(lambda: waits.accepted, 1.1)
    scene.over(30.0)
    assert scene.finished("old", "waits", "new")
    assert scene.begun("old") == scene.begun("waits") == scene.begun("new") == WHOLE
    assert not scene.deaths
    assert scene.hub.epoch == 1


def test_row_14_the_disk_fails_when_a_job_has_ended(seed: int) -> None:
    """It has not, for anybody; and then it has, without another step."""
    scene = Scene(seed).begin()
    old = scene.submit("old")
    scene.cue("result", lambda: setattr(scene.hub, "full", True))
    scene.wait(lambda: scene.hub.full and scene.hub.bider.waiting, 15.0)
    untold(scene, 10.0)
    assert old.ending is None
    scene.hub.full = False
    scene.wait(lambda: old.ending, 1.1)
    scene.over(30.0)
    assert scene.finished("old", "new")
    assert scene.begun("old") == scene.begun("new") == WHOLE


def test_row_14_the_coordinator_dies_while_it_waits_for_its_disk(seed: int) -> None:
    """What waited is forgotten, and its client says it again."""
    scene = Scene(seed, steps=10).begin()
    waits = disk_fails(scene)
    untold(scene, 3.0)
    scene.crash()
    scene.wait(lambda: scene.hub.alive, 2.0)
    assert scene.hub.disk.rows.keys() == {"old"}
    scene.pass_by(3.0)
    assert not waits.accepted
    scene.hub.full = False
    scene.wait(lambda: waits.accepted, 5.0)
    scene.over(30.0)
    assert scene.begun("old") == scene.begun("waits") == scene.begun("new") == WHOLE


@pytest.mark.parametrize("lost", [False, True])
def test_row_16_the_coordinator_is_stopped_for_twenty_seconds(seed: int, lost: bool) -> None:
    """Nobody is lost for a silence that it could not hear.  lost: nor can it afterwards, because the connections have gone meanwhile."""
    scene = Scene(seed, copies={"stage_one": 2}, steps={"stage_one": 400}).begin()
    for job in ("a", "b"):
        scene.submit(job, last_stage="stage_one")
    scene.wait(lambda: all(scene.running(job, "stage_one")() for job in ("a", "b")), 150.0)
    lives = set(scene.hub.broker.roster.lives)
    scene.hub.pause(20.0)
    scene.links.mute = lambda way, who: lost and way == "up"
    scene.pass_by(20.0)
    scene.links.mute = lambda way, who: False
    before = {job: scene.hub.broker.jobs[job].step for job in ("a", "b")}
    scene.wait(lambda: all(scene.hub.broker.jobs[job].step > before[job] for job in before), 2 * BEAT)
    scene.pass_by(2 * BEAT)
    assert set(scene.hub.broker.roster.lives) == lives
    assert not [line for job in ("a", "b") for line in scene.story(job) if "retried" in line]
    scene.over(150.0)
    assert all(scene.begun(job) == {"encoder": 1, "stage_one": 1, "guard": 1} for job in ("a", "b"))


def test_row_51_no_coordinator_for_ten_minutes(seed: int) -> None:
    """What was running is finished, and kept; nothing runs again."""
    scene = Scene(seed, copies={"stage_one": 2}, steps=10).begin()
    jobs = ("a", "b", "c")
    for job in jobs:
        scene.submit(job)
    scene.wait(scene.running("a", "stage_one"), 20.0)
    scene.crash(back=600.0)
    scene.pass_by(599.0)
    assert {job for s in scene.services for job in s.keeper.outbox} == set(jobs)
    assert all(s.task is None for s in scene.services)
    scene.wait(lambda: scene.hub.alive, 2.0)
    scene.over(60.0)
    assert scene.finished(*jobs)
    assert all(scene.begun(job) == WHOLE for job in jobs)


@pytest.mark.parametrize("hours", [-1, 1])
def test_row_59_the_wall_clock_jumps_by_an_hour(seed: int, hours: int) -> None:
    """Between acceptance and a restart, which is when the wall clock is asked at all: nobody is lost, and nothing runs again."""
    scene = Scene(seed, steps=20).begin()
    wish = scene.submit("a")
    scene.wait(scene.running("a", "stage_one"), 20.0)
    scene.hub.disk.rows["a"].accepted -= 3600.0 * hours
    scene.crash()
    scene.over(60.0)
    assert isinstance(wish.ending, Finished)
    assert scene.begun("a") == WHOLE

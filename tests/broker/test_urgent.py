"""An urgent job takes the one place that a full worker has beyond its capacity; what is there makes way, and is to blame for nothing."""

from __future__ import annotations

import random

import pytest

from ifmesh.broker import Broker
from ifmesh.cascade import IF
from ifmesh.commands import Blame, Command, Send
from ifmesh.compute import Compute, _Work
from ifmesh.keeper import Keeper
from ifmesh.protocol import (
    Beat,
    Cancel,
    Done,
    Drop,
    Endpoint,
    Exited,
    Failed,
    Header,
    Held,
    Hello,
    Kill,
    Raised,
    Run,
    Step,
    Submit,
    ToCoordinator,
    Token,
)
from ifmesh.request import Request
from ifmesh.stage import Setup

LATER, FOX, HURRY, NOW = (Request("a fox", 1, "encode", last_stage="encoder", priority=p) for p in (-10, 0, 5, 9))


class Hub:
    """A coordinator with encoders of this capacity each, and what they were told to run."""

    def __init__(self, *lives: str, capacity: int = 2) -> None:
        self.now = 0.0
        self.broker = Broker(IF, 1, (Endpoint("", "tcp://hub"),))
        self.runs: dict[str, tuple[str, Token]] = {}  # job to the life that was granted it last, and under which token
        self.beats = 0
        for life in lives:
            self.join(life, capacity)

    def join(self, life: str, capacity: int) -> None:
        self.hear(life, Hello("encoder", life, life.partition(".")[0], 1, "here", "cpu", (), capacity, "cpu"))
        self.beat(life)

    def hear(self, who: str, message: ToCoordinator) -> list[Command]:
        said = self.broker.receive(self.now, who.encode(), message)
        self.broker.check()
        for command in said:
            if isinstance(command, Send) and isinstance(command.message, Run):
                self.runs[command.message.job] = (command.to.decode(), command.message.token)
        return said

    def beat(self, life: str, *held: Held) -> list[Command]:
        self.beats += 1
        return self.hear(life, Beat(life, self.beats, "ready", held))

    def submit(self, job: str, request: Request) -> list[Command]:
        return self.hear("bob", Submit(job, request))

    def begins(self, *jobs: str) -> None:
        for job in jobs:
            life, token = self.runs[job]
            self.hear(life, Step(life, job, token, 0, 10))

    def done(self, job: str) -> list[Command]:
        life, token = self.runs[job]
        return self.hear(life, Done(life, job, token, "d", 1, 10, 1.0))

    def where(self) -> dict[str, set[str]]:
        """What each has in hand, as the books say."""
        return {life: set(worker.tasks) for life, worker in self.broker.roster.lives.items()}

    def blamed(self, said: list[Command]) -> set[str]:
        return {command.job for command in said if isinstance(command, Blame)}


def test_a_full_worker_takes_one_that_is_more_urgent() -> None:
    hub = Hub("enc.1")
    for job in ("a", "b", "c"):
        hub.submit(job, FOX)
    hub.begins("a")
    hub.submit("d", HURRY)
    assert hub.where() == {"enc.1": {"a", "b", "d"}}


def test_there_is_one_such_place_however_urgent() -> None:
    hub = Hub("enc.1")
    for job, request in (("a", FOX), ("b", FOX), ("c", HURRY), ("d", HURRY), ("e", NOW)):
        hub.submit(job, request)
    assert hub.where() == {"enc.1": {"a", "b", "c"}}
    hub.done("c")
    assert hub.where() == {"enc.1": {"a", "b", "e"}}, "the most urgent of those that wait is the next"
    hub.done("e")
    assert hub.where() == {"enc.1": {"a", "b", "d"}}


def test_an_equal_has_to_wait() -> None:
    hub = Hub("enc.1")
    for job, request in (("a", HURRY), ("b", FOX), ("c", HURRY)):
        hub.submit(job, request)
    assert hub.where() == {"enc.1": {"a", "b"}}


def test_it_goes_where_it_begins_at_once() -> None:
    """Not behind an equal, although there is room."""
    hub = Hub("enc.1", "two.1")
    hub.submit("a", FOX)
    hub.submit("b", HURRY)
    hub.submit("c", FOX)
    free = next(life for life, jobs in hub.where().items() if "b" not in jobs)
    while len(hub.where()[free]) < 2:
        hub.submit(f"x{len(hub.runs)}", FOX)
    hub.submit("d", HURRY)
    assert "d" in hub.where()[free], hub.where()


@pytest.mark.parametrize(("there", "first", "then"), [(FOX, NOW, HURRY), (LATER, FOX, FOX)])
def test_nothing_makes_way_while_a_slot_is_free(there: Request, first: Request, then: Request) -> None:
    """Seven of eight are, beside what is as urgent or more."""
    hub = Hub("full.1", capacity=9)
    for n in range(9):
        hub.submit(f"p{n}", there)
    hub.join("free.1", 9)
    hub.submit("a", first)
    hub.submit("b", then)
    assert hub.where()["free.1"] == {"a", "b"}


@pytest.mark.parametrize("hindrance", ["the outbox is full", "kept empty for another", "draining"])
def test_a_closed_door_is_closed_to_the_urgent_too(hindrance: str) -> None:
    hub = Hub("enc.1")
    hub.submit("a", FOX)
    hub.submit("b", FOX)
    held = [Held(job, hub.runs[job][1], "ready") for job in ("a", "b")]
    hub.beats += 1
    if hindrance == "kept empty for another":
        poison = hub.broker.jobs["a"]
        for _ in range(2):  # it is blamed twice, and is to run alone
            hub.begins("a")
            hub.hear("enc.1/parent", Exited(hub.runs["a"][0], "crashed", "signal 6"))
            life = f"enc.{hub.beats + 2}"
            hub.hear(life, Hello("encoder", life, "enc", 1, "here", "cpu", (), 2, "cpu"))
            hub.beat(life)
        assert poison.blame == 2
        assert hub.broker.roster.lives[life].reserved == "a"
    else:
        state = "draining" if hindrance == "draining" else "ready"
        hub.hear("enc.1", Beat("enc.1", hub.beats, state, tuple(held), full=hindrance == "the outbox is full"))  # type: ignore[arg-type]
    before = hub.where()
    hub.submit("c", NOW)
    assert hub.where() == before


def test_a_worker_that_is_kept_for_another_no_more_is_free_for_those_before_it_at_once() -> None:
    """Seed 78431: who must run alone finds a better place in the same turn, after the others have looked."""
    hub = Hub("enc.1")
    for job in ("b", "f", "a"):
        hub.submit(job, FOX)
    danger = hub.broker.jobs["a"]
    danger.blame = hub.broker.policy.alone
    hub.done("b")
    for job in ("c", "d", "e"):
        hub.submit(job, NOW)
    assert (hub.where(), hub.broker.roster.lives["enc.1"].reserved) == ({"enc.1": {"f"}}, "a")
    danger.avoid.add("enc")
    hub.join("free.1", 2)
    assert hub.where() == {"enc.1": {"f", "e"}, "free.1": {"c", "d"}}
    assert hub.broker.roster.lives["free.1"].reserved == "a"


def test_what_makes_way_is_not_blamed() -> None:
    hub = Hub("enc.1")
    hub.submit("a", FOX)
    hub.begins("a")
    hub.now = 1.0
    hub.submit("b", HURRY)
    hub.begins("b")
    assert "makes way" in hub.broker.jobs["a"].story[-1][1]
    assert hub.blamed(hub.hear("enc.1/parent", Exited("enc.1", "crashed", "signal 6"))) == {"b"}


def test_making_way_is_told_once() -> None:
    hub = Hub("enc.1")
    for job, request in (("a", FOX), ("b", HURRY), ("c", NOW)):
        hub.now += 1.0
        hub.submit(job, request)
        hub.begins(job)
    told = {job: sum("makes way" in text for _, text in hub.broker.jobs[job].story) for job in "abc"}
    assert told == {"a": 1, "b": 1, "c": 0}


def test_what_goes_on_is_blamed() -> None:
    """The urgent one has ended: what makes way no more is what runs."""
    hub = Hub("enc.1")
    hub.submit("a", FOX)
    hub.begins("a")
    hub.now = 1.0
    hub.submit("b", HURRY)
    hub.begins("b")
    hub.hear("bob", Cancel("b"))
    assert hub.blamed(hub.hear("enc.1/parent", Exited("enc.1", "crashed", "signal 6"))) == {"a"}


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("seed", range(10))
def test_the_worker_and_the_coordinator_agree_on_what_makes_way(slots: int, seed: int) -> None:
    """Whatever comes and ends: to blame is what the compute thread does step."""
    dice = random.Random(seed)
    hub, compute = Hub("enc.1", capacity=1 + slots), Compute("encoder", "", Setup(), IF, None, lambda _: None)
    keeper = Keeper(hub.broker.roster.lives["enc.1"].hello)
    for n in range(40):
        job = f"j{n}"
        hub.submit(job, dice.choice((FOX, FOX, HURRY, NOW)))
        for granted, (_, token) in hub.runs.items():
            if granted in hub.where()["enc.1"]:
                keeper.receive(hub.now, Run(granted, token, hub.broker.jobs[granted].request))
                keeper.arrived(hub.now, Header("bag", granted, "encoder", token, ""), b"")
        while (task := keeper.take(hub.now)[0]) is not None:
            hub.now += 0.1
            hub.begins(task.job)
            compute._work[task.job] = _Work(task, {})
        if dice.random() < 0.5 and (able := sorted(compute._work.keys() - compute._paused(slots))):
            ended = dice.choice(able)
            work = compute._work.pop(ended)
            keeper.completed(hub.now, ended, work.task.token, b"", "d", 1.0)
            hub.done(ended)
        steps = compute._work.keys() - compute._paused(slots)
        told = {j for j in compute._work if "makes way" in "".join(text for _, text in hub.broker.jobs[j].story)}
        assert compute._paused(slots) <= told
    assert hub.blamed(hub.hear("enc.1/parent", Exited("enc.1", "crashed", "signal 6"))) == steps


def test_what_began_last_is_blamed_though_another_was_not_heard_to_end() -> None:
    """The worker has one slot, and so the first is done; its Done was lost, and no Beat has come since."""
    hub = Hub("enc.1")
    hub.submit("a", HURRY)
    hub.submit("b", FOX)
    hub.begins("a")
    hub.now = 0.5
    hub.begins("b")
    assert "b" in hub.blamed(hub.hear("enc.1/parent", Exited("enc.1", "crashed", "signal 6")))


def test_an_equal_that_begins_in_its_place_has_nothing_make_way() -> None:
    """The first is over, and its bag is being packed: its story does not say that it waits."""
    hub = Hub("enc.1")
    hub.submit("a", FOX)
    hub.submit("b", FOX)
    hub.begins("a")
    hub.now = 0.5
    hub.begins("b")
    assert not [text for _, text in hub.broker.jobs["a"].story if "makes way" in text]


def test_where_there_is_a_slot_for_both_both_are_blamed() -> None:
    hub = Hub("enc.1", capacity=3)
    hub.submit("a", FOX)
    hub.submit("b", HURRY)
    hub.begins("a", "b")
    assert hub.blamed(hub.hear("enc.1/parent", Exited("enc.1", "crashed", "signal 6"))) == {"a", "b"}


def test_what_makes_way_is_not_stalled() -> None:
    """As long as the urgent one advances; its deadline passes all the same."""
    hub = Hub("enc.1")
    patience = IF["encoder"].patience
    hub.submit("a", FOX)
    hub.submit("late", Request("a hare", 2, "encode", last_stage="encoder", deadline=2.5 * patience))
    hub.begins("a", "late")
    hub.submit("b", HURRY)
    hub.begins("b")
    said: list[Command] = []
    for step in range(1, 7):
        hub.now = step * patience / 2
        hub.hear("enc.1", Step("enc.1", "b", hub.runs["b"][1], step, 10))
        held = {job: Held(job, hub.runs[job][1], "running", step if job == "b" else 0, 10) for job in hub.where()["enc.1"]}
        said += hub.beat("enc.1", *held.values())
        said += hub.broker.tick(hub.now)
        hub.broker.check()
    messages = [command.message for command in said if isinstance(command, Send)]
    assert not any(isinstance(message, Kill) for message in messages)
    assert [m.cause for m in messages if isinstance(m, Failed)] == ["expired"]
    assert Drop("late", hub.runs["late"][1]) in messages
    assert hub.where() == {"enc.1": {"a", "b"}}


def test_a_retry_is_as_urgent_as_it_was() -> None:
    """It has a past, is assigned by the other way, and finds its place beyond the capacity there too."""
    hub = Hub("enc.1", "two.1")
    for job in ("a", "b", "c", "d"):
        hub.submit(job, FOX)
    hub.submit("e", HURRY)
    life, token = hub.runs["e"]
    hub.hear(life, Raised(life, "e", token, "RuntimeError: no", "stage"))
    assert hub.runs["e"][0] != life, "away from where it raised"
    assert {len(jobs) for jobs in hub.where().values()} == {2, 3}


def test_a_pool_of_any_rows_promises_nothing() -> None:
    hub = Hub()
    classes = {"a": "cpu, fp32", "b": "cpu, fp32, pooled, rows 16", "c": "cpu, fp32, pooled, rows any"}
    for job, numeric in classes.items():
        hub.hear(f"{job}.1", Hello("encoder", f"{job}.1", job, 1, "here", "cpu", (), 2, numeric))
        hub.beat(f"{job}.1")
        hub.submit(job, FOX)
    assert {job: hub.runs[job][0] for job in classes} == {job: f"{job}.1" for job in classes}
    assert {job: hub.broker.jobs[job].reproducible for job in classes} == {"a": True, "b": True, "c": False}

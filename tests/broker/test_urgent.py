"""An urgent job takes the one place that a full worker has beyond its capacity; what is there makes way, and is to blame for nothing."""

from __future__ import annotations

import pytest

from ifmesh.broker import Broker
from ifmesh.cascade import IF
from ifmesh.commands import Blame, Command, Send
from ifmesh.protocol import (
    Beat,
    Cancel,
    Done,
    Drop,
    Endpoint,
    Exited,
    Failed,
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

FOX, HURRY, NOW = (Request("a fox", 1, "encode", last_stage="encoder", priority=p) for p in (0, 5, 9))


class Hub:
    """A coordinator with encoders of this capacity each, and what they were told to run."""

    def __init__(self, *lives: str, capacity: int = 2) -> None:
        self.now = 0.0
        self.broker = Broker(IF, 1, (Endpoint("", "tcp://hub"),))
        self.runs: dict[str, tuple[str, Token]] = {}  # job to the life that was granted it last, and under which token
        self.beats = 0
        for life in lives:
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


def test_what_makes_way_is_not_blamed() -> None:
    hub = Hub("enc.1")
    hub.submit("a", FOX)
    hub.begins("a")
    hub.now = 1.0
    hub.submit("b", HURRY)
    hub.begins("b")
    assert "makes way" in hub.broker.jobs["a"].story[-1][1]
    assert hub.blamed(hub.hear("enc.1/parent", Exited("enc.1", "crashed", "signal 6"))) == {"b"}


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

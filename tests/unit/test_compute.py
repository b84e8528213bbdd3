"""The compute thread and its checkpoints: when they are told, what comes of them, and what of those that are none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from itertools import groupby
from queue import SimpleQueue
from threading import Event as Mark
from typing import ClassVar

import pytest

from ifmesh import bags, toy
from ifmesh.cascade import IF
from ifmesh.chores import Forget, Task
from ifmesh.compute import Compute, Event, Free, Loaded, Over, Saved, Stepped, Threw
from ifmesh.errors import BadRequest
from ifmesh.packer import Made
from ifmesh.request import Request
from ifmesh.stage import DONE, Advance, Bag, Setup, Tensor, counted, steps_done

FOX, OWL = Request("a fox", 7), Request("an owl", 8)
LIMIT = 30.0


def entering(request: Request) -> bytes:
    """The bag of Stage I."""
    encoder = toy.Encoder()
    encoder.load(Setup(options={"steps": 1}))
    encoder.admit("j", request, {})
    [advance] = encoder.step()
    assert advance.output is not None
    return bags.encode({blob.name: advance.output[blob.name] for blob in IF.enters(request, "stage_one")})


FRAMES = {request.prompt: entering(request) for request in (FOX, OWL)}


class Failing(toy.StageOne):
    """It can save nothing."""

    def save(self, job: str) -> Bag | None:
        raise RuntimeError("no memory for that")


class Picky(toy.StageOne):
    """Whatever is wrong, it is the request's fault."""

    asked: ClassVar[list[str]] = []

    def admit(self, job: str, request: Request, bag: Bag, saved: Bag | None = None) -> int:
        self.asked.append(job)
        raise BadRequest("prompt", request.prompt, "another one")


class Meagre(toy.StageOne):
    """Its picture is missing."""

    def step(self, paused: Collection[str] = ()) -> Iterable[Advance]:
        for advance in super().step(paused):
            gave = advance.output
            yield advance if gave is None else replace(advance, output={name: gave[name] for name in gave if name != "image64"})


class Thread:
    """A compute thread of a toy Stage I, and what it told."""

    def __init__(self, checkpoint_steps: int = 0, kind: str = "ifmesh.toy:StageOne", **options: int) -> None:
        self.told: SimpleQueue[Event] = SimpleQueue()
        self.left: list[tuple[str, ...]] = []
        self.compute = Compute("stage_one", kind, Setup(options=options), IF, None, self.told.put, checkpoint_steps, self.left.append)
        self.compute.start()

    def give(self, job: str, number: int = 1, request: Request = FOX, saved: bytes | None = None) -> None:
        self.compute.give(Task(job, (1, number), request, FRAMES[request.prompt], saved=saved))

    def until(self, last: Callable[[Event], bool]) -> list[Event]:
        """Of jobs only."""
        made: list[Event] = []
        while not made or not last(made[-1]):
            event = self.told.get(timeout=LIMIT)
            if not isinstance(event, Loaded | Free | Over):
                made.append(event)
        return made

    def run(self, job: str, number: int = 1, request: Request = FOX, saved: bytes | None = None) -> list[Event]:
        self.give(job, number, request, saved)
        return self.until(lambda event: isinstance(event, Made | Threw))


def steps(events: list[Event]) -> list[int]:
    return [event.step for event in events if isinstance(event, Stepped)]


def made(events: list[Event]) -> bytes:
    assert isinstance(events[-1], Made), events[-1]
    return events[-1].frame


def checkpoints(events: list[Event]) -> list[Saved]:
    return [event for event in events if isinstance(event, Saved)]


@pytest.mark.parametrize(("each", "after"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4]), (3, [3]), (6, []), (1000, [])])
def test_one_after_each_so_many_steps_but_the_last(each: int, after: list[int]) -> None:
    events = Thread(each, steps=6).run("a")
    assert [saved.step for saved in checkpoints(events)] == after
    assert steps(events) == [0, 1, 2, 3, 4, 5]
    for saved in checkpoints(events):
        assert events.index(saved) == events.index(Stepped("a", (1, 1), saved.step, 6)) + 1
        assert saved.digest == bags.digest(saved.frame)
        assert steps_done(bags.decode(saved.frame), 6) == saved.step


def test_another_goes_on_from_it() -> None:
    whole = Thread(2, steps=7).run("a")
    for saved in checkpoints(whole):
        events = Thread(2, steps=7).run("a", 2, saved=saved.frame)
        assert steps(events) == list(range(saved.step, 7))
        assert [later.step for later in checkpoints(events)] == [step for step in (4, 6) if step > saved.step]
        assert made(events) == made(whole)


def test_each_of_those_that_step_together_has_its_own() -> None:
    """They came at different times, and the checkpoint of each is its own."""
    thread = Thread(2, steps=5, slots=2)
    thread.give("a")
    thread.until(lambda event: isinstance(event, Stepped) and event.step == 1)
    events = thread.run("b", request=OWL)
    events += thread.until(lambda event: isinstance(event, Made))
    done = {event.job: event.frame for event in events if isinstance(event, Made)}
    assert done.keys() == {"a", "b"}
    for saved in checkpoints(events):
        request = {"a": FOX, "b": OWL}[saved.job]
        assert made(Thread(steps=5).run(saved.job, 2, request, saved.frame)) == done[saved.job]


GOOD = {DONE: counted(2), "seed": Tensor("U8", (32,), bytes(32))}
USELESS: dict[str, bytes] = {
    "no frame": b"",
    "no safetensors": bytes(range(256)),
    "cut": bags.encode(GOOD)[:-1],
    "empty": bags.encode({}),
    "no step": bags.encode({"seed": GOOD["seed"]}),
    "the last step": bags.encode({**GOOD, DONE: counted(5)}),
    "before the first": bags.encode({**GOOD, DONE: counted(0)}),
    "another's": bags.encode({DONE: counted(2), "x": Tensor("F32", (1, 3, 8, 8), bytes(768))}),
    "one tensor more": bags.encode({**GOOD, "more": counted(2)}),
    "another shape": bags.encode({**GOOD, "seed": Tensor("U8", (16,), bytes(16))}),
}


@pytest.mark.parametrize("useless", USELESS)
def test_one_that_is_none_costs_nothing_but_the_time(useless: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ifmesh"):
        events = Thread(steps=5).run("a", saved=USELESS[useless])
    assert steps(events) == [0, 1, 2, 3, 4]
    assert made(events) == made(Thread(steps=5).run("a"))
    [record] = caplog.records
    assert record.getMessage().startswith("it begins anew, since its checkpoint is of no use: ")


def test_the_toys_pixels_come_from_the_checkpoint() -> None:
    """So that one which went astray shows."""
    assert made(Thread(steps=5).run("a", saved=bags.encode(GOOD))) != made(Thread(steps=5).run("a"))


def test_a_wrong_request_is_told_with_a_checkpoint_too() -> None:
    [threw] = Thread(kind=f"{__name__}:Picky").run("a", saved=bags.encode(GOOD))
    assert isinstance(threw, Threw)
    assert threw.fault == "request"
    assert Picky.asked == ["a"], "no other admission would help it"


def test_one_that_cannot_be_had_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ifmesh"):
        events = Thread(2, kind=f"{__name__}:Failing", steps=5).run("a")
    assert checkpoints(events) == []
    assert made(events) == made(Thread(steps=5).run("a"))
    assert [record.getMessage() for record in caplog.records] == [
        f"no checkpoint after step {step}: RuntimeError: no memory for that" for step in (2, 4)
    ]


def test_a_forgotten_job_goes_on_elsewhere() -> None:
    """As when it is given to another."""
    thread = Thread(1, steps=100, step_ms=1)
    thread.give("a")
    saved = thread.until(lambda event: isinstance(event, Saved))[-1]
    assert isinstance(saved, Saved)
    thread.compute.give(Forget("a", (1, 1)))
    later = thread.run("a", 2, saved=saved.frame)
    assert next(event for event in later if getattr(event, "token", None) == (1, 2)) == Stepped("a", (1, 2), saved.step, 100)
    assert made(later) == made(Thread(steps=100).run("a"))


def test_what_runs_is_left_behind_before_it_does() -> None:
    thread = Thread()
    for job in ("a", "b"):
        thread.run(job)
    assert [jobs for jobs, _ in groupby(list(thread.left))][:4] == [(), ("a",), (), ("b",)]


def test_the_next_is_asked_for_before_the_bag_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And begins beside that."""
    packing, begun = Mark(), Mark()
    encode = bags.encode

    def slowly(bag: Bag) -> bytes:
        packing.set()
        assert begun.wait(LIMIT)
        return encode(bag)

    monkeypatch.setattr(bags, "encode", slowly)
    thread = Thread(steps=2)
    thread.give("a")
    thread.until(lambda event: event == Stepped("a", (1, 1), 1, 2))
    assert [thread.told.get(timeout=LIMIT) for _ in range(2)] == [Over("a", (1, 1)), Free()]
    assert packing.wait(LIMIT)
    thread.give("b", 2)
    thread.until(lambda event: event == Stepped("b", (1, 2), 0, 2))
    begun.set()
    made = [event.job for event in thread.until(lambda event: isinstance(event, Made) and event.job == "b") if isinstance(event, Made)]
    assert made == ["a", "b"]


@pytest.mark.parametrize("comes", [True, False])
def test_what_is_to_be_packed_waits_while_the_next_is_about_to_come(monkeypatch: pytest.MonkeyPatch, comes: bool) -> None:
    """Until that is admitted; or, where it does not come, for a moment."""
    monkeypatch.setattr("ifmesh.compute.SOON", LIMIT if comes else 0.01)
    order: list[str] = []
    encode = bags.encode

    def packed(bag: Bag) -> bytes:
        order.append("packed")
        return encode(bag)

    class Telling(toy.StageOne):
        def admit(self, job: str, request: Request, bag: Bag, saved: Bag | None = None) -> int:
            order.append(f"{job} begun")
            return super().admit(job, request, bag, saved)

    monkeypatch.setattr(bags, "encode", packed)
    monkeypatch.setattr(toy, "StageOne", Telling)
    thread = Thread(steps=2)
    thread.compute.expecting = True
    thread.give("a")
    thread.until(lambda event: event == Stepped("a", (1, 1), 1, 2))
    assert [thread.told.get(timeout=LIMIT) for _ in range(2)] == [Over("a", (1, 1)), Free()]
    if comes:
        thread.compute.expecting = False
        thread.give("b", 2)
        thread.until(lambda event: isinstance(event, Made) and event.job == "b")
        assert order[:2] == ["a begun", "b begun"]
        assert order[2:] == ["packed", "packed"]
    else:
        thread.until(lambda event: isinstance(event, Made))
        assert order == ["a begun", "packed"]


def test_a_stage_that_gives_too_little_is_told_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    events = Thread(kind=f"{__name__}:Meagre", steps=2).run("a")
    assert events[-1] == Threw("a", (1, 1), "ValueError: stage_one gave no image64", "stage")
    assert "stage_one failed" in caplog.text

"""The broker under messages that decode but make no sense: it may refuse, it may not break, and its books must balance.

No link, no keeper: any peer says anything, in any order, about jobs, lives and tokens that may be somebody else's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

import pytest

from ifmesh.broker import Broker
from ifmesh.cascade import IF
from ifmesh.commands import Close, Closed, Policy, Send
from ifmesh.protocol import (
    STAGES,
    Beat,
    Bye,
    Cancel,
    Done,
    Endpoint,
    Exited,
    Fetch,
    Held,
    Hello,
    Hi,
    Inspect,
    Raised,
    Received,
    Request,
    Step,
    Submit,
    ToClient,
    ToCoordinator,
    Token,
    ToWorker,
    Watch,
)
from ifmesh.wire import TO_CLIENT, TO_PARENT, TO_WORKER

LIVES = [f"life{i}" for i in range(5)]
JOBS = [f"job{i}" for i in range(6)]
LONG = "x" * 60000


class Stranger:
    """Says things at random; now and then what an honest worker would, so that jobs do move."""

    def __init__(self, seed: int, broker: Broker) -> None:
        self.rng, self.broker, self.count = random.Random(seed), broker, 0

    def says(self) -> ToCoordinator:
        self.count += 1
        made: ToCoordinator = self.rng.choice(self._repertoire())()
        return made

    def _repertoire(self) -> list[Callable[[], ToCoordinator]]:
        rng = self.rng
        job, life = rng.choice(JOBS), rng.choice(LIVES)
        honest = Hello(STAGES[LIVES.index(life)], life, life, 1, "h", "cpu", (), rng.randrange(1, 5), "a")
        wild = Hello(rng.choice([*STAGES, "none"]), life, rng.choice(["n1", life, LONG]), 1, "h", "cpu", (), rng.randrange(-1, 5), "b")
        last = rng.choice(["stage_one", "upscaler"])
        request = Request("a fox", rng.randrange(2), deadline=rng.choice([None, 3.0]), priority=rng.randrange(-3, 3), last_stage=last)
        return [
            Hi,
            lambda: Submit(job, request),
            lambda: Cancel(job),
            lambda: Watch(job),
            lambda: Fetch(job),
            lambda: Inspect(rng.choice([-5, 0, 1, 2**63 - 1]), rng.choice(["", job])),
            *[lambda: honest] * 3,
            lambda: wild,
            lambda: Beat(
                life, self.count, rng.choice(["loading", "ready", "draining"]), tuple(self._held() for _ in range(rng.randrange(5)))
            ),
            *[lambda: Beat(life, self.count, "ready", self._truth(life))] * 3,
            lambda: Step(life, job, self._token(), rng.randrange(-2, 9), 5),
            lambda: Received(life, job, self._token()),
            lambda: Done(life, job, self._token(), "d", 5, 5, -1.0),
            lambda: Raised(life, job, self._token(), LONG, rng.choice(["request", "stage"])),
            lambda: Bye(life),
            lambda: Exited(life, rng.choice(["ended", "killed", "crashed", "stalled"]), LONG),
        ]

    def _token(self) -> Token:
        return self.rng.choice([(0, 0), (1, self.rng.randrange(12)), (1, self.rng.randrange(40)), (2, 1), (2**63 - 1, 5)])

    def _held(self) -> Held:
        rng = self.rng
        states: list[Literal["waiting", "ready", "running", "done"]] = ["waiting", "ready", "running", "done"]
        return Held(
            rng.choice(JOBS), self._token(), rng.choice(states), rng.randrange(-2, 9), rng.randrange(-2, 9), "", -1, rng.random() - 0.5
        )

    def _truth(self, life: str) -> tuple[Held, ...]:
        worker = self.broker.roster.lives.get(life)
        tasks = worker.tasks if worker else {}
        return tuple(Held(job, token, self.rng.choice(["ready", "running", "done"]), 1, 2) for job, token in tasks.items())


@pytest.mark.parametrize("first", range(0, 500, 100))
def test_no_message_breaks_the_broker(first: int) -> None:
    ended = 0
    for seed in range(first, first + 100):
        broker = Broker(IF, 1, (Endpoint("", "tcp://127.0.0.1:1"),), Policy(max_jobs=10))
        stranger, rng, now = Stranger(seed, broker), random.Random(-seed), 0.0
        for _ in range(300):
            now += rng.choice([0.0, 0.01, 0.5, 2.0, 6.0])
            message = stranger.says()
            peer = rng.choice([*[str(getattr(message, "life", "bob")).encode()] * 9, b"another"])
            commands = broker.receive(now, peer, message)
            broker.check()
            if (wakeup := broker.wakeup()) is not None and wakeup <= now:
                commands += broker.tick(now)
                assert (broker.wakeup() or now + 1) > now, f"seed {seed}: tick does not get on"
            if broker.jobs and rng.random() < 0.3:
                job = rng.choice(list(broker.jobs.values()))
                commands += broker.landed(now, job.id, job.token, "d", 1)
            broker.check()
            for command in commands:
                if isinstance(command, Send):
                    said = command.message
                    door = TO_CLIENT if isinstance(said, ToClient) else TO_WORKER if isinstance(said, ToWorker) else TO_PARENT
                    door.encode(said)  # type: ignore[arg-type]
        ended += len(broker.ended)
    assert ended > 50, "the stranger never got a job through: this test would show nothing"


def test_the_timer_of_an_ended_job_does_not_meet_another_under_its_id() -> None:
    broker = Broker(IF, 1, (), Policy(remember=1))
    broker.receive(0.0, b"bob", Submit("a", Request("a fox", 1, deadline=5.0)))
    broker.receive(1.0, b"bob", Cancel("a"))
    broker.receive(1.0, b"bob", Submit("b", Request("an owl", 1)))
    broker.receive(1.0, b"bob", Cancel("b"))
    broker.receive(2.0, b"bob", Submit("a", Request("a fox", 1)))  # forgotten meanwhile: a new job
    broker.tick(6.0)
    assert "a" in broker.jobs


def test_an_ending_that_the_journal_remembers_is_told_again() -> None:
    broker = Broker(IF, 1, (), Policy(remember=1))
    request = Request("a fox", 1)
    broker.receive(0.0, b"bob", Submit("a", request))
    (close,) = [c for c in broker.receive(1.0, b"bob", Cancel("a")) if isinstance(c, Close)]
    broker.receive(1.0, b"bob", Submit("b", request))
    broker.receive(1.0, b"bob", Cancel("b"))
    assert "a" not in broker.ended
    broker.recall(Closed("a", request, close.ending, close.story, close.runs))
    assert broker.receive(2.0, b"bob", Submit("a", request)) == [Send(b"bob", close.ending)]
    assert "a" not in broker.jobs

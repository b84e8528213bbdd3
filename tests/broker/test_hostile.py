"""The broker under messages that decode but make no sense: it may refuse, it may not break, and its books must balance.

No link, no keeper: any peer says anything, in any order, about jobs, lives and tokens that may be somebody else's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest

from ifmesh.broker import Broker
from ifmesh.cascade import IF
from ifmesh.commands import Close, Closed, Discard, Give, Hold, Policy, Send
from ifmesh.protocol import (
    Accepted,
    Arrived,
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
    Lives,
    Probe,
    Raised,
    Reached,
    Received,
    Refused,
    Step,
    Submit,
    ToClient,
    ToCoordinator,
    Token,
    ToWorker,
    Wanted,
    Watch,
)
from ifmesh.request import STAGES, Request
from ifmesh.uploads import FILES
from ifmesh.wire import TO_CLIENT, TO_PARENT, TO_WORKER

LIVES = [f"life{i}" for i in range(5)]
JOBS = [f"job{i}" for i in range(6)]
LONG = "x" * 60000
UPLOADS = [letter * 64 for letter in "abc"]


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
        last = rng.choice(["stage_one", "stage_one", "stage_one", "upscaler"])
        request = Request("a fox", rng.randrange(2), deadline=rng.choice([None, 3.0]), priority=rng.randrange(-3, 3), last_stage=last)
        request = replace(request, keep=rng.choice([0.0, 1e-9, 5.0, 5.0, 86400.0]) if last == "stage_one" else 0.0)
        brings = rng.choice([("source",), ("rng",), ("source", "rng")])
        upload = replace(request, task="vary" if "source" in brings else "generate", brings=brings, upload=rng.choice(UPLOADS))
        return [
            Hi,
            lambda: Submit(job, replace(request, tied=rng.random() < 0.3), rng.random() < 0.5),
            lambda: Submit(job, upload, rng.random() < 0.5),
            lambda: Submit(job, replace(request, upload=LONG, brings=(LONG,))),
            lambda: Cancel(job),
            lambda: Watch(job, rng.random() < 0.5),
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
            lambda: self._probing(life),
            lambda: Lives(rng.choice([life, LONG])),
            lambda: Exited(life, rng.choice(["ended", "killed", "crashed", "stalled"]), LONG),
        ]

    def _probing(self, life: str) -> ToCoordinator:
        rng = self.rng
        token, end = (1, rng.randrange(9)), rng.choice([life, ""])
        source, target = rng.choice([life, "coordinator", LONG]), rng.choice([*LIVES, "coordinator"])
        probe = Probe(rng.randrange(3), source, target, *rng.choice([(0, 0), (5, 5), (-1, 5), (2**62, 2**62)]))
        reached = Reached(end, token, (-1.0,) * rng.randrange(50), -5, 1e300, LONG)
        said: list[ToCoordinator] = [probe, Arrived(end, token), reached]
        return rng.choice(said)

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
    ended = discarded = held = 0
    for seed in range(first, first + 100):
        broker = Broker(IF, 1, (Endpoint("", "tcp://127.0.0.1:1"),), Policy(max_jobs=10, max_uploads=100, upload_keep=10.0, tether=7.0))
        stranger, rng, now = Stranger(seed, broker), random.Random(-seed), 0.0
        for _ in range(340):
            now += rng.choice([0.0, 0.01, 0.5, 2.0, 6.0])
            message = stranger.says()
            peer = rng.choice([*[str(getattr(message, "life", "bob")).encode()] * 9, b"another"])
            commands = broker.receive(now, peer, message)
            broker.check()
            if (wakeup := broker.wakeup()) is not None and wakeup <= now:
                commands += broker.tick(now)
                assert (broker.wakeup() or now + 1) > now, f"seed {seed}: tick does not get on"
            here = list(broker.jobs.values())
            rare = [job for job in here if job.publishing and job.request.keep]
            if rare or (here and rng.random() < 0.3):
                job = rng.choice(rare or [job for job in here if job.publishing] or here)
                beside = rng.choice(UPLOADS) if broker.keeps(now, job.id, 10) else ""
                if beside:
                    commands += broker.stored(now, beside, 10, ("embeds", "image64", "rng"))
                commands += broker.landed(now, job.id, job.token, "d", 1, beside)
                held += any(isinstance(c, Hold) for c in commands)
            if rng.random() < 0.2 and broker.wants(upload := rng.choice(UPLOADS)):
                commands += broker.stored(now, upload, 40, rng.choice([("source",), ("rng",)]))
            if rng.random() < 0.05:
                broker.gone(now, peer)
            if any(isinstance(c, Give) and c.upload for c in commands) and rng.random() < 0.2:
                commands += broker.unreadable(now, next(c.job for c in commands if isinstance(c, Give) and c.upload), LONG)
            looked = rng.choice(JOBS)
            lookers = broker.lookers(looked, rng.choice([*STAGES, LONG]), stranger._token())
            assert not lookers or set(lookers) <= broker.jobs[looked].watchers
            broker.check()
            discarded += sum(isinstance(c, Discard) for c in commands)
            for command in commands:
                if isinstance(command, Send):
                    said = command.message
                    door = TO_CLIENT if isinstance(said, ToClient) else TO_WORKER if isinstance(said, ToWorker) else TO_PARENT
                    door.encode(said)  # type: ignore[arg-type]
        ended += len(broker.ended)
    assert ended > 50, "the stranger never got a job through: this test would show nothing"
    assert discarded > 50, "nor an upload"
    assert held, "nor anything that was kept"


def test_submits_whose_upload_never_comes_are_forgotten() -> None:
    """10,000 of them, of as many uploads, from as many clients: some wait, and an honest one among the last is served."""
    broker = Broker(IF, 1, ())
    for n in range(10_000):
        request = Request("a fox", n, task="vary", brings=("source",), upload=f"{n:064x}")
        (said,) = broker.receive(n / 1000, f"client-{n}".encode(), Submit(f"job-{n}", request))
        assert said == Send(f"client-{n}".encode(), Wanted(f"job-{n}", request.upload))
    broker.check()
    assert len(broker.uploads) == 1000
    assert not broker.wants(f"{0:064x}")
    assert broker.wants(f"{9_999:064x}")
    assert not broker.jobs
    assert len(broker._timers) == 1, "one timer looks after all of them"
    commands = broker.stored(10.0, f"{9_999:064x}", 10, ("source",))
    assert Send(b"client-9999", Accepted("job-9999")) in commands
    assert broker.tick(100.0) == []
    assert len(broker.uploads) == 0


def test_one_client_that_changes_its_mind_waits_once() -> None:
    broker = Broker(IF, 1, ())
    for n in range(10_000):
        request = Request("a fox", n, task="vary", brings=("source",), upload=f"{n:064x}")
        broker.receive(n / 1000, b"bob", Submit("a", request))
    broker.check()
    assert len(broker.uploads) == 1
    assert broker.wants(f"{9_999:064x}")


def test_small_uploads_are_counted_too() -> None:
    """They take no bytes to speak of, but a place in memory each."""
    broker = Broker(IF, 1, ())
    for n in range(FILES):
        broker.stored(0.0, f"{n:064x}", 1, ("source",))
    request = Request("a fox", 1, task="vary", brings=("source",), upload="f" * 64)
    (said,) = broker.receive(1.0, b"bob", Submit("a", request))
    assert isinstance(said, Send)
    assert isinstance(said.message, Refused)
    assert said.message.reason == "busy"
    assert not broker.wants("f" * 64)
    assert len(broker.tick(60.0)) == FILES
    assert not broker.uploads.stored


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

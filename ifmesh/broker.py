"""The coordinator's mind: pure.  No clock, no socket, no thread, no randomness: time and messages go in, commands come out.

Everything that decides is here, or in the layers below: `ledger`, `dispatch`, `desk`, `vigil`, `crew`, `survey`.  How it is kept right:
`_assign` is the only place where a job meets a worker, and runs after every change; each Beat is compared with the books (`crew`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from ifmesh.cascade import Cascade, kept
from ifmesh.commands import Blame, Book, Booked, Close, Closed, Command, Discard, Give, Hand, Hold, Note, Policy, Send, parent_of
from ifmesh.job import Cause, Checkpoint, State
from ifmesh.protocol import (
    Arrived,
    Beat,
    Bye,
    Cancel,
    Done,
    Drain,
    Endpoint,
    Exited,
    Fetch,
    Finished,
    Hello,
    Hi,
    Inspect,
    Lives,
    Probe,
    Raised,
    Reached,
    Received,
    Step,
    Submit,
    ToCoordinator,
    Token,
    Watch,
)
from ifmesh.survey import Survey

__all__ = [
    "Blame",
    "Book",
    "Booked",
    "Broker",
    "Close",
    "Closed",
    "Command",
    "Discard",
    "Give",
    "Hand",
    "Hold",
    "Note",
    "Policy",
    "Send",
    "parent_of",
]


class Broker(Survey):
    """Feed it what arrived and the time; carry out what it returns, in order; call tick() no later than wakeup()."""

    def __init__(self, cascade: Cascade, epoch: int, inlet: tuple[Endpoint, ...], policy: Policy | None = None) -> None:
        super().__init__(cascade, epoch, inlet, policy)
        self._desk: dict[type, Callable[[float, bytes, Any, str | None], None]] = {
            Hi: self._hi,
            Submit: self._submit,
            Cancel: self._cancel,
            Watch: self._watch,
            Fetch: self._fetch,
            Inspect: self._inspect,
            Probe: self._probe,
        }
        self._doors: dict[type, Callable[[float, bytes, Any], None]] = {
            Hello: self._hello,
            Beat: self._beat,
            Step: self._step,
            Received: self._received,
            Done: self._done,
            Raised: self._raised,
            Arrived: self._arrived,
            Reached: self._reached,
            Bye: self._bye,
            Exited: self._exited,
            Lives: self._lives,
        }

    # ---- what the shell calls

    def recover(
        self,
        now: float,
        open_jobs: Iterable[Booked],
        ended: Iterable[Closed],
        uploads: Mapping[str, int] = MappingProxyType({}),
        held: Iterable[Hold] = (),
    ) -> list[Command]:
        """After a start, before anything else: what the journal knows.  While there are open jobs nothing is granted for
        `policy.grace` seconds or until a worker has claimed each: first comes what still runs.

        uploads: those on disk, digest -> bytes.  What no open job refers to is discarded, unless it is held for some seconds from now
        on: whoever wants it still says so again.
        """
        if self.epoch > 1:
            self._settled = now + self.policy.grace
        holds = {hold.digest: hold for hold in held}
        brought = {digest: hold.names for digest, hold in holds.items()}
        for closed in ended:
            self._remember(closed)
        for booked in open_jobs:
            job = self._book(now - booked.age, booked.job, booked.request, booked.owner)
            job.blame, job.queued_at, job.heard = booked.blame, now, now
            job.mourned = set(booked.lives)
            brought[booked.request.upload] = booked.request.brings
            self._story(now, job, "the coordinator was started again")
            self._orphans.add(job.id)
        for digest, size in uploads.items():
            if digest in brought:
                self.uploads.store(now, digest, size, brought[digest])
            else:
                self._out.append(Discard(digest))
        for digest in [digest for digest in holds if digest in uploads]:
            self._hold(now, digest, holds[digest].seconds)
        if self._orphans:
            self._timer(now + self.policy.grace, "grace", "")
            self._note("", f"{len(self._orphans)} jobs from the journal; adopting what still runs for {self.policy.grace:g} s")
        return self._flush(now)

    def receive(self, now: float, peer: bytes, message: ToCoordinator, owner: str | None = None) -> list[Command]:
        """peer: routing id of the sender.  owner: of a client, whose jobs alone exist for it; None: it sees and may end all."""
        self._overslept(now)
        if peer in self._heard:
            self._heard[peer] = now
        if (door := self._desk.get(type(message))) is not None:
            door(now, peer, message, owner)
        else:
            self._doors[type(message)](now, peer, message)
        return self._flush(now)

    def expects(self, job: str, token: Token) -> bool:
        """Is a result of this job, under this token, to be stored?"""
        known = self.jobs.get(job)
        return known is not None and known.publishing and known.token == token

    def landed(self, now: float, job: str, token: Token, digest: str, size: int, beside: str = "") -> list[Command]:
        """The result is on disk.  digest: xxh3-128 (hex) of the frame.  Only the first counts: afterwards the job is gone.

        beside: SHA-256 of what was to be kept beside it; it is, if it is `stored`, now or for another.  "": nothing was.
        """
        known = self.jobs.get(job)
        if known is not None and self.expects(job, token):
            runs = tuple(known.runs[i] for i in sorted(known.runs))
            came = self.roster.lives[known.life].came
            came[""] = max(came.get("", 0.0), known.pushed)
            self._move(now, known, Cause.COMPLETED, f"{size} bytes on disk")
            if self.uploads.sound(beside) is None:
                beside = ""
            if beside:
                self._hold(now, beside, known.request.keep)
                self._out.append(Hold(beside, self.uploads.stored[beside].names, self.uploads.stored[beside].idle - now))
            elif kept(known.request):
                self._story(now, known, "nothing is kept of it: there is no room among the uploads")
            self._close(now, known, Finished(job, digest, size, known.request.seed, known.reproducible, runs, beside))
        return self._flush(now)

    def saves(self, job: str, token: Token, step: int) -> bool:
        """Is a checkpoint of this job, made under this token after this step, to be kept?"""
        known = self.jobs.get(job)
        if known is None or not self.policy.checkpoints or not known.life or known.publishing or known.token != token:
            return False
        return known.saved is None or known.saved.token != token or known.saved.step < step

    def saved(self, now: float, job: str, token: Token, step: int) -> list[Command]:
        """It is in memory, in the place of the one before; and `saves` has said that it is to be."""
        known = self.jobs[job]
        known.saved = Checkpoint(known.stage, step, token, self.roster.lives[known.life].hello.numeric)
        return self._flush(now)

    def unsaved(self, now: float, job: str) -> list[Command]:
        """It is in memory no more, for want of room."""
        if (known := self.jobs.get(job)) is not None:
            known.saved = None
            self._afresh(known)
        return self._flush(now)

    def unreadable(self, now: float, job: str, why: str) -> list[Command]:
        """The job's first bag, which was to be given, cannot be read from disk."""
        known = self.jobs.get(job)
        if known is not None and known.stage == 0 and not known.received:
            if (stored := self.uploads.stored.get(known.request.upload)) is not None:
                stored.sound = False
            self._story(now, known, f"{known.at}: {why}")
            self._fail(now, known, "error", why)
        return self._flush(now)

    def recall(self, closed: Closed) -> None:
        """An ending older than those that are remembered, found in the journal because somebody asks for it."""
        self._remember(closed)

    def forget(self, jobs: Iterable[str]) -> None:
        """The journal has forgotten these jobs, ended long ago."""
        for job in jobs:
            self._unremember(job)

    def gone(self, now: float, peer: bytes) -> None:
        """This peer cannot be reached: it watches nothing any more.  (A worker's next Beat repairs what was lost on the way.)"""
        heard = self._heard.pop(peer, 0.0)
        for job_id in self._watching.pop(peer, ()):
            job = self.jobs[job_id]
            job.watchers.discard(peer)
            job.lookers.discard(peer)
            job.heard = max(job.heard, heard)
        self.uploads.left(peer)

    def drain(self, now: float) -> list[Command]:
        """Admit nothing new, start no job; those under way go on."""
        self.draining = True
        self._note("", "draining: jobs under way go on, the rest waits in the journal")
        return self._flush(now)

    @property
    def drained(self) -> bool:
        """Draining, and nothing is under way."""
        return self.draining and all(j.state is State.QUEUED and not j.outputs for j in self.jobs.values())

    def farewell(self) -> list[Command]:
        """The last words to every worker."""
        return [Send(w.peer, Drain()) for w in self.roster.lives.values()]

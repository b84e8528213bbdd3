"""What clients ask of the broker: to take a job, to tell of it, to end it, to show the books.  Pure."""

from __future__ import annotations

from typing import Literal

from ifmesh.books import books
from ifmesh.cascade import IMAGE64, IMAGE256, kept
from ifmesh.commands import Book, Closed, Command, Hand
from ifmesh.errors import BadRequest
from ifmesh.job import Cause, Job
from ifmesh.phases import Phases
from ifmesh.protocol import Accepted, Cancel, Cancelled, Fetch, Finished, Hi, Inspect, Refused, Submit, Wanted, Watch, Welcome
from ifmesh.rules import PROMPT_CHARACTERS

LEFT = {IMAGE64.name, IMAGE256.name}
"""What a client brings only where another job has left it: the mesh keeps it, or nobody has it."""


class Desk(Phases):
    """Dispatch and its phases, and the doors for clients."""

    # ---- uploads, as the shell tells of them

    def keeps(self, now: float, job: str, size: int) -> bool:
        """Is something to be kept beside the result of this open job, and is there room for it?  size: bytes of both."""
        return bool(kept(self.jobs[job].request)) and self.uploads.roomy(now, size)

    def wants(self, digest: str) -> bool:
        """Does a Submit wait for this upload, and is there room for it on disk?"""
        return self.uploads.wants(digest)

    def stored(self, now: float, digest: str, size: int, names: tuple[str, ...]) -> list[Command]:
        """The upload, a client's or one kept beside a result, is on disk.  names: of its tensors, in the order of `cascade.BROUGHT`.
        What waits for it counts as said again."""
        self.uploads.store(now, digest, size, names)
        self._timer(now + self.policy.upload_keep, "upload", digest)
        for peer, submit, owner in self.uploads.arrived(digest):
            self._submit(now, peer, submit, owner)
        return self._flush(now)

    def unstored(self, now: float, digest: str, reason: Literal["invalid", "busy"], detail: str) -> list[Command]:
        """The upload came, and is not on disk: whoever waits for it is told, instead of being asked for it for ever."""
        for peer, submit, _ in self.uploads.arrived(digest):
            self._send(peer, Refused(submit.job, reason, detail, self.policy.retry_after if reason == "busy" else 0.0, "upload"))
        return self._flush(now)

    # ---- without a change

    def knows(self, job: str) -> bool:
        """Is it open, or is its ending remembered?"""
        return job in self.jobs or job in self.ended

    def welcome(self) -> Welcome:
        """What every client is told first."""
        return Welcome(tuple(s.name for s in self.cascade.stages), self.epoch, PROMPT_CHARACTERS, self._inlet)

    # ---- doors.  owner: see `Broker.receive`; what is another's is as unknown as if it were not there, and its id as taken

    def _hi(self, now: float, peer: bytes, _: Hi, owner: str | None) -> None:
        self._send(peer, self.welcome())

    def _submit(self, now: float, peer: bytes, m: Submit, owner: str | None) -> None:
        # 1. ended already: told again.  2. under way: watched by one more.  3. wrong.  4. full.  5. its upload is not here.  6. new.
        if (closed := self.ended.get(m.job)) is not None:
            same = closed.request == m.request and owner in (None, closed.owner)
            self._send(peer, closed.ending if same else Refused(m.job, "conflict", "this job id was used for another request"))
        elif (job := self.jobs.get(m.job)) is not None:
            if job.request != m.request or owner not in (None, job.owner):
                self._send(peer, Refused(m.job, "conflict", "this job id is in use for another request"))
            else:
                self._send(peer, Accepted(m.job))
                self._watched(now, job, peer, m.previews)
        elif (refused := self._unfit(m)) is not None:
            self._send(peer, refused)
        elif self.draining or len(self.jobs) >= self.policy.max_jobs:
            why = "the mesh is being stopped" if self.draining else f"{len(self.jobs)} jobs are under way, the limit"
            self._send(peer, Refused(m.job, "busy", why, self.policy.retry_after))
        elif owner is not None and 2 * sum(job.owner == owner for job in self.jobs.values()) >= self.policy.max_jobs:
            why = "half of all jobs that there may be are yours, the limit of one key"
            self._send(peer, Refused(m.job, "busy", why, self.policy.retry_after))
        elif m.request.upload and self.uploads.sound(m.request.upload) is None:
            if not self.uploads.full:
                self._want(now, peer, m, owner)
                return
            if LEFT.isdisjoint(m.request.brings):
                why = f"{self.uploads.size} bytes of uploads, {len(self.uploads.stored)} in number, are on disk, the limit"
                self._send(peer, Refused(m.job, "busy", why, self.policy.retry_after))
            else:  # that it is here no more is an answer; room for it would be none
                self._send(peer, Wanted(m.job, m.request.upload))
        else:
            job = self._take_in(now, m, owner)
            self._send(peer, Accepted(m.job))
            self._enqueue(now, job)
            self._watched(now, job, peer, m.previews)
        self.uploads.settled(peer, m.job)

    def _take_in(self, now: float, m: Submit, owner: str | None) -> Job:
        job = self._book(now, m.job, m.request, owner or "")
        self._out.append(Book(m.job, m.request, job.owner))
        return job

    def _want(self, now: float, peer: bytes, m: Submit, owner: str | None) -> None:
        """Nothing is booked before the upload is on disk."""
        if not self._tiring:
            self._tiring = True
            self._timer(now + self.policy.upload_keep, "waiting", "")
        self.uploads.wait(now, peer, m, owner)
        self._send(peer, Wanted(m.job, m.request.upload))

    def _unfit(self, m: Submit) -> Refused | None:
        if not 1 <= len(m.job) <= 64 or not all(c.isascii() and (c.isalnum() or c in "_-") for c in m.job):
            return Refused(m.job[:64], "invalid", "job: 1 to 64 letters, digits, _ or -", field="job")
        try:
            self.cascade.check(m.request)
            self.uploads.fits(m.request)
        except BadRequest as error:
            return Refused(m.job, "invalid", str(error), field=error.field)
        return None

    def _open(self, job: str, owner: str | None) -> Job | None:
        """The job, if it is under way, and there for this owner."""
        found = self.jobs.get(job)
        return found if found is not None and owner in (None, found.owner) else None

    def _over_for(self, job: str, owner: str | None) -> Closed | None:
        """The same of a job that has ended."""
        found = self.ended.get(job)
        return found if found is not None and owner in (None, found.owner) else None

    def _watch(self, now: float, peer: bytes, m: Watch, owner: str | None) -> None:
        if (job := self._open(m.job, owner)) is not None:
            self._send(peer, Accepted(m.job))
            self._watched(now, job, peer, m.previews)
        elif (closed := self._over_for(m.job, owner)) is not None:
            self._send(peer, closed.ending)
        else:
            self._send(peer, Refused(m.job, "unknown", "no such job"))

    def _cancel(self, now: float, peer: bytes, m: Cancel, owner: str | None) -> None:
        # 1. under way.  2. waiting for its upload: taken, only to be ended; whatever else is said of this id, a Submit said again or
        # an upload that still comes, meets that ending.  3. ended already, or unknown.
        if (job := self._open(m.job, owner)) is not None:
            self._attend(now, job, peer)
            self._end(now, job, Cause.CANCELLED, Cancelled(job.id))
        elif m.job not in self.ended and m.job not in self.jobs and (said := self.uploads.withdrawn(m.job, owner)):
            mine = next((one for one in said if one[0] == peer), said[0])
            job = self._take_in(now, mine[1], mine[2])
            self._attend(now, job, peer)
            self._end(now, job, Cause.CANCELLED, Cancelled(job.id))
            for other, submit, whose in said:
                if other != peer:
                    self._submit(now, other, submit, whose)
        else:
            self._watch(now, peer, Watch(m.job), owner)

    def _fetch(self, now: float, peer: bytes, m: Fetch, owner: str | None) -> None:
        closed = self._over_for(m.job, owner)
        if closed is not None and isinstance(closed.ending, Finished):
            self._out.append(Hand(peer, m.job, closed.ending.digest, closed.request))
        else:
            why = "no result under this job id; results are kept for a time: mesh.keep_results, mesh.results_bytes"
            self._send(peer, Refused(m.job, "unknown", why))

    def _inspect(self, now: float, peer: bytes, m: Inspect, owner: str | None) -> None:
        jobs = self.jobs if owner is None else {job.id: job for job in self.jobs.values() if job.owner == owner}
        closed = self._over_for(m.job, owner)
        self._send(peer, books(now, m, jobs, {m.job: closed} if closed else {}, self.roster, self.queues, self.policy.page))

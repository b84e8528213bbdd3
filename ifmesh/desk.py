"""What clients ask of the broker: to take a job, to tell of it, to end it, to show the books.  Pure."""

from __future__ import annotations

from ifmesh.books import books
from ifmesh.commands import Book, Hand
from ifmesh.dispatch import Dispatch
from ifmesh.errors import BadRequest
from ifmesh.job import Cause
from ifmesh.protocol import Accepted, Cancel, Cancelled, Fetch, Finished, Hi, Inspect, Refused, Submit, Watch, Welcome
from ifmesh.rules import PROMPT_CHARACTERS


class Desk(Dispatch):
    """Dispatch, and the doors for clients."""

    def _hi(self, now: float, peer: bytes, _: Hi) -> None:
        self._send(peer, Welcome(tuple(s.name for s in self.cascade.stages), self.epoch, PROMPT_CHARACTERS))

    def _submit(self, now: float, peer: bytes, m: Submit) -> None:
        # 1. ended already: told again.  2. under way: watched by one more.  3. wrong.  4. full.  5. new.
        if (closed := self.ended.get(m.job)) is not None:
            same = closed.request == m.request
            self._send(peer, closed.ending if same else Refused(m.job, "conflict", "this job id was used for another request"))
        elif (job := self.jobs.get(m.job)) is not None:
            if job.request != m.request:
                self._send(peer, Refused(m.job, "conflict", "this job id is in use for another request"))
            else:
                self._send(peer, Accepted(m.job))
                self._watched(job, peer)
        elif (refused := self._unfit(m)) is not None:
            self._send(peer, refused)
        elif self.draining or len(self.jobs) >= self.policy.max_jobs:
            why = "the mesh is being stopped" if self.draining else f"{len(self.jobs)} jobs are under way, the limit"
            self._send(peer, Refused(m.job, "busy", why, self.policy.retry_after))
        else:
            job = self._book(now, m.job, m.request)
            self._out.append(Book(m.job, m.request))
            self._send(peer, Accepted(m.job))
            self._enqueue(now, job)
            self._watched(job, peer)

    def _unfit(self, m: Submit) -> Refused | None:
        if not 1 <= len(m.job) <= 64 or not all(c.isascii() and (c.isalnum() or c in "_-") for c in m.job):
            return Refused(m.job[:64], "invalid", "job: 1 to 64 letters, digits, _ or -", field="job")
        try:
            self.cascade.check(m.request)
        except BadRequest as error:
            return Refused(m.job, "invalid", str(error), field=error.field)
        return None

    def _watch(self, now: float, peer: bytes, m: Watch) -> None:
        if (job := self.jobs.get(m.job)) is not None:
            self._send(peer, Accepted(m.job))
            self._watched(job, peer)
        elif (closed := self.ended.get(m.job)) is not None:
            self._send(peer, closed.ending)
        else:
            self._send(peer, Refused(m.job, "unknown", "no such job"))

    def _cancel(self, now: float, peer: bytes, m: Cancel) -> None:
        if (job := self.jobs.get(m.job)) is None:
            self._watch(now, peer, Watch(m.job))
            return
        job.watchers.add(peer)
        self._watching.setdefault(peer, set()).add(job.id)
        self._end(now, job, Cause.CANCELLED, Cancelled(job.id))

    def _fetch(self, now: float, peer: bytes, m: Fetch) -> None:
        closed = self.ended.get(m.job)
        if closed is not None and isinstance(closed.ending, Finished):
            self._out.append(Hand(peer, m.job, closed.ending.digest))
        else:
            self._send(peer, Refused(m.job, "unknown", "no result under this job id"))

    def _inspect(self, now: float, peer: bytes, m: Inspect) -> None:
        self._send(peer, books(now, m, self.jobs, self.ended, self.roster, self.queues, self.policy.page))

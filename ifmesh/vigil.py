"""What the broker does because time passes: deadlines, silence, stalls, tethers, idle uploads, the end of the grace.  Pure.

One heap of timers.  An entry is a reason to look, never a verdict: what it was set for may long be over.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import inf

from ifmesh.cascade import Cascade
from ifmesh.commands import Command, Discard, Policy, parent_of
from ifmesh.desk import Desk
from ifmesh.job import Cause
from ifmesh.protocol import Cancelled, Endpoint, Failed, Kill
from ifmesh.roster import Worker


class Vigil(Desk):
    """The desk, and the watch over the clock."""

    def __init__(self, cascade: Cascade, epoch: int, inlet: tuple[Endpoint, ...], policy: Policy | None = None) -> None:
        super().__init__(cascade, epoch, inlet, policy)
        self._woke = 0.0
        self._looks: dict[str, Callable[[float, str], None]] = {
            "deadline": self._expire,
            "silence": self._listen,
            "suspect": self._convict,
            "grace": self._settle,
            "tether": self._tied,
            "upload": self._clear,
            "waiting": self._tire,
            "phase": self._turn,
            "ghost": self._presume,
        }

    def tick(self, now: float) -> list[Command]:
        self._overslept(now)
        while self._timers and self._timers[0][0] <= now:
            _, _, kind, key = heapq.heappop(self._timers)
            self._looks[kind](now, key)
        return self._flush(now)

    def wakeup(self) -> float | None:
        """When tick() next has work; None: never."""
        return self._timers[0][0] if self._timers else None

    def revoked(self, now: float, life: str) -> list[Command]:
        """Its key is valid no more.  Not buried: let in again, it says Hello again."""
        if (worker := self.roster.lives.get(life)) is not None:
            self._lose(now, worker, "its key was revoked", own=False)
            del self._suspects[life]  # what it dies of later, only a witness can tell
        return self._flush(now)

    def slept(self, now: float) -> None:
        """The coordinator has not listened until now: nobody's silence until then counts."""
        self._woke = now

    def _stalled(self, now: float, worker: Worker) -> None:
        """It beats, but nothing advances."""
        self._send(parent_of(worker.life), Kill(worker.life))
        self._lose(now, worker, f"stalled: no step for {now - worker.progressed:.0f} s (services.{worker.stage}.patience)", own=True)
        self._bury(worker.life)

    def _patience(self, stage: str) -> float:
        return self.policy.patience.get(stage) or self.cascade[stage].patience

    def _overslept(self, now: float) -> None:
        """When the coordinator itself was stopped for a while, nobody else's silence in that time counts."""
        if self._timers and now > self._timers[0][0] + 1.0:
            self._woke = now

    def _expire(self, now: float, key: str) -> None:
        job = self.jobs.get(key)
        if job is None:
            return
        # The timer may be that of an ended job whose id is in use again, or of what counts no more; the sums are those it was set for.
        passed = {name: when for name, when in job.deadlines().items() if now >= when}
        if job.id in self._orphans and passed.pop("deadline_queued", None) is not None:
            self._timer(now + self.policy.grace, "deadline", key)  # somebody may be about to say that it has long begun
        if passed:
            name = min(passed, key=passed.__getitem__)
            text = f"its {name} of {getattr(job.request, name):g} s passed" + (" before it began" if name == "deadline_queued" else "")
            self._end(now, job, Cause.EXPIRED, Failed(job.id, "expired", job.at, "", text))

    def _listen(self, now: float, life: str) -> None:
        """Has this worker said anything lately?"""
        worker = self.roster.lives.get(life)
        if worker is None:
            return
        heard = max(worker.seen, self._woke)
        patience = {"loading": self.policy.loading, "unloading": self.policy.unloading}.get(worker.state, inf)
        if now - worker.since > patience:
            self._send(parent_of(life), Kill(life))
            self._lose(now, worker, f"still {worker.state} after {patience:g} s", own=True)
        elif now >= heard + self.policy.silence:  # the very sum of the timer below: a difference may round the other way, for ever
            self._lose(now, worker, f"silent for {now - heard:.1f} s", own=False)
            if self._suspects[life]:
                self._timer(max(now, worker.progressed + self._patience(worker.stage)), "suspect", life)
            elif life in self.leases:
                self._timer(now + self._patience(worker.stage), "suspect", life)  # the memory that it may hold is wanted back
        else:
            self._timer(heard + self.policy.silence, "silence", life)

    def _convict(self, now: float, life: str) -> None:
        """Silent for longer than its stage's patience, with work in hand, and no witness of its death: wedged."""
        if life in self._suspects:
            self._send(parent_of(life), Kill(life))

    def _settle(self, now: float, _: str) -> None:
        """The grace after a restart is over: what nobody claimed goes back to its queue."""
        orphans, self._orphans = self._orphans, set()
        for job in sorted((self.jobs[j] for j in orphans), key=lambda j: j.order):
            if not job.ticket:
                self._deepest(now, job)
                self._enqueue(now, job)
                self._expire(now, job.id)
        for job in list(self.jobs.values()):
            self._reconsider(now, job, "its bag is gone")  # it may have died while nobody was granted anything

    def _tied(self, now: float, key: str) -> None:
        """Has anybody who watches this tied job been heard lately?"""
        job = self.jobs.get(key)
        if job is None or not job.request.tied:
            return
        heard = max(self._woke, job.heard, *(self._heard[peer] for peer in job.watchers))
        if now >= heard + self.policy.tether:
            self._story(now, job, f"{job.at}: nobody who watches it was heard for {now - heard:.1f} s, and it is tied to them")
            self._end(now, job, Cause.CANCELLED, Cancelled(job.id))
        else:
            self._timer(heard + self.policy.tether, "tether", key)

    def _clear(self, now: float, digest: str) -> None:
        """Is this upload still idle, and held no more?"""
        stored = self.uploads.stored.get(digest)
        if stored is not None and digest not in self.uploads.users and now >= stored.idle + self.policy.upload_keep:
            self.uploads.drop(digest)
            self._out.append(Discard(digest))

    def _tire(self, now: float, _: str) -> None:
        """Submits that wait for an upload and are not said any more: nobody asks for the job now."""
        again = self.uploads.tire(now, self.policy.upload_keep)
        self._tiring = again is not None
        if again is not None:
            self._timer(again, "waiting", "")

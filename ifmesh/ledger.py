"""The broker's ledger: jobs, workers, queues, and the small moves that keep them balanced.  Pure.

Nothing here decides.  Every method leaves the books such that `check` holds, or is one half of a pair that does.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import Any

from ifmesh.cascade import DRAWN, Cascade
from ifmesh.commands import Close, Closed, Command, Forget, Note, Policy, Send
from ifmesh.job import Cause, Job, Output, State
from ifmesh.protocol import Ended, Progress, Queued, Release, Started, ToClient
from ifmesh.roster import Roster, Worker
from ifmesh.uploads import Uploads
from ifmesh.waiting import Waiting

WATCHERS = 256
"""Peers that are told of one job; beyond, who was heard longest ago is forgotten: who comes back has another routing id."""
STALE = 1000
"""Timers of what is over that may pile up before they are swept out."""


class Ledger:
    """What the broker knows.  Commands pile up in `_out` until the broker hands them over."""

    def __init__(self, cascade: Cascade, epoch: int, policy: Policy | None = None) -> None:
        self.cascade = cascade
        self.epoch = epoch
        self.policy = policy or Policy()
        self.jobs: dict[str, Job] = {}
        self.ended: OrderedDict[str, Closed] = OrderedDict()
        self._remembered = 0  # bytes of them, about
        self.roster = Roster(tuple(s.name for s in cascade.stages), lambda job: self.jobs[job].request.priority)
        self.queues = {s.name: Waiting() for s in cascade.stages}
        self.uploads = Uploads(self.policy.max_uploads)
        self.draining = False
        self._orders = 0
        self._orphans: set[str] = set()  # after a restart: jobs that no worker has claimed yet
        self._reserved: dict[str, str] = {}  # job that must run alone -> life of the worker kept empty for it
        self._watching: dict[bytes, set[str]] = {}
        self._heard: dict[bytes, float] = {}  # when each of those who watch something was last heard
        self._waiting: dict[str, None] = {}  # jobs that came into a queue, of which nobody is told if they leave it at once
        self._showing: dict[str, None] = {}  # jobs with a new early picture, or with somebody new to show one to
        self._tiring = False  # is there a timer for the Submits that wait for their uploads?
        self._timers: list[tuple[float, int, str, str]] = []
        self._sweep_at = STALE
        self._out: list[Command] = []

    # ---- jobs in their places

    def _book(self, now: float, job_id: str, request: Any, owner: str) -> Job:
        self._orders += 1
        job = self.jobs[job_id] = Job(job_id, request, self.cascade.route(request), now, self._orders, owner=owner)
        self._story(now, job, "accepted")
        for when in job.deadlines().values():
            self._timer(when, "deadline", job_id)
        if request.tied:
            job.heard = now
            self._timer(now + self.policy.tether, "tether", job_id)
        self.uploads.use(request.upload, job_id)
        return job

    def _begin(self, now: float, job: Job) -> None:
        """A stage of it begins: if it is the first, as far as we know, other deadlines count from now on."""
        if job.begun is None:
            job.begun = now
            if job.request.deadline_running is not None:
                self._timer(now + job.request.deadline_running, "deadline", job.id)

    def _enqueue(self, now: float, job: Job) -> None:
        job.queued_at = now
        self.queues[job.at].add(job)
        self._waiting[job.id] = None

    def _leave(self, job: Job) -> None:
        """Out of its queue, or of the orphans."""
        if job.ticket:
            self.queues[job.at].remove(job)
        self._orphans.discard(job.id)
        self._unreserve(job)

    def _detach(self, job: Job) -> None:
        """From the worker it was granted to."""
        if (worker := self.roster.lives.get(job.life)) is not None:
            worker.tasks.pop(job.id, None)
            self.roster.offer(worker)
        self._unreserve(job)
        job.life = job.relayed = ""
        job.received = job.running = job.publishing = False
        job.step = job.steps = job.resume = 0

    def _unsave(self, job: Job) -> None:
        """Its checkpoint is of no use any more."""
        if job.saved is not None:
            job.saved = None
            self._out.append(Forget(job.id))

    def _spent(self, job: Job) -> None:
        """Its stage is done, or has failed with it.  One of a later stage, from which it had to go back, is still of use."""
        if job.saved is not None and job.saved.stage <= job.stage:
            self._unsave(job)

    def _unreserve(self, job: Job) -> None:
        worker = self.roster.lives.get(self._reserved.pop(job.id, ""))
        if worker is not None:
            worker.reserved = ""
            self.roster.offer(worker)

    def _deepest(self, now: float, job: Job) -> None:
        stage = max((i + 1 for i in job.outputs if i < job.stage), default=0)
        if stage != job.stage:
            self._story(now, job, f"{job.at}: back to {job.route[stage]}")
            job.stage = stage

    def _close(self, now: float, job: Job, ending: Ended) -> None:
        self._detach(job)
        self._unsave(job)
        for output in job.outputs.values():
            holder = self.roster.lives[output.life]
            holder.outputs.discard(job.id)
            self._send(holder.peer, Release(job.id, output.token))
        del self.jobs[job.id]
        story, runs = tuple(job.story), tuple(job.runs[i] for i in sorted(job.runs))
        self._out.append(Close(job.id, ending, story, runs))
        self._remember(Closed(job.id, job.request, ending, story, runs, job.owner))
        self._tell(job, ending)
        for peer in tuple(job.watchers):
            self._ignore(job, peer)
        if self.uploads.leave(now, job.request.upload, job.id):
            self._timer(now + self.policy.upload_keep, "upload", job.request.upload)

    def _hold(self, now: float, digest: str, seconds: float) -> None:
        """This upload, which is here, stays for so long, whoever refers to it; then it is as idle as any."""
        stored = self.uploads.hold(digest, now + seconds)
        self._timer(stored.idle + self.policy.upload_keep, "upload", digest)

    def _remember(self, closed: Closed) -> None:
        self._unremember(closed.job)
        self.ended[closed.job] = closed
        self._remembered += closed.weight
        while self.ended and (len(self.ended) > self.policy.remember or self._remembered > self.policy.remember_bytes):
            self._unremember(next(iter(self.ended)))

    def _unremember(self, job: str) -> None:
        if (closed := self.ended.pop(job, None)) is not None:
            self._remembered -= closed.weight

    def _index(self, job: Job, worker: Worker) -> int | None:
        return job.route.index(worker.stage) if worker.stage in job.route else None

    # ---- finished bags

    def _keep(self, worker: Worker, job: Job, index: int, output: Output) -> None:
        job.outputs[index] = output
        job.tokens[index] = output.token
        worker.outputs.add(job.id)
        if job.lookers and self._early(job, index):
            self._showing[job.id] = None

    @staticmethod
    def _early(job: Job, index: int) -> bool:
        """Does this stage draw a picture that is not the job's last?"""
        return job.route[index] in DRAWN and job.route[index] != job.request.last_stage

    def _trim(self, job: Job) -> None:
        """Release what is needed no more, because its successor exists twice."""
        for index in [i for i in job.outputs if i < job.floor]:
            output = job.outputs.pop(index)
            holder = self.roster.lives[output.life]
            holder.outputs.discard(job.id)
            self._send(holder.peer, Release(job.id, output.token))

    # ---- who hears of it

    def _attend(self, now: float, job: Job, peer: bytes) -> None:
        """This peer is told of the job from now on."""
        job.watchers.add(peer)
        self._watching.setdefault(peer, set()).add(job.id)
        self._heard[peer] = now
        if len(job.watchers) > WATCHERS:
            self._ignore(job, min(job.watchers, key=lambda peer: (self._heard[peer], peer)))

    def _ignore(self, job: Job, peer: bytes) -> None:
        """This peer is told of it no more, unless it asks again."""
        job.watchers.discard(peer)
        job.lookers.discard(peer)
        self._watching[peer].discard(job.id)
        if not self._watching[peer]:
            del self._watching[peer], self._heard[peer]

    def _watched(self, now: float, job: Job, peer: bytes, previews: bool) -> None:
        """From now on, and at once where it stands."""
        self._attend(now, job, peer)
        if previews and peer not in job.lookers:
            job.lookers.add(peer)
            self._showing[job.id] = None
        if job.id in self._waiting:
            pass  # everybody is told soon
        elif job.state is State.QUEUED:
            self._send(peer, Queued(job.id, job.at, self.queues[job.at].position(job)))
        elif job.running:
            self._send(peer, Started(job.id, job.at, self.roster.lives[job.life].name))
            if job.steps:
                self._send(peer, Progress(job.id, job.at, job.step, job.steps))

    def _send(self, to: bytes, message: Any) -> None:
        self._out.append(Send(to, message))

    def _tell(self, job: Job, message: ToClient) -> None:
        self._out += [Send(peer, message) for peer in sorted(job.watchers)]

    def _move(self, now: float, job: Job, cause: Cause, why: str = "") -> None:
        job.move(now, cause, why)
        self._note(job.id, job.story[-1][1])

    def _story(self, now: float, job: Job, text: str) -> None:
        job.tell(now, text)
        self._note(job.id, text)

    def _note(self, job: str, text: str) -> None:
        self._out.append(Note(job, text))

    def _timer(self, when: float, kind: str, key: str) -> None:
        self._orders += 1
        heapq.heappush(self._timers, (when, self._orders, kind, key))
        if len(self._timers) > self._sweep_at:  # deadlines may be a week off, and their jobs long over
            self._timers = [timer for timer in self._timers if timer[2] not in ("deadline", "tether") or timer[3] in self.jobs]
            heapq.heapify(self._timers)
            self._sweep_at = 2 * len(self._timers) + STALE

    def _foremost(self) -> dict[str, Job]:
        """By stage, the most urgent of those that wait, and might go to any worker."""
        found: dict[str, Job] = {}
        for job in self.jobs.values():
            if job.ticket and not (job.avoid or job.blame or job.stage in job.classes):
                other = found.setdefault(job.at, job)
                if other.request.priority < job.request.priority:
                    found[job.at] = job
        return found

    def check(self) -> None:
        """The books balance, or AssertionError.  Simulations ask after every event: each book is read once."""
        jobs, lives, orphans = self.jobs, self.roster.lives, self._orphans
        looked = {timer[2:] for timer in self._timers}
        waiting = dict.fromkeys(self.queues, 0)
        held: set[tuple[str, str]] = set()
        watchers = 0
        for job in jobs.values():
            name, stage, outputs, asked = job.id, job.stage, job.outputs, job.request
            assert bool(job.ticket) == (job.state is State.QUEUED) or name in orphans, f"{name}: queued and in its queue are one thing"
            if job.state is State.QUEUED:
                assert not job.life, f"{name}: queued, but {job.life} has it"
                assert job.step == job.resume == 0, f"{name}: queued, but at step {job.step}, or from {job.resume} on"
                assert stage == 0 or stage - 1 in outputs or name in orphans, f"{name}: waits without its bag"
            else:
                assert job.state is State.RUNNING, f"{name}: ended, but in the books"
                assert (lives[job.life].tasks.get(name) == job.token) != job.publishing, f"{name}: {job.life} disagrees"
                assert not job.publishing or outputs[job.last].life == job.life, f"{name}: publishes what nobody holds"
                assert job.token == job.tokens[stage], f"{name}: runs under a stale token"
            if job.ticket:
                waiting[job.route[stage]] += 1
            for index, output in outputs.items():
                assert name in lives[output.life].outputs, f"{name}: {output.life} does not know of bag {index}"
                assert index >= job.floor, f"{name}: bag {index} should have been released"
                held.add((output.life, name))
            assert job.lookers <= job.watchers, f"{name}: somebody looks who does not watch"
            watchers += len(job.watchers)
            assert ("deadline", name) in looked or not job.deadlines(), f"{name}: nobody looks after its deadlines"
            assert not asked.tied or ("tether", name) in looked, f"{name}: tied, and nobody looks after it"
            assert job.begun is not None or not (job.running or outputs), f"{name}: begun, and nobody knows since when"
        for life, worker in lives.items():
            for name in worker.tasks:
                assert jobs[name].life == life, f"{name}: {life} has it, the job says otherwise"
            for name in worker.outputs:
                assert (life, name) in held, f"{name}: {life} holds nothing"
            assert not worker.reserved or self._reserved.get(worker.reserved) == life, f"{life}: reserved for nobody"
        for name, life in self._reserved.items():
            job, holder = jobs[name], lives.get(life)
            assert job.blame >= self.policy.alone, f"{name}: {life} is kept empty for it without a reason"
            idle = holder is not None and holder.state == "ready" and not (holder.tasks or holder.full or holder.name in self.roster.aside)
            assert not (idle and job.ticket) or orphans or self.draining, f"{name} waits while {life} is empty for it"
        assert self._remembered == sum([closed.weight for closed in self.ended.values()]), "the weight of what is remembered"
        for peer, watched in self._watching.items():
            watchers -= len(watched)
            assert watched, f"{peer!r} watches nothing"
            for name in watched:
                assert peer in jobs[name].watchers, f"{peer!r} watches {name}, which does not know of it"
        assert watchers == 0, "who watches what?"
        assert self._heard.keys() == self._watching.keys(), "who was heard, and watches nothing?"
        self.uploads.check(jobs)
        assert self._tiring == (("waiting", "") in looked), "who looks after those that wait?"
        assert self._tiring or not len(self.uploads), "those that wait are not looked after"
        for digest in self.uploads.stored:
            assert digest in self.uploads.users or ("upload", digest) in looked, f"{digest} will never be discarded"
        if not orphans and not self.draining:
            for at, queue in self.queues.items():
                assert len(queue) == waiting[at], f"{at}: the queue miscounts"
            for at, job in self._foremost().items():
                assert self.roster.least_loaded(at) is None, f"{job.id} waits while a worker of {at} has room"

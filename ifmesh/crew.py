"""What workers and their parents say to the broker.  Pure.

Each Beat is compared with the books (`_claimed`, `_offered`, `_chase`), so that any lost message is repaired by the next.
"""

from __future__ import annotations

from dataclasses import replace

from ifmesh.job import Job, Output, State
from ifmesh.protocol import (
    NEVER,
    Beat,
    Bye,
    Done,
    Drop,
    Exited,
    Held,
    Hello,
    Kill,
    Lives,
    Noted,
    Raised,
    Received,
    Refused,
    Release,
    Step,
    Token,
    Verdicts,
    Who,
)
from ifmesh.roster import Worker, named
from ifmesh.vigil import Vigil

WORDS = 500
"""Characters of a foreign text that is kept or told on: a story of 200 such lines still fits into an answer."""


NAMES = 200
"""Characters of a name, an address or a device: a page of a hundred workers still fits into an answer."""


class Crew(Vigil):
    """The watch, and the doors for workers."""

    def _hello(self, now: float, peer: bytes, m: Hello) -> None:
        if m.life in self._over:
            self._dismiss(peer, m.life)
            return
        names = m.life, m.name, m.host, m.device, *(part for end in m.endpoints for part in (end.host, end.url, end.key))
        if len(m.endpoints) > 8 or max(map(len, names)) > NAMES or len(m.numeric) > WORDS:
            self._send(peer, Refused("", "invalid", f"Hello: names of at most {NAMES} characters, and 8 endpoints"))
            return
        if m.needs < 0 or (m.needs and m.needs > m.budget):
            why = f"Hello: it needs {m.needs} bytes of {m.device}, where those in swap may take {m.budget} together"
            self._send(peer, Refused("", "invalid", why, field="needs"))
            return
        if m.stage not in self.queues:
            why = f"no stage {m.stage[:NAMES]!r} in this cascade: {', '.join(self.queues)}"
            self._send(peer, Refused("", "invalid", why, field="stage"))
            return
        if (known := self.roster.lives.get(m.life)) is not None:
            if (m.stage, named(m)) != (known.stage, named(known.hello)):
                self._send(peer, Refused("", "conflict", f"{m.life} is known as {known.name}"))
            else:
                known.peer, known.seen = peer, now
                self._join(known, m)
                self.roster.offer(known)  # it may take more than before
            return
        if (older := self.roster.names.get(named(m))) is not None:
            self._lose(now, older, "a newer process runs under its name", own=False)
            self._bury(older.life)
            self._freed(older.life)
        elif len(self.roster.lives) >= self.policy.max_workers:
            self._send(peer, Refused("", "busy", f"{len(self.roster.lives)} workers are here, the limit", self.policy.retry_after))
            return
        self._suspects.pop(m.life, None)
        self._unheard.pop(m.life, None)
        self.roster.add(worker := Worker(m, peer, since=now, seen=now, progressed=now))
        self._join(worker, m)
        self._timer(now + self.policy.silence, "silence", m.life)
        self._note("", f"{m.name} is here: {m.stage} on {m.device}, pid {m.pid}")

    def _dismiss(self, peer: bytes, life: str) -> None:
        """A life that was given up still speaks (its Kill was lost, or another runs under its name): it is to end."""
        self._send(peer, Refused("", "conflict", f"{life} was given up, or another process runs under its name"))

    def _known(self, peer: bytes, life: str) -> Worker | None:
        """The living worker that speaks; a stranger is asked who it is."""
        worker = self.roster.lives.get(life)
        if worker is None or worker.peer != peer:
            if life in self._over:
                self._dismiss(peer, life)
            else:
                self._send(peer, Who())
            return None
        return worker

    def _beat(self, now: float, peer: bytes, m: Beat) -> None:
        worker = self._known(peer, m.life)
        if worker is None or m.number <= worker.beat:
            return
        worker.beat, worker.seen, worker.full = m.number, now, m.full
        if worker.state != m.state:
            self._note("", f"{worker.name} is {m.state}")
            worker.state, worker.since = m.state, now
        self._holds(now, worker, m.lease)
        drop: list[tuple[str, Token]] = []
        release: list[tuple[str, Token]] = []
        for held in m.held:
            job = self.jobs.get(held.job)
            keeps = job is not None and (self._offered if held.state == "done" else self._claimed)(now, worker, job, held)
            if not keeps:
                (release if held.state == "done" else drop).append((held.job, held.token))
        tasks = {h.job: h for h in m.held if h.state != "done"}
        for job_id in list(worker.tasks):
            self._chase(now, worker, self.jobs[job_id], tasks.get(job_id))
        for job_id in worker.outputs - {h.job for h in m.held if h.state == "done"}:
            self._missing(now, worker, self.jobs[job_id])
        if any(h.state != "waiting" for h in tasks.values()) and now - worker.progressed > self._patience(worker.stage):
            self._stalled(now, worker)
            return
        self.roster.offer(worker)
        self._send(peer, Verdicts(m.number, tuple(drop), tuple(release)))

    def _claimed(self, now: float, worker: Worker, job: Job, held: Held) -> bool:
        """A Beat says that the worker has this task.  May it keep it?"""
        index = self._index(job, worker)
        if index is None or held.token < job.tokens.get(index, NEVER):
            return False
        if job.state is State.RUNNING and job.life == worker.life and job.token == held.token and not job.publishing:
            pass
        elif (
            job.state is State.QUEUED and job.stage <= index and self._able(worker) and (held.state != "waiting" or self._comes(job, index))
        ):
            self._adopt(now, job, worker, index, held.token, f"{worker.name} has it already")
            self._trim(job)
            if self.policy.checkpoints:
                self._order(job, worker)  # where they go now; and it may wait for one that an older coordinator had
        else:
            return False
        if held.state != "waiting":
            self._has_bag(now, worker, job)
        if held.state == "running":
            self._advance(now, worker, job, held.step, held.steps)
        return True

    def _comes(self, job: Job, index: int) -> bool:
        """Can the bag that this stage waits for still come?  After a restart its holder may not have spoken yet."""
        return index == 0 or index - 1 in job.outputs or job.id in self._orphans

    def _offered(self, now: float, worker: Worker, job: Job, held: Held) -> bool:
        """A Done, or a Beat that says so: this stage's bag is in the outbox.  Is it to be kept?"""
        index = self._index(job, worker)
        if index is None or held.token < job.tokens.get(index, NEVER):
            return False
        known = job.outputs.get(index)
        if known is not None:
            if job.publishing and index == job.last and known.life == worker.life and self._overdue(now, job, worker):
                self._publish(now, job, worker)
            return known.life == worker.life and known.token == held.token
        output = Output(worker.life, held.token, held.digest, held.size)
        orphan = job.id in self._orphans
        # 1. the task it was granted, done.  2. a late answer under the newest token, or one from before a restart: it counts.
        # 3. the job is further on; the copy is worth keeping while its successor does not exist twice.
        if job.state is State.RUNNING and job.stage <= index and job.token < held.token:
            self._retry(now, job, f"{worker.name} has a later bag")
        if job.state is State.QUEUED and job.stage <= index:
            self._adopt(now, job, worker, index, held.token, f"{worker.name} has finished it already")
        if job.state is State.RUNNING and job.life == worker.life and job.token == held.token and job.stage == index:
            self._completed(now, worker, job, output, held)
            if orphan and job.ticket:
                self._orphans.add(job.id)  # the next stage may be running somewhere
            return True
        if not job.floor <= index < job.stage:
            return False
        self._keep(worker, job, index, output)
        return True

    def _chase(self, now: float, worker: Worker, job: Job, held: Held | None) -> None:
        """The worker beats, and this grant of it waits for something: send again what may be lost."""
        if held is None:
            self._order(job, worker)
        lost = job.received and (held is None or held.state == "waiting")  # its Raised was lost, or the bag was spoiled there
        if lost:
            job.received = job.running = False
        if job.received or not (lost or self._overdue(now, job, worker)):
            return
        if job.pushes < self.policy.transfers + (job.stage > 0):  # the last by way of the coordinator, if it is not there already
            self._push(now, job, worker)
        else:
            job.avoid.add(worker.name)  # the way there may be cut: rather another, if there is one
            self._spent(job)  # it may be that alone which did not come
            self._retry(now, job, f"its bag did not reach {worker.name} in {job.pushes} tries")

    def _overdue(self, now: float, job: Job, worker: Worker) -> bool:
        """Is what was pushed to this worker, or by it to the coordinator, lost rather than still under way?

        A slow link shows nothing until the last byte, and to push again would fill it with the same: each gets the time that its bytes
        take, and those of all that is, or was since, on its way from the same sender or to the same receiver.  But what was pushed later
        over the same link does not overtake it.
        """
        source = self._cargo(job)
        over = "" if job.publishing else source.life if source is not None and not job.relayed else None
        if over is not None and job.pushed < worker.came.get(over, 0.0):
            return now >= job.pushed + self.policy.transfer
        sharing = worker.tasks.keys() | {job.id} | (self.roster.lives[source.life].outputs if source is not None else set())
        waited = [other for j in sharing if (other := self.jobs[j]).life and (other.publishing or not other.received)]
        job.due = max(job.due, job.pushed + self.policy.transfer + sum(map(self._bulk, waited)) / self.policy.slowest)
        return now >= job.due

    @staticmethod
    def _cargo(job: Job) -> Output | None:
        """The bag that its worker waits for, or the coordinator.  None: it is the first, or gone."""
        return job.outputs.get(job.stage if job.publishing else job.stage - 1)

    def _bulk(self, job: Job) -> int:
        """Its bytes: by way of the coordinator they go twice; and with each grant they get more time, whatever link is slower than told."""
        bag = self._cargo(job)
        size = bag.size if bag is not None else self.uploads.size_of(job.request.upload)
        return size * (2 if job.relayed else 1) * job.starts.get(job.stage, 1)

    def _missing(self, now: float, worker: Worker, job: Job) -> None:
        """A bag that was in the worker's outbox is there no more."""
        for index in [i for i, o in job.outputs.items() if o.life == worker.life]:
            del job.outputs[index]
        worker.outputs.discard(job.id)
        self._reconsider(now, job, f"{worker.name} has lost its bag")

    def _step(self, now: float, peer: bytes, m: Step) -> None:
        if (granted := self._granted(peer, m)) is not None:
            self._has_bag(now, *granted)
            self._advance(now, *granted, m.step, m.steps)

    def _received(self, now: float, peer: bytes, m: Received) -> None:
        if (granted := self._granted(peer, m)) is not None:
            self._has_bag(now, *granted)

    def _done(self, now: float, peer: bytes, m: Done) -> None:
        if (worker := self._known(peer, m.life)) is None:
            return
        job = self.jobs.get(m.job)
        held = Held(m.job, m.token, "done", m.steps, m.steps, m.digest, m.size, m.seconds)
        if job is None or not self._offered(now, worker, job, held):
            self._send(peer, Release(m.job, m.token))

    def _raised(self, now: float, peer: bytes, m: Raised) -> None:
        m = replace(m, error=m.error[:WORDS])
        if (granted := self._granted(peer, m)) is None:
            return
        worker, job = granted
        worker.progressed = now
        del worker.tasks[job.id]
        job.errors += m.fault == "stage"
        self._story(now, job, f"{job.at}: raised on {worker.name}: {m.error}")
        if m.fault == "request":
            self._fail(now, job, "request", m.error)
        elif job.errors >= self.policy.errors:
            self._fail(now, job, "error", m.error)
        else:
            job.avoid.add(worker.name)
            self._spent(job)  # it may be what it raised of
            self._retry(now, job, f"raised on {worker.name}")

    def _granted(self, peer: bytes, m: Step | Received | Raised) -> tuple[Worker, Job] | None:
        """The worker and the job, if the message is under the newest token; the worker is told to drop it if not."""
        if (worker := self._known(peer, m.life)) is None:
            return None
        job = self.jobs.get(m.job)
        if job is not None and job.life == worker.life and job.token == m.token and not job.publishing:
            return worker, job
        index = None if job is None else self._index(job, worker)
        if job is None or index is None or m.token < job.tokens.get(index, NEVER):
            self._send(peer, Drop(m.job, m.token))
        return None  # else it is older than this coordinator: the worker's Beat will have it adopted

    def _bye(self, now: float, peer: bytes, m: Bye) -> None:
        if (worker := self._known(peer, m.life)) is not None:
            self._lose(now, worker, "said good-bye", own=False)
            self._bury(m.life)
            self._freed(m.life)

    def _lives(self, now: float, peer: bytes, m: Lives) -> None:
        """The parent's word: that process is there.  When nothing is heard of it all the same it is stopped, or wedged, maybe since before
        this coordinator: nobody else would end it, and it keeps what it has of its host, and its place from a successor."""
        if m.life in self.roster.lives:
            return
        since = self._unheard.setdefault(m.life, now)
        if now >= max(since, self._woke) + self.policy.presumed:
            self._send(peer, Kill(m.life))
        while len(self._unheard) > self.policy.max_workers:
            self._unheard.pop(next(iter(self._unheard)))

    def _exited(self, now: float, peer: bytes, m: Exited) -> None:
        """The parent's word: that life is over, and why.  Repeated until it hears Noted."""
        m = replace(m, detail=m.detail[:WORDS])
        self._send(peer, Noted(m.life))
        own = m.cause in ("crashed", "stalled")
        ran = None if m.ran is None else set(m.ran) & self.jobs.keys()
        if (worker := self.roster.lives.get(m.life)) is not None:
            self._lose(now, worker, f"{m.cause}: {m.detail}", own, ran)
        elif own:  # lost in silence before, or for another under its name, or never seen: it died while no coordinator was there
            name = m.name[:WORDS] or m.life
            known = self._suspects.get(m.life, set())
            self._hold_against(now, known if ran is None else ran, name, m.life, f"{name} {m.cause}: {m.detail}")
        self._bury(m.life)
        self._freed(m.life)

"""The coordinator's mind: pure.  No clock, no socket, no thread, no randomness: time and messages go in, commands come out.

Everything that decides is here.  How it is kept right: `_assign` is the only place where a job meets a worker, and runs after every
change; each Beat is compared with the books (`_claimed`, `_offered`, `_chase`), so that any lost message is repaired by the next.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from ifmesh.books import books
from ifmesh.cascade import PROMPT_CHARACTERS, Cascade
from ifmesh.commands import Blame, Book, Booked, Close, Closed, Command, Give, Hand, Note, Policy, Send, parent_of
from ifmesh.errors import BadRequest
from ifmesh.job import Cause, Job, Output, State
from ifmesh.protocol import (
    NEVER,
    Accepted,
    Beat,
    Bye,
    Cancel,
    Cancelled,
    Done,
    Drain,
    Drop,
    Ended,
    Endpoint,
    Exited,
    Failed,
    Fetch,
    Finished,
    Held,
    Hello,
    Hi,
    Inspect,
    Kill,
    Noted,
    Progress,
    Push,
    Queued,
    Raised,
    Received,
    Refused,
    Release,
    Run,
    StageRun,
    Started,
    Step,
    Submit,
    ToClient,
    ToCoordinator,
    Token,
    Verdicts,
    Watch,
    Welcome,
    Who,
)
from ifmesh.roster import Roster, Worker
from ifmesh.waiting import Waiting

__all__ = ["Blame", "Book", "Booked", "Broker", "Close", "Closed", "Command", "Give", "Hand", "Note", "Policy", "Send", "parent_of"]


class Broker:
    """Feed it what arrived and the time; carry out what it returns, in order; call tick() no later than wakeup()."""

    def __init__(self, cascade: Cascade, epoch: int, inlet: tuple[Endpoint, ...], policy: Policy | None = None) -> None:
        self.cascade = cascade
        self.epoch = epoch
        self.policy = policy or Policy()
        self.jobs: dict[str, Job] = {}
        self.ended: OrderedDict[str, Closed] = OrderedDict()
        self.roster = Roster(tuple(s.name for s in cascade.stages))
        self.queues = {s.name: Waiting() for s in cascade.stages}
        self.draining = False
        self._inlet = inlet
        self._grants = 0
        self._orders = 0
        self._orphans: set[str] = set()  # after a restart: jobs that no worker has claimed yet
        self._over: OrderedDict[str, None] = OrderedDict()  # lives known to have ended: nothing of theirs counts
        self._suspects: dict[str, tuple[str, str, set[str]]] = {}  # silent lives: (name, stage, what ran there)
        self._crimes: dict[str, list[tuple[float, str]]] = {}  # a worker's deaths of its own making: when, and what ran
        self._reserved: dict[str, str] = {}  # job that must run alone -> life of the worker kept empty for it
        self._watching: dict[bytes, set[str]] = {}
        self._timers: list[tuple[float, int, str, str]] = []
        self._woke = 0.0
        self._out: list[Command] = []
        self._doors: dict[type, Callable[[float, bytes, Any], None]] = {
            Hi: self._hi,
            Submit: self._submit,
            Cancel: self._cancel,
            Watch: self._watch,
            Fetch: self._fetch,
            Inspect: self._inspect,
            Hello: self._hello,
            Beat: self._beat,
            Step: self._step,
            Received: self._received,
            Done: self._done,
            Raised: self._raised,
            Bye: self._bye,
            Exited: self._exited,
        }

    # ---- the doors

    def recover(self, now: float, open_jobs: Iterable[Booked], ended: Iterable[Closed]) -> list[Command]:
        """After a start, before anything else: what the journal knows.  While there are open jobs nothing is granted for
        `policy.grace` seconds or until a worker has claimed each: first comes what still runs."""
        for closed in ended:
            self._remember(closed)
        for booked in open_jobs:
            job = self._book(now - booked.age, booked.job, booked.request)
            job.blame, job.queued_at = booked.blame, now
            self._story(now, job, "the coordinator was started again")
            self._orphans.add(job.id)
        if self._orphans:
            self._timer(now + self.policy.grace, "grace", "")
            self._note("", f"{len(self._orphans)} jobs from the journal; adopting what still runs for {self.policy.grace:g} s")
        return self._flush(now)

    def receive(self, now: float, peer: bytes, message: ToCoordinator) -> list[Command]:
        """peer: routing id of the sender."""
        self._overslept(now)
        self._doors[type(message)](now, peer, message)
        return self._flush(now)

    def tick(self, now: float) -> list[Command]:
        self._overslept(now)
        while self._timers and self._timers[0][0] <= now:
            _, _, kind, key = heapq.heappop(self._timers)
            {"deadline": self._expire, "silence": self._listen, "grace": self._settle, "suspect": self._convict}[kind](now, key)
        return self._flush(now)

    def wakeup(self) -> float | None:
        """When tick() next has work; None: never."""
        return self._timers[0][0] if self._timers else None

    def expects(self, job: str, token: Token) -> bool:
        """Is a result of this job, under this token, to be stored?"""
        known = self.jobs.get(job)
        return known is not None and known.publishing and known.token == token

    def landed(self, now: float, job: str, token: Token, digest: str, size: int) -> list[Command]:
        """The result is on disk.  digest: SHA-256 (hex) of the frame.  Only the first counts: afterwards the job is gone."""
        known = self.jobs.get(job)
        if known is not None and self.expects(job, token):
            runs = tuple(known.runs[i] for i in sorted(known.runs))
            self._move(now, known, Cause.COMPLETED, f"{size} bytes on disk")
            self._close(now, known, Finished(job, digest, size, known.request.seed, known.reproducible, runs))
        return self._flush(now)

    def gone(self, now: float, peer: bytes) -> None:
        """This peer cannot be reached: it watches nothing any more.  (A worker's next Beat repairs what was lost on the way.)"""
        for job in self._watching.pop(peer, ()):
            if job in self.jobs:
                self.jobs[job].watchers.discard(peer)

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

    # ---- clients

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

    def _watched(self, job: Job, peer: bytes) -> None:
        """From now on, and at once where it stands."""
        job.watchers.add(peer)
        self._watching.setdefault(peer, set()).add(job.id)
        if job.state is State.QUEUED:
            self._send(peer, Queued(job.id, job.at, self.queues[job.at].position(job)))
        elif job.running:
            self._send(peer, Started(job.id, job.at, self.roster.lives[job.life].name))
            self._send(peer, Progress(job.id, job.at, job.step, job.steps))

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

    # ---- workers

    def _hello(self, now: float, peer: bytes, m: Hello) -> None:
        if m.life in self._over:
            self._send(peer, Refused("", "conflict", f"{m.life} is over; or another process runs as {m.name}"))
            return
        if m.stage not in self.queues:
            self._send(peer, Refused("", "invalid", f"no stage {m.stage!r} in this cascade: {', '.join(self.queues)}", field="stage"))
            return
        if (known := self.roster.lives.get(m.life)) is not None:
            known.hello, known.peer, known.seen = m, peer, now
            return
        if (older := self.roster.names.get(m.name)) is not None:
            self._lose(now, older, "a newer process runs under its name", own=False)
            self._bury(older.life)
        self._suspects.pop(m.life, None)
        self.roster.add(Worker(m, peer, since=now, seen=now, progressed=now))
        self._timer(now + self.policy.silence, "silence", m.life)
        self._note("", f"{m.name} is here: {m.stage} on {m.device}, pid {m.pid}")

    def _known(self, peer: bytes, life: str) -> Worker | None:
        """The living worker that speaks; a stranger is asked who it is."""
        worker = self.roster.lives.get(life)
        if worker is None or worker.peer != peer:
            if life not in self._over:
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
            worker.state = m.state
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
        elif job.state is State.QUEUED and job.stage <= index:
            self._adopt(now, job, worker, index, held.token, f"{worker.name} has it already")
        else:
            return False
        if held.state != "waiting":
            self._has_bag(now, worker, job)
        if held.state == "running":
            self._advance(now, worker, job, held.step, held.steps)
        return True

    def _offered(self, now: float, worker: Worker, job: Job, held: Held) -> bool:
        """A Done, or a Beat that says so: this stage's bag is in the outbox.  Is it to be kept?"""
        index = self._index(job, worker)
        if index is None or held.token < job.tokens.get(index, NEVER):
            return False
        known = job.outputs.get(index)
        if known is not None:
            if job.publishing and index == job.last and now - job.pushed >= self.policy.transfer:
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
        late = now - job.pushed >= self.policy.transfer
        if held is None:
            self._send(worker.peer, Run(job.id, job.token, job.request))
        if job.received and held is not None and held.state == "waiting":
            job.received = job.running = False  # it was spoiled there
        if job.received or not late:
            return
        if job.pushes < self.policy.transfers:
            self._push(now, job, worker)
        else:
            self._retry(now, job, f"its bag did not reach {worker.name} in {job.pushes} tries")

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

    def _exited(self, now: float, peer: bytes, m: Exited) -> None:
        """The parent's word: that life is over, and why.  Repeated until it hears Noted."""
        self._send(peer, Noted(m.life))
        own = m.cause in ("crashed", "stalled")
        if (worker := self.roster.lives.get(m.life)) is not None:
            self._lose(now, worker, f"{m.cause}: {m.detail}", own)
        elif (suspect := self._suspects.pop(m.life, None)) is not None and own:
            name, _, ran = suspect
            for job_id in sorted(ran & self.jobs.keys()):
                self._blame(now, self.jobs[job_id], name, f"{name} {m.cause}: {m.detail}")
        self._bury(m.life)

    # ---- the one rule

    def _assign(self, now: float) -> None:
        """The only place where a job meets a worker.  Drain before admitting: the last stage first."""
        if self._orphans:
            return
        for stage in reversed(self.queues):
            queue = self.queues[stage]
            if not queue or not self.roster.stages[stage]:
                continue
            for job in queue.drain():
                if self.draining and job.stage == 0:
                    continue
                picky = job.avoid or job.blame >= self.policy.alone or job.stage in job.classes
                worker = self._pick(job) if picky else self.roster.least_loaded(stage)
                if worker is not None:
                    queue.remove(job)
                    self._grant(now, job, worker)
                elif not picky:
                    break

    def _pick(self, job: Job) -> Worker | None:
        """A worker for a job with a past: alone after deaths, in its numeric class if one serves it, away from where it raised."""
        usable = self.roster.usable(job.at)
        usable = [w for w in usable if w.hello.numeric == job.classes.get(job.stage)] or usable
        usable = [w for w in usable if w.name not in job.avoid] or usable
        if job.blame < self.policy.alone:
            return min((w for w in usable if w.room), key=lambda w: (len(w.tasks), w.life), default=None)
        mine = [w for w in usable if w.reserved == job.id] or [w for w in usable if not w.reserved]
        worker = min(mine, key=lambda w: (len(w.tasks), w.life), default=None)
        self._unreserve(job)
        if worker is None:
            return None
        worker.reserved, self._reserved[job.id] = job.id, worker.life
        return worker if not worker.tasks and not worker.full else None

    def _unreserve(self, job: Job) -> None:
        worker = self.roster.lives.get(self._reserved.pop(job.id, ""))
        if worker is not None:
            worker.reserved = ""
            self.roster.offer(worker)

    def _grant(self, now: float, job: Job, worker: Worker) -> None:
        self._grants += 1
        self._move(now, job, Cause.ASSIGNED, worker.name)
        self._take(now, job, worker, job.stage, (self.epoch, self._grants))
        job.starts[job.stage] = job.starts.get(job.stage, 0) + 1
        job.pushes = 0
        self._send(worker.peer, Run(job.id, job.token, job.request))
        self._push(now, job, worker)

    def _adopt(self, now: float, job: Job, worker: Worker, index: int, token: Token, why: str) -> None:
        """A worker already has it, under the newest token."""
        self._leave(job)
        job.stage = index
        self._move(now, job, Cause.ADOPTED, why)
        self._take(now, job, worker, index, token)
        job.starts.setdefault(index, 1)
        job.pushed, job.pushes = now, 0

    def _take(self, now: float, job: Job, worker: Worker, index: int, token: Token) -> None:
        if job.classes.setdefault(index, worker.hello.numeric) != worker.hello.numeric:
            job.reproducible = False
        job.token = job.tokens[index] = token
        job.life = worker.life
        job.received = job.running = False
        job.step = job.steps = 0
        worker.tasks[job.id] = token
        self.roster.offer(worker)

    def _push(self, now: float, job: Job, worker: Worker) -> None:
        """Have the bag sent to the worker of the grant, by whoever holds it."""
        job.pushed = now
        job.pushes += 1
        if job.stage == 0:
            self._out.append(Give(job.id, job.token, job.at, worker.life, worker.hello.endpoints))
        elif (source := job.outputs.get(job.stage - 1)) is not None:
            self._send(self.roster.lives[source.life].peer, Push(job.id, job.token, worker.life, worker.hello.endpoints))
        elif not self._orphans:
            self._retry(now, job, "its bag is gone")

    # ---- what follows

    def _has_bag(self, now: float, worker: Worker, job: Job) -> None:
        if job.received:
            return
        job.received = True
        worker.progressed = max(worker.progressed, now)
        self._trim(job)

    def _advance(self, now: float, worker: Worker, job: Job, step: int, steps: int) -> None:
        if job.running and step <= job.step:
            return
        if not job.running:
            job.running, job.started_at = True, now
            self._story(now, job, f"{job.at}: begun on {worker.name}")
            self._tell(job, Started(job.id, job.at, worker.name))
        job.step, job.steps = step, steps
        worker.progressed = now
        self._tell(job, Progress(job.id, job.at, step, steps))

    def _completed(self, now: float, worker: Worker, job: Job, output: Output, held: Held) -> None:
        """The granted stage is done: on to the next, or the result to disk."""
        begun = job.started_at if job.running else now
        before = job.runs.get(job.stage - 1)
        job.runs[job.stage] = StageRun(
            stage=job.at,
            worker=worker.name,
            pid=worker.hello.pid,
            device=worker.hello.device,
            queued_s=max(0.0, begun - job.queued_at),
            run_s=held.seconds,
            steps=held.steps,
            bytes_in=before.bytes_out if before else 0,
            bytes_out=held.size,
            runs=job.starts.get(job.stage, 1),
        )
        worker.progressed = now
        worker.done += 1
        self._tell(job, Progress(job.id, job.at, held.steps, held.steps))
        self._has_bag(now, worker, job)
        self._keep(worker, job, job.stage, output)
        if job.stage == job.last:
            self._story(now, job, f"{job.at}: done on {worker.name}, {held.steps} steps, {held.seconds:.2f} s")
            del worker.tasks[job.id]
            self._unreserve(job)
            self.roster.offer(worker)
            job.publishing, job.running = True, False
            self._publish(now, job, worker)
            return
        self._move(now, job, Cause.ADVANCED, f"done on {worker.name}, {held.steps} steps, {held.seconds:.2f} s")
        self._detach(job)
        job.stage += 1
        self._enqueue(now, job)

    def _publish(self, now: float, job: Job, worker: Worker) -> None:
        job.pushed = now
        self._send(worker.peer, Push(job.id, job.token, "", self._inlet, "result"))

    def _retry(self, now: float, job: Job, why: str) -> None:
        """Back to its queue, from the deepest output that still lives."""
        self._move(now, job, Cause.RETRIED, why)
        worker = self.roster.lives.get(job.life)
        if worker is not None and job.id in worker.tasks:
            self._send(worker.peer, Drop(job.id, job.token))
        self._detach(job)
        self._deepest(now, job)
        self._enqueue(now, job)

    def _reconsider(self, now: float, job: Job, why: str) -> None:
        """One of its bags is gone: does it still have what its next step needs?"""
        if job.id in self._orphans:
            return
        if job.publishing:
            if job.stage not in job.outputs:
                self._retry(now, job, why)
        elif job.stage > 0 and job.stage - 1 not in job.outputs:
            if job.state is State.RUNNING and not job.received:
                self._retry(now, job, why)
            elif job.state is State.QUEUED:
                self._leave(job)
                self._story(now, job, f"{job.at}: {why}")
                self._deepest(now, job)
                self._enqueue(now, job)

    def _deepest(self, now: float, job: Job) -> None:
        stage = max((i + 1 for i in job.outputs if i < job.stage), default=0)
        if stage != job.stage:
            self._story(now, job, f"{job.at}: back to {job.route[stage]}")
            job.stage = stage

    def _lose(self, now: float, worker: Worker, why: str, own: bool) -> None:
        """This worker is no more.  own: the death is of its own making, and held against what ran in it."""
        self.roster.remove(worker)
        self._note("", f"{worker.name} is lost: {why}")
        ran = {j for j in worker.tasks if self.jobs[j].running}
        self._suspects[worker.life] = (worker.name, worker.stage, ran)
        while len(self._suspects) > 1000:
            self._suspects.pop(next(iter(self._suspects)))
        for job_id in list(worker.outputs):
            job = self.jobs[job_id]
            for index in [i for i, o in job.outputs.items() if o.life == worker.life]:
                del job.outputs[index]
        for job_id in list(worker.tasks):
            job = self.jobs[job_id]
            if own and job_id in ran:
                self._blame(now, job, worker.name, f"{worker.name} {why}")
            if job_id in self.jobs:
                self._retry(now, job, f"{worker.name} {why}")
        for job_id in list(worker.outputs):
            if job_id in self.jobs:
                self._reconsider(now, self.jobs[job_id], f"its bag died with {worker.name}")

    def _blame(self, now: float, job: Job, name: str, cause: str) -> None:
        """A process died of its own making while this ran in it."""
        job.blame += 1
        crimes = [c for c in self._crimes.get(name, []) if now - c[0] <= self.policy.window]
        crimes.append((now, job.id))
        self._crimes[name] = crimes
        self._out.append(Blame(job.id, job.blame, cause))
        self._story(now, job, f"{job.at}: blamed, {job.blame} of {self.policy.blames}: {cause}")
        if len({c[1] for c in crimes}) >= self.policy.aside and name not in self.roster.aside:
            self.roster.aside.add(name)
            self._note("", f"{name} is put aside: {len(crimes)} deaths in it, of different requests")
            for _, job_id in crimes:
                if (victim := self.jobs.get(job_id)) is not None:
                    victim.blame = max(0, victim.blame - 1)
                    self._out.append(Blame(job_id, victim.blame, f"given back: {name} was put aside"))
        elif job.blame >= self.policy.blames:
            self._fail(now, job, "poison", f"{job.blame} workers died of it; the last: {cause}")

    def _stalled(self, now: float, worker: Worker) -> None:
        """It beats, but nothing advances."""
        self._send(parent_of(worker.life), Kill(worker.life))
        self._lose(now, worker, f"stalled: no step for {now - worker.progressed:.0f} s", own=True)
        self._bury(worker.life)

    def _patience(self, stage: str) -> float:
        return self.policy.patience.get(stage) or self.cascade[stage].patience

    # ---- timers

    def _timer(self, when: float, kind: str, key: str) -> None:
        self._orders += 1
        heapq.heappush(self._timers, (when, self._orders, kind, key))

    def _overslept(self, now: float) -> None:
        """When the coordinator itself was stopped for a while, nobody else's silence in that time counts."""
        if self._timers and now > self._timers[0][0] + 1.0:
            self._woke = now

    def _expire(self, now: float, key: str) -> None:
        if (job := self.jobs.get(key)) is not None:
            ending = Failed(job.id, "expired", job.at, "", f"its deadline of {job.request.deadline:g} s passed")
            self._end(now, job, Cause.EXPIRED, ending)

    def _listen(self, now: float, life: str) -> None:
        """Has this worker said anything lately?"""
        worker = self.roster.lives.get(life)
        if worker is None:
            return
        heard = max(worker.seen, self._woke)
        if worker.state == "loading" and now - worker.since > self.policy.loading:
            self._send(parent_of(life), Kill(life))
            self._lose(now, worker, f"still loading after {self.policy.loading:g} s", own=True)
        elif now - heard >= self.policy.silence:
            self._lose(now, worker, f"silent for {now - heard:.1f} s", own=False)
            if self._suspects[life][2]:
                self._timer(max(now, worker.progressed + self._patience(worker.stage)), "suspect", life)
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
        for job in list(self.jobs.values()):
            if job.state is State.RUNNING:
                self._reconsider(now, job, "its bag is gone")

    # ---- the books

    def _book(self, now: float, job_id: str, request: Any) -> Job:
        self._orders += 1
        job = self.jobs[job_id] = Job(job_id, request, self.cascade.route(request), now, self._orders)
        self._story(now, job, "accepted")
        if request.deadline is not None:
            self._timer(now + request.deadline, "deadline", job_id)
        return job

    def _enqueue(self, now: float, job: Job) -> None:
        job.queued_at = now
        self.queues[job.at].add(job)
        self._tell(job, Queued(job.id, job.at, len(self.queues[job.at]) - 1))

    def _leave(self, job: Job) -> None:
        """Out of its queue, or of the orphans."""
        if job.ticket:
            self.queues[job.at].remove(job)
        self._orphans.discard(job.id)

    def _detach(self, job: Job) -> None:
        """From the worker it was granted to."""
        if (worker := self.roster.lives.get(job.life)) is not None:
            worker.tasks.pop(job.id, None)
            self.roster.offer(worker)
        self._unreserve(job)
        job.life = ""
        job.received = job.running = job.publishing = False

    def _keep(self, worker: Worker, job: Job, index: int, output: Output) -> None:
        job.outputs[index] = output
        job.tokens[index] = output.token
        worker.outputs.add(job.id)

    def _trim(self, job: Job) -> None:
        """Release what is needed no more, because its successor exists twice."""
        for index in [i for i in job.outputs if i < job.floor]:
            output = job.outputs.pop(index)
            holder = self.roster.lives[output.life]
            holder.outputs.discard(job.id)
            self._send(holder.peer, Release(job.id, output.token))

    def _fail(self, now: float, job: Job, cause: Any, error: str) -> None:
        worker = self.roster.lives.get(job.life)
        if job.state is State.QUEUED:  # blamed for a death that was explained late: it is over all the same
            self._leave(job)
            self._move(now, job, Cause.ADOPTED, "to be ended")
        self._end(now, job, Cause.EXHAUSTED, Failed(job.id, cause, job.at, worker.name if worker else "", error))

    def _end(self, now: float, job: Job, cause: Cause, ending: Ended) -> None:
        """Cancelled, expired or exhausted: whoever works on it drops it."""
        self._leave(job)
        self._move(now, job, cause)
        worker = self.roster.lives.get(job.life)
        if worker is not None and job.id in worker.tasks:
            self._send(worker.peer, Drop(job.id, job.token))
        self._close(now, job, ending)

    def _close(self, now: float, job: Job, ending: Ended) -> None:
        self._detach(job)
        for output in job.outputs.values():
            holder = self.roster.lives[output.life]
            holder.outputs.discard(job.id)
            self._send(holder.peer, Release(job.id, output.token))
        del self.jobs[job.id]
        self._out.append(Close(job.id, ending, tuple(job.story), tuple(job.runs[i] for i in sorted(job.runs))))
        self._remember(Closed(job.id, job.request, ending, tuple(job.story), tuple(job.runs[i] for i in sorted(job.runs))))
        self._tell(job, ending)
        for peer in job.watchers:
            self._watching[peer].discard(job.id)
            if not self._watching[peer]:
                del self._watching[peer]

    def _remember(self, closed: Closed) -> None:
        self.ended[closed.job] = closed
        while len(self.ended) > self.policy.remember:
            self.ended.popitem(last=False)

    def _bury(self, life: str) -> None:
        self._over[life] = None
        self._suspects.pop(life, None)
        while len(self._over) > 10000:
            self._over.popitem(last=False)

    def _index(self, job: Job, worker: Worker) -> int | None:
        return job.route.index(worker.stage) if worker.stage in job.route else None

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

    def _flush(self, now: float) -> list[Command]:
        self._assign(now)
        out, self._out = self._out, []
        return out

    def check(self) -> None:
        """The books balance, or AssertionError."""
        for job in self.jobs.values():
            queued = job.state is State.QUEUED
            assert queued or job.state is State.RUNNING, f"{job.id}: ended, but in the books"
            assert bool(job.ticket) == queued or job.id in self._orphans, f"{job.id}: queued and in its queue are one thing"
            if queued:
                assert not job.life, f"{job.id}: queued, but {job.life} has it"
                assert job.stage == 0 or job.stage - 1 in job.outputs or job.id in self._orphans, f"{job.id}: waits without its bag"
            else:
                worker = self.roster.lives[job.life]
                assert (worker.tasks.get(job.id) == job.token) != job.publishing, f"{job.id}: {job.life} disagrees"
                assert not job.publishing or job.outputs[job.last].life == job.life, f"{job.id}: publishes what nobody holds"
                assert job.token == job.tokens[job.stage], f"{job.id}: runs under a stale token"
            for index, output in job.outputs.items():
                assert job.id in self.roster.lives[output.life].outputs, f"{job.id}: {output.life} does not know of bag {index}"
                assert index >= job.floor, f"{job.id}: bag {index} should have been released"
        for worker in self.roster.lives.values():
            for job_id in worker.tasks:
                assert self.jobs[job_id].life == worker.life, f"{job_id}: {worker.life} has it, the job says otherwise"
            for job_id in worker.outputs:
                assert any(o.life == worker.life for o in self.jobs[job_id].outputs.values()), f"{job_id}: {worker.life} holds nothing"
            assert not worker.reserved or self._reserved.get(worker.reserved) == worker.life, f"{worker.life}: reserved for nobody"
        if not self._orphans and not self.draining:
            for stage, queue in self.queues.items():
                plain = [j for j in self.jobs.values() if j.ticket and j.at == stage and not (j.avoid or j.blame or j.stage in j.classes)]
                assert not plain or self.roster.least_loaded(stage) is None, f"{plain[0].id} waits while a worker of {stage} has room"
                assert len(queue) == sum(1 for j in self.jobs.values() if j.ticket and j.at == stage), f"{stage}: the queue miscounts"

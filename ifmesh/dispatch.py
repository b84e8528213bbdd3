"""Where jobs meet workers and part from them: grants, hand-overs, retries, losses, blame.  Pure.

`_assign` is the only place where a waiting job meets a worker; it runs after every change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from math import inf
from typing import Any

from ifmesh import modes
from ifmesh.cascade import Cascade
from ifmesh.commands import Blame, Command, Give, Policy, Restore
from ifmesh.job import Cause, Job, Output, State
from ifmesh.ledger import Ledger
from ifmesh.protocol import Drop, Ended, Endpoint, Failed, Held, Look, Progress, Push, Queued, Run, StageRun, Started, Token
from ifmesh.roster import Worker


class Dispatch(Ledger):
    """The ledger, and the rules by which work is given, taken back and held against it."""

    def __init__(self, cascade: Cascade, epoch: int, inlet: tuple[Endpoint, ...], policy: Policy | None = None) -> None:
        super().__init__(cascade, epoch, policy)
        self._inlet = inlet
        self._grants = 0
        self._over: OrderedDict[str, None] = OrderedDict()  # lives known to have ended: nothing of theirs counts
        self._suspects: dict[str, set[str]] = {}  # lives lost without a witness, and what ran there
        self._unheard: dict[str, float] = {}  # lives of which only their parents say that they are there, and since when
        self._detours: dict[tuple[str, str], float] = {}  # (holder, receiver), by name: since when bags are relayed, for policy.detour
        self._crimes: dict[str, list[tuple[float, str]]] = {}  # a worker's deaths of its own making: when, and what ran

    def _flush(self, now: float) -> list[Command]:
        self._assign(now)
        self._wait()
        showing, self._showing = self._showing, {}
        for job_id in showing:
            self._show(job_id)  # behind the bags: they are waited for
        out, self._out = self._out, []
        return out

    def _wait(self) -> None:
        """Tell of those that came into a queue, and are still there."""
        waiting, self._waiting = self._waiting, {}
        for job in (self.jobs[j] for j in waiting if j in self.jobs):
            if job.ticket:
                self._tell(job, Queued(job.id, job.at, self.queues[job.at].position(job)))

    # ---- the one rule

    def _assign(self, now: float) -> None:
        """The only place where a job meets a worker.  Drain before admitting: the last stage first."""
        if self._orphans:
            return
        for stage in reversed(self.queues):
            if self.queues[stage] and self.roster.stages[stage]:
                while self._assigned(now, stage):
                    pass

    def _assigned(self, now: float, stage: str) -> bool:
        """One round of those that wait for this stage.  True: a worker that was kept for one of them is free for those before it, too."""
        queue, again = self.queues[stage], False
        for job in queue.drain():
            if self.draining and job.stage == 0:
                continue
            picky = job.avoid or job.blame >= self.policy.alone or job.stage in job.classes
            kept = self._reserved.get(job.id, "")
            worker = self._pick(job) if picky else self._soonest(job)
            again |= kept not in ("", self._reserved.get(job.id))
            if worker is not None:
                queue.remove(job)
                self._grant(now, job, worker)
            elif not picky and not self._reserved:
                break  # nobody has room; but one that must run alone, further back, may have its worker ready
        return again

    def _soonest(self, job: Job) -> Worker | None:
        """The least loaded with room; rather one where it begins at once: a slot is free, or else all that is there makes way for it."""
        worker = self.roster.least_loaded(job.at)
        if worker is not None and (len(worker.tasks) < worker.slots or worker.urgency < job.request.priority):
            return worker
        if self.roster.calmest(job.at) >= job.request.priority:
            return worker
        return self._yielding(job, self.roster.usable(job.at)) or worker

    def _yielding(self, job: Job, workers: Iterable[Worker]) -> Worker | None:
        """A worker that has only less urgent jobs in hand.  Beside those it has one place more than its capacity."""
        found = [w for w in workers if w.urgency < job.request.priority and w.takes(w.hello.capacity + bool(w.tasks))]
        return min(found, key=lambda w: (w.urgency, len(w.tasks), w.life), default=None)

    def _paused(self, worker: Worker) -> list[str]:
        """What began there and makes way.  As the worker does it: the slots go to the most urgent, then to the older.

        Nothing begins there only to make way: if it seems so, another has ended, and that was not heard.
        """
        running = [job for j in worker.tasks if (job := self.jobs[j]).running]
        newest = max((job.started_at for job in running), default=0.0)
        running.sort(key=lambda job: (job.started_at < newest, -job.request.priority, job.started_at))
        return [job.id for job in running[worker.slots :]]

    def _pick(self, job: Job) -> Worker | None:
        """A worker for a job with a past: alone after deaths, away from where it raised or did not arrive, in its numeric class if it can.

        In this order: a class whose only worker cannot be reached would keep it for ever.
        """
        usable = self.roster.usable(job.at)
        usable = [w for w in usable if w.name not in job.avoid] or usable
        usable = [w for w in usable if w.hello.numeric == job.classes.get(job.stage)] or usable
        if job.blame < self.policy.alone:
            return min((w for w in usable if w.room), key=lambda w: (len(w.tasks), w.life), default=None) or self._yielding(job, usable)
        mine = [w for w in usable if w.reserved in ("", job.id)]
        worker = min(mine, key=lambda w: (len(w.tasks), w.reserved != job.id, w.life), default=None)
        self._unreserve(job)
        if worker is None:
            return None
        worker.reserved, self._reserved[job.id] = job.id, worker.life
        return worker if not worker.tasks and not worker.full else None

    def _grant(self, now: float, job: Job, worker: Worker) -> None:
        self._grants += 1
        self._move(now, job, Cause.ASSIGNED, worker.name)
        self._take(now, job, worker, job.stage, (self.epoch, self._grants))
        job.starts[job.stage] = job.starts.get(job.stage, 0) + 1
        job.pushes = 0
        saved = job.saved
        if saved is not None and (saved.stage, saved.numeric) == (job.stage, worker.hello.numeric):
            job.resume = saved.step
            self._story(now, job, f"{job.at}: to go on after step {saved.step}")
        self._order(job, worker)
        self._push(now, job, worker)

    def _order(self, job: Job, worker: Worker) -> None:
        """Tell the worker of its grant, for the first time or again."""
        self._send(worker.peer, Run(job.id, job.token, job.request, job.resume, self._inlet if self.policy.checkpoints else ()))

    def _afresh(self, job: Job) -> None:
        """Its checkpoint is gone.  Whoever waits for that, waits no more."""
        self._unsave(job)
        worker = self.roster.lives.get(job.life)
        if job.resume and not job.received and worker is not None:
            job.resume = 0
            self._order(job, worker)

    def _adopt(self, now: float, job: Job, worker: Worker, index: int, token: Token, why: str) -> None:
        """A worker already has it, under the newest token."""
        self._leave(job)
        job.stage = index
        self._move(now, job, Cause.ADOPTED, why)
        if index:
            self._begin(now, job)
        self._take(now, job, worker, index, token)
        job.starts.setdefault(index, 1)
        job.pushed, job.due, job.pushes = now, now, 0

    def _take(self, now: float, job: Job, worker: Worker, index: int, token: Token) -> None:
        numeric = worker.hello.numeric
        if job.classes.setdefault(index, numeric) != numeric or not modes.promises(numeric):
            job.reproducible = False
        job.token = job.tokens[index] = token
        job.life, job.relayed = worker.life, ""
        job.received = job.running = False
        job.step = job.steps = job.resume = 0
        worker.tasks[job.id] = token
        self.roster.offer(worker)

    # ---- a grant's way

    def _push(self, now: float, job: Job, worker: Worker) -> None:
        """Have the bag sent to the worker of the grant, by whoever holds it."""
        job.pushed = job.due = now
        job.pushes += 1
        job.relayed = ""
        if job.stage == 0:
            self._out.append(Give(job.id, job.token, job.at, worker.life, worker.hello.endpoints, job.request.upload))
        elif (source := job.outputs.get(job.stage - 1)) is not None:
            holder = self.roster.lives[source.life]
            if job.pushes > self.policy.transfers or self._cut(now, holder, worker):
                job.relayed = source.life
            life, to = ("", self._inlet) if job.relayed else (worker.life, worker.hello.endpoints)
            self._send(holder.peer, Push(job.id, job.token, life, to, "relay" if job.relayed else "bag"))
        elif not self._orphans:
            self._retry(now, job, "its bag is gone")
        if job.resume and job.saved is None:
            self._afresh(job)
        elif job.resume:
            self._out.append(Restore(job.id, job.token, worker.life, worker.hello.endpoints))

    def _cut(self, now: float, holder: Worker, receiver: Worker) -> bool:
        """Is a bag between the two relayed at once?  Successors inherit that; a way that is whole again is found after a while."""
        return now - self._detours.get((holder.name, receiver.name), -inf) < self.policy.detour

    def relay(self, job: str, token: Token) -> tuple[str, tuple[Endpoint, ...]] | None:
        """Whom to pass this bag on to, and where: what came to be relayed under this token.  None: nobody waits for it."""
        known = self.jobs.get(job)
        if known is None or not known.relayed or known.token != token:
            return None
        return known.life, self.roster.lives[known.life].hello.endpoints

    def _has_bag(self, now: float, worker: Worker, job: Job) -> None:
        if job.received:
            return
        job.received = True
        if (bag := job.outputs.get(job.stage - 1)) is not None and not job.relayed:
            worker.came[bag.life] = max(worker.came.get(bag.life, 0.0), job.pushed)
        if job.relayed in self.roster.lives and not self._cut(now, holder := self.roster.lives[job.relayed], worker):
            self._detours = {pair: since for pair, since in self._detours.items() if now - since < self.policy.detour}
            self._detours[holder.name, worker.name] = now
        job.relayed = ""
        worker.progressed = max(worker.progressed, now)
        self._trim(job)

    def _advance(self, now: float, worker: Worker, job: Job, step: int, steps: int) -> None:
        if job.running and (step, steps) <= (job.step, job.steps):
            return
        if not job.running:
            before = self._paused(worker)
            job.running, job.started_at = True, now
            self._begin(now, job)
            self._story(now, job, f"{job.at}: begun on {worker.name}")
            self._tell(job, Started(job.id, job.at, worker.name))
            for other in (self.jobs[j] for j in self._paused(worker) if j not in before):
                if other.request.priority < job.request.priority:  # else its last step is done, and its bag is being packed
                    self._story(now, other, f"{other.at}: makes way for what is more urgent")
        job.step, job.steps = step, steps
        worker.progressed = now
        if steps:
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
            bytes_in=before.bytes_out if before else self.uploads.size_of(job.request.upload),
            bytes_out=held.size,
            runs=job.starts.get(job.stage, 1),
        )
        worker.progressed = now
        worker.done += 1
        self._spent(job)
        self._begin(now, job)
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
        job.pushed = job.due = now
        self._send(worker.peer, Push(job.id, job.token, "", self._inlet, "result"))

    # ---- early pictures

    def _drawn(self, job: Job) -> Output | None:
        """The newest picture of an early stage, while it lives."""
        index = max((i for i in job.outputs if self._early(job, i)), default=None)
        if index is None or job.outputs[index].token != job.tokens[index]:
            return None
        return job.outputs[index]

    def _show(self, job_id: str) -> None:
        """Have it checked by a guard, for those who look.  Once: what is lost on the way is not missed."""
        job = self.jobs.get(job_id)
        drawn = self._drawn(job) if job is not None and job.lookers else None
        guard = min(self.roster.usable("guard"), key=lambda w: (len(w.tasks), w.life), default=None)
        if job is None or drawn is None or guard is None:
            return
        holder = self.roster.lives[drawn.life]
        self._send(guard.peer, Look(job_id, holder.stage, drawn.token, self._inlet))
        self._send(holder.peer, Push(job_id, drawn.token, guard.life, guard.hello.endpoints, "preview"))

    def lookers(self, job: str, stage: str, token: Token) -> tuple[bytes, ...]:
        """Who is to be shown this early picture.  Nobody, when the stage has been granted anew since it was drawn."""
        known = self.jobs.get(job)
        if known is None or stage not in known.route:
            return ()
        index = known.route.index(stage)
        return tuple(sorted(known.lookers)) if self._early(known, index) and known.tokens.get(index) == token else ()

    # ---- back, or to the end

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

    def _lose(self, now: float, worker: Worker, why: str, own: bool, ran: set[str] | None = None) -> None:
        """This worker is no more.  own: the death is of its own making, and held against what ran in it.

        ran: those jobs, as a witness has it; None: as the books have it.
        """
        self.roster.remove(worker)
        for other in self.roster.lives.values():
            other.came.pop(worker.life, None)
        self._note("", f"{worker.name} is lost: {why}")
        if ran is None:
            ran = {j for j in worker.tasks if self.jobs[j].running}.difference(self._paused(worker))
        self._suspects[worker.life] = ran
        while len(self._suspects) > 1000:
            self._suspects.pop(next(iter(self._suspects)))
        for job_id in sorted(worker.outputs):  # a set: in the same order in every run
            job = self.jobs[job_id]
            for index in [i for i, o in job.outputs.items() if o.life == worker.life]:
                del job.outputs[index]
        if own:
            self._hold_against(now, ran, worker.name, worker.life, f"{worker.name} {why}")
        for job_id in list(worker.tasks):
            if job_id in self.jobs:
                self._retry(now, self.jobs[job_id], f"{worker.name} {why}")
        for job_id in sorted(worker.outputs):
            if job_id in self.jobs:
                self._reconsider(now, self.jobs[job_id], f"its bag died with {worker.name}")

    def _hold_against(self, now: float, ran: set[str], name: str, life: str, cause: str) -> None:
        """A process died of its own making.  Once, however often and by however many coordinators that is heard."""
        for job_id in sorted(ran & self.jobs.keys()):
            if life not in self.jobs[job_id].mourned:
                self._blame(now, self.jobs[job_id], name, life, cause)

    def _blame(self, now: float, job: Job, name: str, life: str, cause: str) -> None:
        """While this ran in it."""
        job.mourned.add(life)
        job.blame += 1
        if job.saved is not None and job.saved.step == job.resume:
            self._afresh(job)  # nothing was saved since: it may be what kills
        crimes = [c for c in self._crimes.get(name, []) if now - c[0] <= self.policy.window]
        crimes.append((now, job.id))
        self._crimes[name] = crimes
        self._out.append(Blame(job.id, job.blame, cause, life))
        self._story(now, job, f"{job.at}: blamed, {job.blame} of {self.policy.blames}: {cause}")
        others = any(w.name not in (name, *self.roster.aside) for w in self.roster.stages[job.at].values())
        if others and len({c[1] for c in crimes}) >= self.policy.aside and name not in self.roster.aside:
            self.roster.aside.add(name)
            self._note("", f"{name} is put aside: {len(crimes)} deaths in it, of different requests")
            for _, job_id in crimes:
                if (victim := self.jobs.get(job_id)) is not None:
                    victim.blame = max(0, victim.blame - 1)
                    if victim.blame < self.policy.alone:
                        self._unreserve(victim)
                    self._out.append(Blame(job_id, victim.blame, f"given back: {name} was put aside"))
        elif job.blame >= self.policy.blames:
            self._fail(now, job, "poison", f"{job.blame} workers died of it; the last: {cause}")

    def _bury(self, life: str) -> None:
        self._over[life] = None
        self._suspects.pop(life, None)
        self._unheard.pop(life, None)
        while len(self._over) > 10000:
            self._over.popitem(last=False)

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

    def check(self) -> None:
        super().check()
        for job in self.jobs.values():
            if (saved := job.saved) is not None:
                known = saved.stage in job.tokens and saved.token <= job.tokens[saved.stage]
                assert known, f"{job.id}: saved under a grant that nobody knows: {saved}"
            else:
                assert not job.resume or job.received, f"{job.id}: waits for a checkpoint that is no more"
            assert not job.relayed or (job.life and not job.received), f"{job.id}: relayed, and nobody waits for its bag"
        for worker in self.roster.lives.values():
            urgent = max([self.jobs[j].request.priority for j in worker.tasks]) if worker.tasks else -inf
            assert worker.urgency == urgent, f"{worker.life}: as urgent as {worker.urgency}, and has {urgent} in hand"
        if self._orphans or self.draining:
            return
        for at, job in self._foremost().items():
            assert self._yielding(job, self.roster.usable(at)) is None, f"{job.id} waits while a worker would make way for it"

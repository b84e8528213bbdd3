"""Whose weights are in memory: stages that share a device, and do not fit together, take turns.  Pure.

Workers in swap on one device are a group with a budget.  The memory is lent: a lease begins with Load, and ends when the worker says
that it has none, or its death is witnessed.  A worker without its weights has no room, so that `_assign` needs no word of this.

A phase: what is in memory serves until nobody waits for it any more, and it stays there until its place is wanted.  The next is, in the
order in which jobs flow, the first that is waited for; after the last the first again.  So each waits for the others once at most, and for
each of them `max_phase` seconds, beyond what it has in hand.  A job more urgent than all that the group works for does not wait for that:
whatever is in its way leaves when it has done what it has in hand, and is loaded again later.  That is the price.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Literal

from ifmesh.cascade import Cascade
from ifmesh.commands import Policy
from ifmesh.dispatch import Dispatch
from ifmesh.job import Job
from ifmesh.protocol import NEVER, Endpoint, Hello, Load, Token, Unload, Who
from ifmesh.roster import Worker

Group = tuple[str, str]
"""Host and device."""


@dataclass(slots=True)
class Lease:
    """Memory of a device, lent to one life.  needs: bytes; budget: of all that is lent there.

    state: ordered (not heard of yet), held (in memory, or on its way there), leaving (it has something in hand, and gets no more) or
    ended (it is to give the memory back).  since: when it was loaded; silent: since when nothing is heard of its life.  found: it was
    lent by another coordinator, or its life was silent since.
    """

    life: str
    stage: str
    group: Group
    needs: int
    budget: int
    token: Token
    state: Literal["ordered", "held", "leaving", "ended"] = "ordered"
    since: float = inf
    silent: float = inf
    found: bool = False

    @property
    def settled(self) -> bool:
        """It is in memory, and its life is heard."""
        return self.since < inf and self.silent == inf


def group_of(worker: Worker) -> Group:
    return worker.hello.host, worker.hello.device


def fits(leases: Iterable[Lease]) -> bool:
    """May they be in memory together?  Each has been told a budget; the smallest counts."""
    together = list(leases)
    return sum(lease.needs for lease in together) <= min((lease.budget for lease in together), default=0)


def size(number: float) -> str:
    """Bytes, for people."""
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number:.0f} B"


class Phases(Dispatch):
    """Dispatch, and the turns of those that share a device."""

    def __init__(self, cascade: Cascade, epoch: int, inlet: tuple[Endpoint, ...], policy: Policy | None = None) -> None:
        super().__init__(cascade, epoch, inlet, policy)
        self.leases: dict[str, Lease] = {}  # by life, whether it lives or is only silent
        self._groups: dict[Group, dict[str, Worker]] = {}
        self._places = {stage: n for n, stage in enumerate(self.queues)}
        self._turns: dict[Group, int] = {}  # the place in the cascade of the stage whose turn it was last ...
        self._heirs: dict[Group, str] = {}  # ... and the stage for which others have left
        self._lent = 0
        self._settled = 0.0  # after a restart: nothing is lent before, because others may have it
        self._looked = inf  # when the next look at the phases is due

    # ---- who is in swap, and what they hold

    def _join(self, worker: Worker, hello: Hello) -> None:
        """It says what it needs, for the first time or again."""
        self._part(worker)
        worker.hello = hello
        if hello.needs:
            self._groups.setdefault(group_of(worker), {})[worker.life] = worker
        else:
            self._freed(worker.life)

    def _part(self, worker: Worker) -> None:
        group = self._groups.get(group_of(worker), {})
        group.pop(worker.life, None)
        if not group:
            self._groups.pop(group_of(worker), None)

    def _lose(self, now: float, worker: Worker, why: str, own: bool, ran: set[str] | None = None) -> None:
        """Lost is not dead: what it holds of the device it may hold still."""
        self._part(worker)
        if (lease := self.leases.get(worker.life)) is not None:
            lease.silent = now
            self._timer(now + self.policy.presumed, "ghost", worker.life)
        super()._lose(now, worker, why, own, ran)

    def _presume(self, now: float, life: str) -> None:
        """Nothing was heard of it for long, and nobody saw its end: its host knows better, and lends nothing twice."""
        lease = self.leases.get(life)
        if lease is not None and now >= lease.silent + self.policy.presumed:
            self._freed(life)

    def _freed(self, life: str) -> None:
        """It holds nothing of its device any more: it has said so, or it is dead."""
        if (lease := self.leases.pop(life, None)) is not None:
            self._note("", f"{life} has given back {size(lease.needs)} of {lease.group[1]}")
        if (worker := self.roster.lives.get(life)) is not None:
            worker.leaving = False

    def _holds(self, now: float, worker: Worker, token: Token) -> None:
        """A Beat says under which lease its weights are in memory.  What it has not heard is said again."""
        if not worker.hello.needs:
            if token != NEVER or worker.state in ("swapped", "unloading"):
                self._send(worker.peer, Who())  # its Hello that says what it needs was lost
            return
        lease = self.leases.get(worker.life)
        if token == NEVER:
            if lease is not None and lease.state in ("leaving", "ended"):
                self._freed(worker.life)
            elif lease is not None:
                lease.state, lease.since, lease.silent = "ordered", inf, inf
                if worker.state == "swapped":
                    self._send(worker.peer, Load(lease.token))
                else:
                    self._freed(worker.life)  # it is about to leave the mesh
            return
        if lease is None or lease.token != token:  # lent before a restart, or it was silent for long
            lease = self.leases[worker.life] = self._lease(worker, token)
            lease.found = True
        lease.found |= lease.silent < inf
        lease.silent = inf
        if lease.state == "ordered":
            lease.state = "held"
        if worker.state == "unloading":
            lease.state = "ended"
        elif lease.state == "held" and worker.state in ("ready", "draining"):
            lease.since = min(lease.since, now)
        elif lease.state == "ended":
            self._send(worker.peer, Unload(lease.token))
        worker.leaving = lease.state in ("leaving", "ended")

    def _able(self, worker: Worker) -> bool:
        """Has it its weights, and will keep them until it is done with what it has in hand?"""
        lease = self.leases.get(worker.life)
        return not worker.hello.needs or (lease is not None and lease.settled and lease.state != "ended")

    def _lease(self, worker: Worker, token: Token) -> Lease:
        hello = worker.hello
        return Lease(worker.life, worker.stage, group_of(worker), hello.needs, hello.budget, token)

    # ---- the turns

    def _assign(self, now: float) -> None:
        super()._assign(now)
        if self._groups and not self._orphans:
            if now < self._settled:
                self._look(now, self._settled)
            else:
                for group in self._groups:
                    self._arrange(now, group)

    def _turn(self, now: float, _: str) -> None:
        """A phase may have lasted long enough; `_assign` looks."""
        if now >= self._looked:
            self._looked = inf

    def _look(self, now: float, when: float) -> None:
        if now < when < self._looked:
            self._looked = when
            self._timer(when, "phase", "")

    def _arrange(self, now: float, group: Group) -> None:
        """The only place where memory is lent and asked back."""
        members = self._groups[group]
        held = [lease for lease in self.leases.values() if lease.group == group]
        if held and not fits(held):
            self._crowded(now, group, held)
        reserved: list[Lease] = []
        for worker in self._awaited(group, held):
            wanted, first = self._lease(worker, NEVER), self._next(worker.stage)
            assert first is not None
            if not self._lacks(worker.stage, group, held):
                continue  # another copy has just been lent what it needs
            staying = [lease for lease in held if lease.state not in ("leaving", "ended")]
            served = any(lease.stage == worker.stage for lease in staying if lease.life in members)
            if fits([*held, wanted]) and (not reserved or fits([*staying, *reserved, wanted])):
                held.append(self._lend(worker, first, group, alone=not held))
            elif not served and not reserved:
                going = [] if fits([*staying, wanted]) else self._way(now, wanted, first, staying, group)
                for lease in going:
                    self._end_phase(now, lease, worker, first)
                    staying.remove(lease)
                if fits([*staying, wanted]) or now >= first.queued_at + self.policy.max_phase:
                    reserved.append(wanted)
        for lease in held:
            known = members.get(lease.life)
            if lease.state == "leaving" and lease.settled and known is not None and not known.tasks:
                lease.state = "ended"
                self._send(known.peer, Unload(lease.token))

    def _awaited(self, group: Group, held: list[Lease]) -> list[Worker]:
        """The workers whose weights somebody waits for, in the order of their turns."""
        members = self._groups[group]
        out = (w for w in members.values() if w.state == "swapped" and w.life not in self.leases)
        here = [w for w in out if not w.full and w.name not in self.roster.aside]
        busy = self._urgency(group, held)
        found: list[tuple[float, int, str, Worker]] = []
        for worker in here:
            first = self._next(worker.stage)
            if first is None or not self._lacks(worker.stage, group, held):
                continue
            turn = (self._places[worker.stage] - self._turns.get(group, -1) - 1) % len(self._places)
            priority = first.request.priority
            found.append((-priority if priority > busy else inf, turn, worker.name, worker))
        return [one[-1] for one in sorted(found, key=lambda one: one[:-1])]

    def _lacks(self, stage: str, group: Group, held: Iterable[Lease]) -> bool:
        """Do more wait for it than those whose weights are in memory, or on their way there, take at once?"""
        here = [self._groups[group].get(lease.life) for lease in held if lease.stage == stage]
        return len(self.queues[stage]) > sum(w.slots for w in here if w is not None and not w.leaving)

    def _next(self, stage: str) -> Job | None:
        """Who waits for this stage, and may have it."""
        queue = self.queues[stage]
        return next((job for job in queue.drain() if job.stage), None) if self.draining else queue.first()

    def _urgency(self, group: Group, held: Iterable[Lease]) -> float:
        """Of the most urgent that is worked on, or waits, where the weights are in memory."""
        here = [(w, self._next(w.stage)) for lease in held if (w := self._groups[group].get(lease.life)) is not None]
        return max((max(w.urgency, first.request.priority if first else -inf) for w, first in here), default=-inf)

    def _way(self, now: float, wanted: Lease, first: Job, staying: list[Lease], group: Group) -> list[Lease]:
        """Who makes place for that: what is not needed first, and of it what is needed last; [] when it cannot be made yet."""
        urgent = first.request.priority > self._urgency(group, staying)
        needed = {lease.life: self._needed(lease, group) for lease in staying}
        may: list[Lease] = []
        for lease in staying:
            worker = self._groups[group].get(lease.life)
            if worker is None or not lease.settled:
                continue
            over = lease.since + self.policy.max_phase
            if urgent or not needed[lease.life] or now >= over:
                may.append(lease)
            else:
                self._look(now, over)
        self._look(now, first.queued_at + self.policy.max_phase)
        places, this = len(self._places), self._places[wanted.stage]
        may.sort(key=lambda lease: (needed[lease.life], -((self._places[lease.stage] - this) % places), lease.life))
        going: list[Lease] = []
        rest = list(staying)
        while may and not fits([*rest, wanted]):
            going.append(may.pop(0))
            rest.remove(going[-1])
        if not fits([*rest, wanted]):
            return []
        for lease in list(going):  # a small one went before a large one
            if fits([*rest, lease, wanted]):
                going.remove(lease)
                rest.append(lease)
        return going

    def _needed(self, lease: Lease, group: Group) -> bool:
        """Does somebody wait for what is in memory here, or is about to?"""
        worker = self._groups[group].get(lease.life)
        if worker is None:
            return True
        if worker.tasks or worker.state == "draining":
            return bool(worker.tasks)
        if self._next(worker.stage) is not None and not worker.full:
            return True
        near = (job for other in self._groups[group].values() for j in other.tasks if (job := self.jobs[j]).stage < job.last)
        return any(job.route[job.stage + 1] == worker.stage for job in near)

    def _crowded(self, now: float, group: Group, held: list[Lease]) -> None:
        """More is lent than there is: somebody came back who was taken for dead."""
        staying = [lease for lease in held if lease.state not in ("leaving", "ended")]
        may = [lease for lease in staying if lease.settled and lease.life in self._groups[group]]
        may.sort(key=lambda lease: (self._needed(lease, group), lease.since, lease.life))
        while may and not fits(staying):
            lease = may.pop(0)
            staying.remove(lease)
            self._leave_memory(lease)

    def _lend(self, worker: Worker, first: Job, group: Group, alone: bool) -> Lease:
        self._lent += 1
        lease = self.leases[worker.life] = self._lease(worker, (self.epoch, self._lent))
        if alone or self._heirs.get(group) == worker.stage:
            self._turns[group] = self._places[worker.stage]
            self._heirs.pop(group, None)
        self._send(worker.peer, Load(lease.token))
        self._note(
            "", f"{worker.name} is lent {size(lease.needs)} of {worker.hello.device}, for {len(self.queues[worker.stage])} in its queue"
        )
        return lease

    def _end_phase(self, now: float, lease: Lease, after: Worker, first: Job) -> None:
        """This one leaves, for what comes after."""
        worker = self.roster.lives[lease.life]
        waits = len(self.queues[worker.stage]) + len(worker.tasks)
        self._heirs[lease.group] = after.stage
        self._note("", f"{worker.name} leaves the memory, for {after.name}")
        if waits:
            again = f"{worker.name} leaves for it, with {waits} in hand or waiting, and is loaded again later ({size(lease.needs)})"
            self._story(now, first, f"{first.at}: {again}")
        self._leave_memory(lease)

    def _leave_memory(self, lease: Lease) -> None:
        worker = self.roster.lives[lease.life]
        lease.state, worker.leaving = "leaving", True
        if worker.reserved:
            self._unreserve(self.jobs[worker.reserved])

    def check(self) -> None:
        super().check()
        for group in {lease.group for lease in self.leases.values()}:
            lent = [lease for lease in self.leases.values() if lease.group == group]
            assert fits(lent) or any(lease.found for lease in lent), f"{group}: more is lent than there is: {lent}"
        for life, worker in self.roster.lives.items():
            lease, hello = self.leases.get(life), worker.hello
            if lease is None:
                assert not worker.leaving, f"{life}: leaving, without a lease"
            else:
                leaving = lease.state in ("leaving", "ended") and lease.silent == inf
                assert worker.leaving == leaving, f"{life}: leaving {worker.leaving}, and its lease is {lease}"
                assert not leaving or lease.state != "ended" or not worker.tasks, f"{life}: ended, and has tasks"
            member = life in self._groups.get((hello.host, hello.device), {})
            assert member == bool(hello.needs), f"{life}: in swap, and in no group"

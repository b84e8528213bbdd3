"""The whole mesh in one thread, under a virtual clock, with honest faults.

The minds are the real ones; clock, links, disk, processes and models are simulated.  First a storm, then quiet: in the quiet
everything that was accepted must end.  `python -m tests.broker.world SEED` prints everything that happens in one of them, and
`python -m tests.broker.world --seeds A B` the figures of many.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from random import Random

from ifmesh.broker import Broker
from ifmesh.caller import Caller
from ifmesh.cascade import IF
from ifmesh.commands import Policy
from ifmesh.keeper import Keeper
from ifmesh.protocol import Cancelled, Endpoint, Exited, Failed, Finished, Header, ToCoordinator
from ifmesh.request import Request
from tests.broker.cast import Cast
from tests.broker.hub import Hub
from tests.broker.links import Links
from tests.broker.patron import Patron, Wish
from tests.broker.service import SAYS, Service
from tests.broker.toyland import cascade, luggage, sha
from tests.broker.weather import Weather

QUIET = 150.0
"""Seconds after the storm in which everything must have ended."""

LOADED = 6.0
"""Seconds until the weights of a stage that nobody else wants are in memory, at the most: others leave before, and a word may be lost."""

BUSY = 200_000
"""Events in one run; a usual one has some 5,000."""


@dataclass(frozen=True, slots=True)
class Minds:
    """Which minds to put in; the deliberate faults put in broken ones."""

    broker: type[Broker] = Broker
    keeper: type[Keeper] = Keeper
    caller: type[Caller] = Caller


class World:
    """One run.  Everything in it follows from the seed."""

    def __init__(
        self,
        seed: int,
        minds: Minds | None = None,
        trace: Callable[[str], None] | None = None,
        every: int | None = None,
        rate: float | None = None,
    ) -> None:
        """every: so many steps from one checkpoint to the next, 0: none; rate: bytes a second of all links for bags, of which one has
        some 20; None: as the seed has it."""
        self.seed, self.minds, self._trace = seed, minds or Minds(), trace
        self.rng = rng = Random(seed)
        self.now = 0.0
        self.storm = True
        self.storm_s = rng.uniform(8.0, 30.0)
        self.cascade = cascade(patience=rng.choice((4.0, 8.0)))
        mostly = Random(f"the rate of {seed}").choice((inf, inf, inf, 40.0))  # dice of its own: old seeds tell what they told
        rate = mostly if rate is None else rate
        memory = Random(f"the memory of {seed}")  # and these
        stages = [spec.name for spec in self.cascade.stages]
        swapped = memory.sample(stages, memory.randint(2, 5)) if memory.random() < 0.3 else []
        self.needs = {stage: memory.randint(1, 5) for stage in swapped}  # bytes of the weights of those in swap
        parents = Random(f"the parents of {seed}")
        self.watchful = parents.random() < 0.4  # parents say that their children live: who stops for good is found
        self.stops = [parents.uniform(2.0, self.storm_s) for _ in range(parents.choice((0, 1, 2)))] if self.watchful else []
        self.budget = memory.randint(max(self.needs.values()), sum(self.needs.values())) if swapped else 0  # of each device
        self.devices = memory.choice((1, 1, 2))
        self.loaded: dict[str, Service] = {}  # by life, whose weights are in memory, or on their way
        self.loads: Counter[str] = Counter()  # by stage
        self.denied = 0
        self.policy = Policy(
            max_jobs=rng.choice((4, 1000, 1000)),
            transfer=rng.choice((1.0, 3.0, 5.0)),
            slowest=0.9 * rate,
            loading=20.0,
            unloading=20.0,
            max_phase=memory.choice((2.0, 8.0, 30.0)),
            presumed=30.0,
            upload_keep=rng.choice((5.0, 10.0, 20.0)),
            max_uploads=rng.choice((1 << 30, 1 << 30, 25, 100)),
            tether=rng.choice((15.0, 30.0)),
            checkpoints=rng.random() < 0.7 if every is None else every > 0,
        )
        self.outbox = rng.choice((1 << 30, 1 << 30, 50))
        self.mixed = rng.random() < 0.2  # workers of different numeric classes
        self.length = rng.choice((1, 1, 6))  # stages of so many times more, and shorter, steps
        mine = rng.choice((0, 0, 1, 2)) * (1 if self.length == 1 else 3)
        self.every = mine if every is None else every
        self.checkpoint_bytes = rng.choice((1 << 20, 100))
        self.owned = rng.random() < 0.3  # each client sees its own jobs alone
        self.links = Links(self)
        self.links.rate = rate
        self.hub = Hub(self)
        self.inlets: dict[str, Service] = {}
        self.services = [
            Service(self, f"{spec.name}-{n}", spec.name) for spec in self.cascade.stages for n in range(rng.choice((1, 2, 2, 3)))
        ]
        self.patrons = [Patron(self, f"client-{n}") for n in range(rng.choice((1, 2, 3)))]
        self.weather = Weather(self)
        self.events = self.deaths = self.kills = self.runs = self.refused = self.rebuilds = self.drained = 0
        self.uploads = self.previews = self.loose = self.onwards = self.relays = 0
        self.steps = self.steps_twice = self.resumed = self.innocents = 0
        self._stepped: set[tuple[str, str, int]] = set()
        self.victims: defaultdict[str, frozenset[str]] = defaultdict(frozenset)  # what died in whom
        self.hurt: Counter[str] = Counter()  # own deaths of workers while they ran this job
        self.proved: Counter[str] = Counter()  # those of them that the broker could know of
        self.proving: dict[str, str] = {}  # life -> job, the same, before it is committed
        self._deadly: dict[str, str] = {}  # life -> the job that killed it before a witness
        self._queue: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._serial = 0
        self._open: tuple[tuple[Patron, Wish], ...] = ()  # one that had not ended when that was last asked
        self._raised: frozenset[str] = frozenset()

    # ---- time

    def at(self, when: float, action: Callable[..., None], *args: object) -> None:
        self._serial += 1
        heappush(self._queue, (when, self._serial, action, args))

    def later(self, delay: float, action: Callable[..., None], *args: object) -> None:
        self.at(self.now + delay, action, *args)

    def until(self, end: float, enough: Callable[[], bool] = lambda: False) -> None:
        queue = self._queue
        while queue and queue[0][0] <= end and not enough():
            self.now, serial, action, args = heappop(queue)
            assert serial < BUSY, f"{BUSY} events, and no end: somebody talks without getting anywhere"
            action(*args)
        if not enough():
            self.now = end

    def say(self, who: str, what: str, *more: object) -> None:
        if self._trace is not None:
            self._trace(f"{self.now:9.4f} {who:24} {what} {' '.join(map(str, more))}".rstrip())

    # ---- bags

    def carry(self, sender: Service, to: tuple[Endpoint, ...], header: Header, frame: bytes) -> None:
        """From a worker to a worker, or with the result to the coordinator's inlet."""
        url, life = to[0].url, sender.life
        if url.startswith("tcp://hub/"):
            epoch = int(url.rpartition("/")[2])
            self.links.pipe(
                sender.name, lambda: True, "hub", lambda h, f: self.hub.arrives(epoch, h, f), header, frame,
            )  # fmt: skip
        elif (receiver := self.inlets.get(url)) is not None:
            its = receiver.life
            self.links.pipe(
                sender.name, lambda: receiver.life == its and (sender.life == life or self.rng.random() < 0.5),
                receiver.name, lambda h, f: receiver.arrives(its, h, f), header, frame,
            )  # fmt: skip

    def owner(self, peer: bytes) -> str | None:
        """Of the jobs that this client sees; None: it sees all."""
        return peer.decode().partition(".")[0] if self.owned else None

    # ---- whose death is whose fault

    def may_hurt(self, name: str, job: str, count: bool = True) -> bool:
        """May a misfortune that counts against both befall this job in this worker?  An innocent job is spared before it looks
        like poison, and a good worker before it looks like a bad one."""
        victims = self.victims[name] | {job}
        if job.startswith("poison") or self.hurt[job] >= 2 or len(victims) >= self.policy.aside - 1:
            return False
        self.hurt[job] += not count
        self.victims[name] = victims
        return True

    def stepped(self, job: str, stage: str, step: int) -> None:
        """A stage has done this step of the job, maybe not for the first time."""
        self.steps += 1
        self.steps_twice += (job, stage, step) in self._stepped
        self._stepped.add((job, stage, step))

    def raises_once(self, job: str) -> bool:
        self._raised, before = self._raised | {job}, self._raised
        return job not in before

    def killed_by(self, job: str, life: str, witness: bool) -> None:
        self.hurt[job] += 1
        self.victims[life.rpartition(".")[0]] |= {job}
        if witness:
            self._deadly[life] = job

    def cancelled_by_somebody(self, job: str) -> bool:
        return any(w.cancelled for p in self.patrons for w in p.wishes.values() if w.job == job)

    # ---- the memory of the devices

    def fills(self, service: Service) -> bool:
        """Its weights come into memory, if there is room: the host itself lends nothing twice.  The coordinator may only ask for too much
        if somebody has some of whom it does not know."""
        there = [other for other in self.loaded.values() if other.device == service.device]
        if sum(self.needs[other.stage] for other in there) + self.needs[service.stage] > self.budget:
            self.denied += 1
            leases = [self.hub.broker.leases.get(other.life) for other in there]
            known = self.hub.alive and all(lease is not None and not lease.found for lease in leases)
            assert not known, f"{service.life}: too much is lent of {service.device}: {[other.life for other in there]}"
            return False
        self.loaded[service.life] = service
        self.loads[service.stage] += 1
        return True

    def watch(self, message: ToCoordinator) -> None:
        """What the coordinator is about to hear: does it know what this death was about?"""
        if isinstance(message, Exited) and (job_id := self._deadly.get(message.life, "")):
            job = self.hub.broker.jobs.get(job_id)
            if job is not None and (message.ran is not None or (job.running and job.life == message.life)):
                self.proving[message.life] = job_id

    def prove(self) -> None:
        """What the coordinator has heard is committed."""
        for life, job in self.proving.items():
            self.proved[job] += self._deadly.pop(life, "") == job
        self.proving.clear()

    # ---- the run

    def run(self) -> World:
        rng = self.rng
        for service in self.services:
            self.at(rng.uniform(0.0, 2.0), service.start)
        if rng.random() < 0.15 and len(shared := [s for s in self.services if sum(o.stage == s.stage for o in self.services) > 1]):
            rng.choice(shared).cursed = True
        for patron in self.patrons:
            self.at(rng.uniform(0.0, 2.0), patron.start)
        Cast(self).enter()
        self.links.lossy = rng.choice((0.0, 0.0, 0.02))
        self.links.double = rng.choice((0.0, 0.0, 0.01))
        self.links.slow = rng.choice((0.0, 0.0, 0.1, 0.5))
        self.at(rng.uniform(0.0, 1.0), self._keep_coordinator)
        self.at(2.0, self.weather.blow)
        for when in self.stops:
            self.at(when, self.weather.stop, Random(f"who stops at {when}"))
        self.until(self.storm_s)
        self._clear()
        self.later(5.0, self._operator)
        end = self.now + QUIET * (2 if self.needs else 1)
        self.until(end, self._all_ended)
        self._judge()
        self._settle()
        return self

    def calm(self, *wishes: Wish, limit: float) -> World:
        """Another kind of run: no storm, everybody is there, and these wishes are to end within so many seconds."""
        self.storm = False
        for service in self.services:
            service.start()
        self.hub.start()
        self.patrons[0].start()
        self.until(25.0, self.all_here)
        since = self.now
        for wish in wishes:
            self.patrons[0].submit(wish)
        self.run_until(since + limit)
        self._judge()
        return self

    def run_until(self, end: float) -> None:
        """Or until everything has ended."""
        self.until(end, self._all_ended)

    def _keep_coordinator(self) -> None:
        """Somebody starts the coordinator again whenever it is down."""
        if not self.hub.alive:
            self.hub.start()
        self.later(self.rng.uniform(0.2, 3.0) if self.storm else 0.5, self._keep_coordinator)

    def _clear(self) -> None:
        """The weather clears: nothing goes wrong any more, but for what is wrong with the requests themselves."""
        self.say("weather", "clears")
        self.storm = False
        self.hub.doom = ""
        self.links.heal()
        for patron in self.patrons:
            if not patron.alive:
                patron.start()
        for service in self.services:
            service.resume(service.life)
            service.unhang()

    def _operator(self) -> None:
        """Somebody looks at `ifmesh ps`: when all workers of a stage were put aside, only a restart of the coordinator helps."""
        aside = self.hub.broker.roster.aside
        for stage in self.cascade.stages:
            here = [s for s in self.services if s.stage == stage.name and s.life]
            if here and all(s.name in aside for s in here):
                self.hub.crash()
        self.later(5.0, self._operator)

    def _all_ended(self) -> bool:
        """Asked after every event: whom it met last without an ending is looked at first."""
        for patron, wish in self._open:
            if wish.ending is None and not patron.deserted:
                return False
        for patron in self.patrons:
            for wish in patron.wishes.values():
                if wish.ending is None and not patron.deserted:
                    self._open = ((patron, wish),)
                    return False
        return all(row.ending is not None for row in self.hub.disk.rows.values())

    def _unfetched(self) -> list[str]:
        return [
            w.job for p in self.patrons for w in p.wishes.values() if isinstance(w.ending, Finished) and not w.fetched and not p.deserted
        ]

    def _judge(self) -> None:
        """Everything ended, once, and as it should."""
        for patron in self.patrons:
            for wish in patron.wishes.values():
                row = self.hub.disk.rows.get(wish.job)
                ending = row.ending if row is not None and patron.deserted else wish.ending
                assert ending is not None or patron.deserted, f"{wish.job} has not ended {QUIET:g} s after the storm"
                if ending is not None:
                    self._judge_one(wish, ending)
                assert row is None or row.owner == (patron.name if self.owned else ""), f"{wish.job} belongs to {row.owner!r}"
        for job, row in self.hub.disk.rows.items():
            assert row.ending is not None, f"{job} was accepted and never ended"
        for job, kills in self.proved.items():
            if job.startswith("poison"):
                most = self.policy.blames + self.hub.disk.rows[job].given_back
                assert kills <= most, f"{job} killed {kills} workers before the eyes of the broker, and {most} are enough"

    def _judge_one(self, wish: Wish, ending: Finished | Failed | Cancelled) -> None:
        kind = wish.job.partition("-")[0]
        assert self.hub.disk.rows[wish.job].ending == ending, f"{wish.job}: client and journal differ"
        if isinstance(ending, Cancelled):
            # That nobody was heard of a tied one is checked when it happens.
            assert self.cancelled_by_somebody(wish.job) or wish.request.tied, f"nobody cancelled {wish.job}"
        elif isinstance(ending, Failed):
            if wish.request.upload in self.hub.disk.rotten and ending.cause == "error":
                return
            right = {"hurry": "expired", "raises": "error", "bad": "request", "poison": "poison"}.get(kind, "")
            self.innocents += ending.cause != right
            assert ending.cause == right, f"innocent {wish.job} failed: {ending}"
        elif kind == "slow":
            raise AssertionError("nobody watched it, and it has finished")
        elif kind in ("raises", "bad", "poison"):
            stage = wish.request.prompt.partition(":")[2]
            assert stage not in self.cascade.route(wish.request), f"{wish.job} cannot have finished"
        else:
            assert ending.reproducible or self.mixed, f"{wish.job}: one numeric class, and not reproducible"

    def all_here(self) -> bool:
        return self.hub.alive and all(s.ready and s.life and self.links.open(s.link.peer) for s in self.services)

    def _all_heard(self, since: float) -> bool:
        """A connection that only looks as if it were there costs a job the time until that is found: not what is asked of the last one."""
        lives, clock = self.hub.broker.roster.lives, self.hub.clock()
        return all(s.life in lives and self.now - (clock - lives[s.life].seen) > since for s in self.services)

    def _settle(self) -> None:
        """Nothing leaks; a new job goes straight through; the mesh drains to the last worker."""
        self.links.mend()
        self.until(self.now + self.policy.presumed + 3 * SAYS, lambda: not any(s.life and s.stopped for s in self.services))
        assert not (left := [s.life for s in self.services if s.life and s.stopped]), f"stopped, and nobody has ended them: {left}"
        for service in self.services:
            service.unhang(idle=True)
            service.come_back()
        cleared = self.now + 2.0  # what was under way has come by then
        self.until(self.now + 25.0, lambda: self.all_here() and self._all_heard(cleared))
        assert self._all_heard(cleared), "the weather has cleared, and somebody is not heard"
        patron = self.patrons[0]
        first = luggage(("source",), 4711)
        wish = Wish("afterwards-0", Request("afterwards", 4711, "vary", brings=("source",), upload=sha(first)), first)
        patron.submit(wish)
        self.until(self.now + 60.0, lambda: wish.fetched)
        assert isinstance(wish.ending, Finished), f"submitted after the weather cleared, and ended as {wish.ending}"
        assert wish.fetched, "the result of the last job was not fetched"
        slow = sum(max(s.pace for s in self.services if s.stage == spec.name) * 9 * self.length for spec in IF.stages)
        row = self.hub.disk.rows[wish.job]
        slow += LOADED * len(self.needs)
        assert row.ended - row.accepted < slow + 1.0, f"the last job took {row.ended - row.accepted:.1f} s, and needs {slow:.1f} at most"
        self.until(self.now + 20.0, lambda: not self._unfetched())
        assert not self._unfetched(), f"results were not fetched: {self._unfetched()}"
        held = max((until - self.now for _, until in self.hub.disk.holds.values()), default=0.0)
        self.until(self.now + max(3.0, held) + self.policy.upload_keep + 1.0)
        assert not self.hub.broker.jobs, f"the broker still has {list(self.hub.broker.jobs)}"
        assert not len(self.hub.checkpoints), "checkpoints are left over"
        uploads = self.hub.broker.uploads
        assert not self.hub.disk.uploads, "uploads are left over on disk"
        assert not uploads.stored, "uploads are left over in the books"
        assert not len(uploads), "somebody still waits for an upload"
        for service in self.services:
            assert not service.held, f"{service.life} still holds {service.held}"
        self.hub.command(self.hub.broker.drain(self.hub.clock()))
        assert self.hub.broker.drained
        goodbyes = self.drained + len(self.services)
        self.hub.command(self.hub.broker.farewell())
        self.until(self.now + 2.0, lambda: self.drained == goodbyes)
        assert self.drained == goodbyes, "somebody did not go when the mesh was taken down"


if __name__ == "__main__":
    from tests.broker.tally import main

    sys.exit(main())

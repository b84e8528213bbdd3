"""What goes wrong in the simulated mesh, and how often.  Each seed has its own mixture."""

from __future__ import annotations

from collections import Counter
from math import inf
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.broker.service import Service
    from tests.broker.world import World

DOOMS = ("before the commit", "before a write", "after the commit", "among the sends")


class Weather:
    """Until the storm is over, one misfortune after another."""

    def __init__(self, world: World) -> None:
        self.world = world
        rng = world.rng
        self.happened: Counter[str] = Counter()
        faults = [getattr(self, f"{kind}_") for kind in self.kinds()]
        self._mix = [(fault, weight) for fault in faults if (weight := rng.choice((0, 1, 1, 3)))] or [(self.killed_, 1)]
        self._every = rng.choice((0.4, 1.0, 2.0, 5.0))

    @classmethod
    def kinds(cls) -> list[str]:
        """The names of all that may go wrong: each is a method of that name and an underscore."""
        return [name.rstrip("_") for name in sorted(vars(cls)) if name.endswith("_") and not name.startswith("_")]

    def blow(self) -> None:
        world, rng = self.world, self.world.rng
        if not world.storm:
            return
        fault = rng.choices([f for f, _ in self._mix], [w for _, w in self._mix])[0]
        world.say("weather", fault.__name__.strip("_"))
        self.happened[fault.__name__.strip("_")] += 1
        fault()
        world.later(rng.expovariate(1.0 / self._every), self.blow)

    def _somebody(self) -> Service | None:
        """A living worker, rather one that works."""
        living = [s for s in self.world.services if s.life]
        busy = [s for s in living if s.task is not None]
        rng = self.world.rng
        return rng.choice(busy if busy and rng.random() < 0.7 else living) if living else None

    # ---- workers

    def killed_(self) -> None:
        if service := self._somebody():
            service.die("killed", "signal 9")

    def killed_with_its_parent_(self) -> None:
        if service := self._somebody():
            service.die("killed", "host", witness=False)

    def lost_for_good_(self) -> None:
        """The host of one that others can stand in for; it is there again when all is over."""
        world = self.world
        service = self._somebody()
        others = [s for s in world.services if service and s.stage == service.stage and s is not service and not (s.gone or s.cursed)]
        if service and others:
            service.gone = True
            service.die("killed", "host, for good", witness=False)

    def crashed_(self) -> None:
        service = self._somebody()
        if service and service.task and self.world.may_hurt(service.name, service.task.job):
            service.die("crashed", "signal 11")

    def paused_(self) -> None:
        service, rng = self._somebody(), self.world.rng
        if service and (service.task is None or self.world.may_hurt(service.name, service.task.job, count=False)):
            service.pause(rng.choice((rng.uniform(0.1, 4.0), rng.uniform(4.0, 15.0))))

    def hung_(self) -> None:
        service = self._somebody()
        if service and service.task and not service.paused and self.world.may_hurt(service.name, service.task.job, count=False):
            service.hung = True

    def drained_(self) -> None:
        if service := self._somebody():
            service.drain()

    def stop(self, dice: Random) -> None:
        """Somebody for good, rather one with memory that others want.  Where parents tell of it."""
        world = self.world
        living = [s for s in world.services if s.life and not (s.paused or s.hung or s.gone)]
        living = [s for s in living if s.life in world.loaded] or living
        service = dice.choice(living) if living and world.storm else None
        if service and (service.task is None or world.may_hurt(service.name, service.task.job, count=False)):
            service.stop()

    # ---- links

    def cut_(self) -> None:
        """Between the coordinator and somebody, both ways or one."""
        world, rng = self.world, self.world.rng
        peers = list(world.links.by_peer)
        if peers:
            up, down = rng.choice(((True, True), (True, False), (False, True)))
            link = world.links.by_peer[rng.choice(peers)]
            world.say(link.name, f"cut off, up {up}, down {down}")
            world.links.cut(link, rng.choice((rng.uniform(0.1, 3.0), rng.uniform(3.0, 15.0))), up, down)

    def swizzled_(self) -> None:
        """Links are cut one by one, and come back in another order."""
        world, rng = self.world, self.world.rng
        peers = list(world.links.by_peer)
        for n, peer in enumerate(rng.sample(peers, min(4, len(peers)))):
            world.later(0.5 * n, world.links.cut, world.links.by_peer[peer], rng.uniform(2.0, 12.0), True, True)

    def stuck_(self) -> None:
        """One socket is dead, silently and for ever.  (A parent has no time to make another.)"""
        world = self.world
        peers = [peer for peer in world.links.by_peer if not peer.endswith(b"/parent")]
        if peers:
            world.links.stick(world.links.by_peer[world.rng.choice(peers)])

    def hole_(self) -> None:
        """Between two that hand bags to each other."""
        world, rng = self.world, self.world.rng
        names = ["hub", *(s.name for s in world.services)]
        one, other = rng.sample(names, 2)
        one = "hub" if other != "hub" and rng.random() < 0.3 else one
        world.links.hole(one, other, rng.uniform(1.0, 20.0), back=rng.random() < 0.7)

    def severed_(self) -> None:
        """A cable between two workers, one way or both, that nobody mends; few of them, for each costs its patience once."""
        world, rng = self.world, self.world.rng
        if self.happened["severed"] <= 3:
            one, other = rng.sample(world.services, 2)
            world.links.hole(one.name, other.name, inf, back=rng.random() < 0.5)

    def isolated_(self) -> None:
        """All bags to and from one service are lost."""
        world, rng = self.world, self.world.rng
        one, seconds = rng.choice(world.services).name, rng.uniform(1.0, 8.0)
        for name in ("hub", *(s.name for s in world.services)):
            world.links.hole(one, name, seconds)

    # ---- the coordinator

    def coordinator_(self) -> None:
        world, rng = self.world, self.world.rng
        if world.hub.alive and not world.hub.doom:
            world.hub.doom = rng.choice(DOOMS)

    def coordinator_stopped_(self) -> None:
        """As asked: it drains for a while, then it is stopped, done or not."""
        world = self.world
        if world.hub.alive and not world.hub.broker.draining:
            world.hub.command(world.hub.broker.drain(world.hub.clock()))
            world.later(world.rng.uniform(0.5, 4.0), world.hub.stop, world.hub.epoch)

    def coordinator_paused_(self) -> None:
        if self.world.hub.alive:
            self.world.hub.pause(self.world.rng.choice((1.0, 4.0, 8.0)))

    def disk_lost_(self) -> None:
        """An upload is on disk no more."""
        disk = self.world.hub.disk
        if disk.uploads:
            disk.lose(self.world.rng.choice(sorted(disk.uploads)))

    # ---- clients

    def vanished_(self) -> None:
        world, rng = self.world, self.world.rng
        patron = rng.choice(world.patrons)
        if patron.alive:
            patron.vanish()
            world.later(rng.uniform(0.1, 10.0), patron.start)

    def cancelled_(self) -> None:
        world, rng = self.world, self.world.rng
        patron = rng.choice(world.patrons)
        open_jobs = [w.job for w in patron.wishes.values() if w.ending is None]
        if open_jobs:
            patron.cancel(rng.choice(open_jobs))

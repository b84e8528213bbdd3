"""What lies between the processes of the simulated mesh.  Links do only what TCP does: late, in order per pair, or lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from ifmesh.protocol import Header, ToClient, ToCoordinator, Token, ToParent, ToWorker
from tests.broker.toyland import EMPTY

if TYPE_CHECKING:
    from tests.broker.world import World

HEARTBEAT = 4.0
"""A hole longer than this is noticed by ZMTP's heartbeats: the connection is dropped, with all that is in it."""

Down = ToClient | ToWorker | ToParent
Deliver = Callable[[Header, bytes], None]
Hear = Callable[[Down, bytes], None]


@dataclass(slots=True)
class Link:
    """One control connection: a DEALER of one process to the coordinator's ROUTER.

    generation: grows with each new connection, and what belongs to an older one is lost; limbo: but what the kernel of a dead
    sender already had still comes until then.  cut_up, cut_down: the hole lasts until then.  stuck: libzmq never connects again.
    """

    peer: bytes
    name: str
    hear: Hear
    generation: int = 0
    up_at: float = 0.0
    last_up: float = 0.0
    last_down: float = 0.0
    cut_up: float = 0.0
    cut_down: float = 0.0
    limbo: float = 0.0
    closed: bool = False
    stuck: bool = False

    def renew(self, up_at: float) -> None:
        """Another connection, from then on; what the old one held is lost."""
        self.generation += 1
        self.limbo = self.last_up = self.last_down = 0.0
        self.up_at = up_at


@dataclass(slots=True)
class _Poured:
    """A bag in a pipe, or behind others before it.  begins: when it leaves its sender."""

    begins: float
    alive: Callable[[], bool]
    deliver: Deliver
    header: Header
    frame: bytes


class Links:
    """All control links and data pipes of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.by_peer: dict[bytes, Link] = {}
        self.lossy = 0.0
        self.double = 0.0
        self.slow = 0.0
        self.lost = self.doubled = self.spoilt = 0
        self.rate = inf  # bytes a second from one service to another
        self.poured: Counter[tuple[str, str, Token]] = Counter()  # how often each bag was sent: its kind, job and token
        self._pipes: dict[tuple[str, str], float] = {}  # when the last that was poured into it arrives
        self._waits: dict[tuple[str, str, str, str], _Poured] = {}  # the last of each place of an outbox
        self._holes: dict[tuple[str, str], float] = {}

    # ---- control

    def join(self, peer: bytes, name: str, hear: Hear) -> Link:
        link = Link(peer, name, hear, up_at=self.world.now + self.world.rng.uniform(0.001, 0.02))
        self.by_peer[peer] = link
        return link

    def leave(self, link: Link) -> None:
        """The process died."""
        rng = self.world.rng
        link.generation += 1
        link.limbo = self.world.now + rng.choice((0.0, 0.002, 0.05))
        link.closed = True
        self.by_peer.pop(link.peer, None)

    def rebuild(self, link: Link) -> None:
        """The process closed the socket and made a new one; it is refused as long as the hole lasts."""
        link.stuck = False
        link.renew(max(self.world.now, link.cut_up, link.cut_down) + self.world.rng.uniform(0.01, 1.0))

    def reset(self) -> None:
        """The coordinator died: every connection is gone, and comes back by itself some time after it is there again."""
        for link in self.by_peer.values():
            link.renew(float("inf"))

    def reopen(self) -> None:
        for link in self.by_peer.values():
            if not link.stuck:
                link.up_at = max(self.world.now, link.cut_up, link.cut_down) + self.world.rng.uniform(0.01, 1.0)

    def stick(self, link: Link) -> None:
        """A connecting socket that met a protocol error is dead for ever, and says nothing of it: only a new one helps."""
        link.stuck = True
        link.renew(float("inf"))

    def cut(self, link: Link, seconds: float, up: bool, down: bool) -> None:
        until = self.world.now + seconds
        link.cut_up = max(link.cut_up, until) if up else link.cut_up
        link.cut_down = max(link.cut_down, until) if down else link.cut_down
        if seconds > HEARTBEAT:
            self.world.later(HEARTBEAT, self._notice, link, link.generation)

    def _notice(self, link: Link, generation: int) -> None:
        """ZMTP's heartbeats notice the hole, and libzmq connects again by itself."""
        if link.generation == generation and not link.stuck and max(link.cut_up, link.cut_down) > self.world.now:
            self.rebuild(link)

    def heal(self) -> None:
        """The weather clears."""
        self.lossy = self.double = self.slow = 0.0
        self._holes = {pair: until for pair, until in self._holes.items() if until == inf}
        for link in self.by_peer.values():
            if max(link.cut_up, link.cut_down) > self.world.now and not link.stuck:
                link.renew(self.world.now + 0.5 if self.world.hub.alive else float("inf"))
            link.cut_up = link.cut_down = 0.0

    def open(self, peer: bytes) -> bool:
        link = self.by_peer.get(peer)
        return link is not None and link.up_at <= self.world.now

    def _times(self) -> int:
        """How often it arrives.  TCP doubles nothing; a sender that is not sure that it was heard does."""
        twice = bool(self.double) and self.world.rng.random() < self.double
        self.doubled += twice
        return 1 + twice

    def _late(self) -> float:
        rng = self.world.rng
        return rng.uniform(0.0002, 0.004) + (rng.uniform(0.0, self.slow) if self.slow else 0.0)

    def up(self, link: Link, message: ToCoordinator) -> None:
        world = self.world
        if link.closed or link.up_at > world.now or (self.lossy and world.rng.random() < self.lossy):
            self.lost += 1
            world.say(link.name, "lost on the way up:", message)
            return
        for _ in range(self._times()):
            link.last_up = max(link.last_up + 1e-6, world.now + self._late(), link.cut_up)
            world.at(link.last_up, self._rise, link, link.generation, world.hub.epoch, message)

    def _rise(self, link: Link, generation: int, epoch: int, message: ToCoordinator) -> None:
        fresh = link.generation == generation or (link.closed and link.generation == generation + 1 and link.limbo >= self.world.now)
        if not fresh or epoch != self.world.hub.epoch or not self.world.hub.alive:
            self.lost += 1
            self.world.say(link.name, "lost with its connection:", message)
            return
        self.world.hub.hears(link.peer, message)

    def down(self, peer: bytes, message: Down, payload: bytes = b"") -> bool:
        """False: there is no such peer now."""
        world = self.world
        if not self.open(peer):
            return False
        link = self.by_peer[peer]
        if self.lossy and world.rng.random() < self.lossy:
            self.lost += 1
            world.say(link.name, "lost on the way down:", message)
            return True
        for _ in range(self._times()):
            link.last_down = max(link.last_down + 1e-6, world.now + self._late(), link.cut_down)
            world.at(link.last_down, self._fall, link, link.generation, message, payload)
        return True

    def _fall(self, link: Link, generation: int, message: Down, payload: bytes) -> None:
        if link.generation != generation:
            self.lost += 1
            self.world.say(link.name, "lost with its connection:", message)
            return
        link.hear(message, payload)

    # ---- data

    def hole(self, a: str, b: str, seconds: float, back: bool = True) -> None:
        """No bag passes from a to b for a while (inf: the weather does not mend it), nor back."""
        for pair in ((a, b), (b, a))[: 1 + back]:
            self._holes[pair] = max(self._holes.get(pair, 0.0), self.world.now + seconds)

    def mend(self) -> None:
        """Whatever lasts."""
        self._holes.clear()
        self.rate = inf

    def pipe(self, sender: str, alive: Callable[[], bool], receiver: str, deliver: Deliver, header: Header, frame: bytes) -> None:
        """sender, receiver: names of services.  A bag that meets a hole, a death or a flipped bit does not arrive."""
        world = self.world
        self.poured[header.kind, header.job, header.token] += 1
        if self._holes.get((sender, receiver), 0.0) > world.now:
            self.lost += 1
            world.say(sender, "bag lost in a hole:", header)
            return
        for _ in range(self._times()):
            self._pour(sender, alive, receiver, deliver, header, frame)

    def _pour(self, sender: str, alive: Callable[[], bool], receiver: str, deliver: Deliver, header: Header, frame: bytes) -> None:
        world, rng = self.world, self.world.rng
        late = rng.uniform(0.0005, 0.02) + (rng.uniform(0, 20 * self.slow) if self.slow else 0.0)
        begins = max(self._pipes.get((sender, receiver), 0.0) + 1e-6, world.now + late)
        arrival = begins + (len(frame) if frame != EMPTY else 0) / self.rate
        spoilt = world.storm and rng.random() < 0.01
        self.spoilt += spoilt
        poured = _Poured(begins, alive, deliver, header, b"\0" + frame[1:] if spoilt else frame)
        place = sender, receiver, header.job, {"preview": header.stage, "checkpoint": "checkpoint"}.get(header.kind, "")
        waits = self._waits.get(place)
        if self.rate < inf and waits is not None and waits.begins > world.now:  # as in `Outlets`: one that has not left is replaced
            waits.alive, waits.deliver, waits.header, waits.frame = alive, deliver, header, poured.frame
            return
        self._pipes[sender, receiver], self._waits[place] = arrival, poured
        world.at(arrival, self._drop, poured)

    def _drop(self, poured: _Poured) -> None:
        if poured.alive():
            poured.deliver(poured.header, poured.frame)
        else:
            self.lost += 1

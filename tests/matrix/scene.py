"""A calm mesh under the virtual clock, on which one thing goes wrong at a moment of our choosing.

The world, the hub, the services, the patrons and the links are those of the storms in tests/broker; here nothing is left to the dice
but small delays.  Moments are found by what passes on the links (`Cue`) or by what holds (`wait`), and bounds are virtual seconds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import Any, cast

from ifmesh.chores import Task
from ifmesh.commands import Blame, Book, Close, Command, Hold, Policy, Send
from ifmesh.disk import AGAIN as RETRIED
from ifmesh.disk import Disk as Bider
from ifmesh.journal import Journal
from ifmesh.protocol import Beat, Failed, Finished, Header, Hello, Peer, Run, Submit, ToCoordinator, Trusted
from ifmesh.request import STAGES, Request
from ifmesh.schema import Unwritable
from tests.broker.hub import Hub
from tests.broker.links import Deliver, Down, Link, Links
from tests.broker.patron import Patron, Wish
from tests.broker.service import Service
from tests.broker.toyland import EMPTY, cascade
from tests.broker.world import Minds, World

BEAT = 1.0
"""Seconds between two heartbeats of a worker."""

AGAIN = 1.0
"""Seconds that a connection of the simulated network needs at most to come back."""

PATIENCE = 20.0
"""Seconds without a step after which any worker of a scene is stalled."""


@dataclass(slots=True, eq=False)
class Cue:
    """What is to happen when such a message is about to pass.

    kind: its type, or the kind of a bag.  fits: asked with who sends it up, is sent it down, or "sender > receiver" of a bag.  lost: it
    does not arrive.  twice: it arrives twice.  spoilt: a bit of the bag flips.  met: how often it happened so far.
    """

    kind: type | str
    fits: Callable[[str, Any], bool]
    act: Callable[[], None]
    times: int
    lost: bool = False
    twice: bool = False
    spoilt: bool = False
    met: int = 0


@dataclass(frozen=True, slots=True)
class Passed:
    """One message that was sent.  way: "up", "down" or "data"; who: as in Cue."""

    when: float
    way: str
    who: str
    message: Any


class Wires(Links):
    """The links, with a look at everything that is sent over them."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.cues: list[Cue] = []
        self.passed: list[Passed] = []
        self.mute: Callable[[str, str], bool] = lambda way, who: False  # whose control messages are lost now
        self.struck: Callable[[str, str, Any], bool] = lambda way, who, message: False  # is this very one lost?
        self._unsent: defaultdict[bytes, list[ToCoordinator]] = defaultdict(list)

    def _meets(self, way: str, who: str, message: Any) -> Cue | None:
        self.passed.append(Passed(self.world.now, way, who, message))
        kind = message.kind if way == "data" else type(message)
        for cue in self.cues:
            if cue.kind == kind and cue.met < cue.times and cue.fits(who, message):
                cue.met += 1
                cue.act()
                return cue
        return None

    def up(self, link: Link, message: ToCoordinator) -> None:
        cue = self._meets("up", link.name, message)
        if (cue is not None and cue.lost) or self.mute("up", link.name) or self.struck("up", link.name, message):
            self._lose(link.name, message)
        elif not link.closed and link.up_at > self.world.now:  # as `Uplink` does
            self._unsent[link.peer].append(message)
            self._connecting(link)
        else:
            super().up(link, message)

    def rebuild(self, link: Link) -> None:
        self._unsent.pop(link.peer, None)
        super().rebuild(link)

    def reopen(self) -> None:
        super().reopen()
        for link in list(self.by_peer.values()):
            self._connecting(link)

    def _connecting(self, link: Link) -> None:
        """What waits for the connection leaves as soon as it is there."""
        if link.up_at > self.world.now:
            if link.up_at < inf:
                self.world.at(link.up_at, self._connecting, link)
            return
        for message in self._unsent.pop(link.peer, ()):
            super().up(link, message)

    def down(self, peer: bytes, message: Down, payload: bytes = b"") -> bool:
        cue = self._meets("down", peer.decode(), message)
        if (cue is not None and cue.lost) or self.mute("down", peer.decode()) or self.struck("down", peer.decode(), message):
            self._lose(peer.decode(), message)
            return True
        return super().down(peer, message, payload)

    def pipe(self, sender: str, alive: Callable[[], bool], receiver: str, deliver: Deliver, header: Header, frame: bytes) -> None:
        cue = self._meets("data", f"{sender} > {receiver}", header)
        if (cue is not None and cue.lost) or self.struck("data", f"{sender} > {receiver}", header):
            self._lose(sender, header)
            return
        frame = b"\0" + frame[1:] if cue is not None and cue.spoilt else frame
        for _ in range(2 if cue is not None and cue.twice else 1):
            super().pipe(sender, alive, receiver, deliver, header, frame)

    def _lose(self, who: str, message: Any) -> None:
        self.lost += 1
        self.world.say(who, "lost, as the scene wants it:", message)


class Stagehand(Hub):
    """A hub that dies when it is told to: at the first batch of commands that fits.  how: see `weather.DOOMS`.

    full: the disk takes nothing; who waits for it is the real `ifmesh.disk`.  And workers are told whom to trust, as the shell does it.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.plots: list[tuple[str, Callable[[list[Command]], bool]]] = []
        self.full = False
        self.bider: Bider
        self._trusted: list[Command] = []

    def start(self) -> None:
        self.bider = Bider(cast(Journal, Paper(self)), 0)
        self._trusted = []
        super().start()

    def _note(self, peer: bytes, message: ToCoordinator) -> None:
        super()._note(peer, message)
        if isinstance(message, Hello) or (isinstance(message, Beat) and message.trusts != self.epoch):
            self._trusted.append(Send(peer, Trusted(self.epoch, (Peer("hub", ""),))))

    def _finish(self, commands: list[Command]) -> None:
        commands, self._trusted = [*commands, *self._trusted], []
        commands = self.bider.through(self.clock(), commands)
        if self.bider.waiting:
            self._soon(max(0.0, self.bider.due - self.clock()))  # as the coordinator wakes for it
            if not commands:
                return
        for plot in [plot for plot in self.plots if plot[1](commands)]:
            self.plots.remove(plot)
            self.doom = plot[0]
        super()._finish(commands)

    def arrives(self, epoch: int, header: Header, frame: bytes) -> None:
        """What comes while nothing can be decided lies in the socket."""
        if self.alive and self.bider.waiting:
            self.world.later(RETRIED, self.arrives, epoch, header, frame)
        else:
            super().arrives(epoch, header, frame)

    def _turn(self) -> None:
        if not self.alive or not self.bider.waiting:
            super()._turn()
            return
        if self.world.now < self._turn_at:
            return
        self._turn_at = inf
        inbox, self._inbox = self._inbox, []
        for item in inbox:
            if len(item) != 2:  # of the writer
                self._inbox.append(item)
                continue
            peer, message = item
            self.world.say("hub", f"{peer.decode()} > (biding)", message)
            known = not isinstance(message, Submit) or self.broker.knows(message.job)
            if (answer := self.bider.answer(message, known, self.broker.welcome())) is not None:
                self.world.links.down(peer, answer)
        self._finish([])
        if not self.bider.waiting:
            self.broker.slept(self.clock())
            self._soon(0.0)


@dataclass(frozen=True, slots=True)
class Paper:
    """The journal as the one who waits for it sees it; the disk of the world has what went through."""

    hub: Stagehand

    def commit(self, commands: list[Command]) -> None:
        if self.hub.full and any(isinstance(c, Book | Close | Hold | Blame) for c in commands):
            raise Unwritable("disk I/O error")


class Actor(Service):
    """A service whose tasks all have as many steps."""

    def __init__(self, scene: Scene, name: str, stage: str) -> None:
        super().__init__(scene, name, stage)
        self.scene = scene
        self.pace = scene.pace

    def _begin(self, task: Task) -> None:
        if not task.preview:
            self.scene.ran[task.job, self.stage] += 1
        super()._begin(task)
        if self.task is task and not self.slow:
            self.steps = self.scene.lengths[self.stage]


class Scene(World):
    """copies: workers of each stage, or of those named (one of the others).  steps: of each stage, or of those named (four in the others).
    pace: seconds for a step, give or take a half.  every: steps from one checkpoint to the next, 0: none.  needs: bytes of the
    stages in swap, one after another on one device.  policy: the broker's numbers,
    where they are not as published."""

    def __init__(
        self,
        seed: int = 1,
        copies: int | Mapping[str, int] = 1,
        clients: int = 1,
        steps: int | Mapping[str, int] = 4,
        pace: float = 0.1,
        every: int = 0,
        needs: Mapping[str, int] = MappingProxyType({}),
        **policy: Any,
    ) -> None:
        super().__init__(seed, Minds(), trace=print, every=every)
        self.watchful = True
        self.needs, self.budget, self.devices = dict(needs), max(needs.values(), default=0), 1
        self.storm = self.mixed = self.owned = False
        self.length, self.checkpoint_bytes = 1, 1 << 20
        self.pace = pace
        self.lengths = dict.fromkeys(STAGES, 4) | dict(steps if isinstance(steps, Mapping) else dict.fromkeys(STAGES, steps))
        self.cascade = cascade(PATIENCE)
        self.policy = Policy(checkpoints=every > 0, **policy)
        self.outbox = 1 << 30
        self.links: Wires = Wires(self)
        self.hub: Stagehand = Stagehand(self)
        many = copies if isinstance(copies, Mapping) else dict.fromkeys(STAGES, copies)
        self.services = [Actor(self, f"{stage}-{n}", stage) for stage in STAGES for n in range(many.get(stage, 1))]
        self.patrons = [Patron(self, f"client-{n}") for n in range(clients)]
        self.ran: Counter[tuple[str, str]] = Counter()  # (job, stage): how often it was begun

    # ---- the play

    def begin(self) -> Scene:
        """Everybody is there, and ready."""
        self.hub.start()
        for service in self.services:
            service.start()
        for patron in self.patrons:
            patron.start()
        self.wait(self.all_here, 10.0)
        self.pass_by(BEAT)
        return self

    def wait(self, holds: Callable[[], object], within: float) -> float:
        """Until it holds, which has to be within so many seconds; how many it took."""
        began = self.now
        self.until(began + within, lambda: bool(holds()))
        assert holds(), f"not within {within:g} s"
        return self.now - began

    def pass_by(self, seconds: float) -> None:
        self.until(self.now + seconds)

    def hire(self, name: str, stage: str) -> Actor:
        """One service more; it is not started."""
        self.services.append(actor := Actor(self, name, stage))
        return actor

    def __getitem__(self, name: str) -> Actor:
        """A service by its name."""
        found = next(s for s in self.services if s.name == name)
        assert isinstance(found, Actor)
        return found

    # ---- clients

    def submit(
        self, job: str, prompt: str = "fox:none", client: int = 0, first: bytes = EMPTY, previews: bool = False, **more: Any
    ) -> Wish:
        wish = Wish(job, Request(prompt, 7, **more), first, previews)
        self.patrons[client].submit(wish)
        return wish

    def wishes(self) -> list[Wish]:
        return [wish for patron in self.patrons for wish in patron.wishes.values()]

    def over(self, within: float, rest: float = 12.0) -> float:
        """Everything ends and is fetched within so many seconds, as its prompt says; rest: after so many more nobody holds any of it."""
        took = self.wait(lambda: self._all_ended() and not self._unfetched(), within)
        for wish in self.wishes():
            if wish.ending is not None:
                self._judge_one(wish, wish.ending)
        self.wait(lambda: not self.hub.broker.jobs and not any(s.held for s in self.services if s.life), rest)
        return took

    def finished(self, *jobs: str) -> list[Finished]:
        """How these ended, which is well."""
        endings = [self.hub.disk.rows[job].ending for job in jobs]
        assert all(isinstance(ending, Finished) for ending in endings), endings
        return [ending for ending in endings if isinstance(ending, Finished)]

    def failed(self, job: str) -> Failed:
        ending = self.hub.disk.rows[job].ending
        assert isinstance(ending, Failed), ending
        return ending

    def begun(self, job: str) -> dict[str, int]:
        """By stage, how often it was begun."""
        return {stage: self.ran[job, stage] for stage in STAGES if self.ran[job, stage]}

    def story(self, job: str) -> list[str]:
        known = self.hub.broker.jobs.get(job)
        return [text for _, text in (known.story if known is not None else self.hub.disk.rows[job].story)]

    # ---- what is on the way

    def cue(
        self, kind: type | str, act: Callable[[], None] = lambda: None, fits: Any = lambda who, m: True, times: int = 1, **how: bool
    ) -> Cue:
        """From now on, so many times."""
        cue = Cue(kind, fits, act, times, **how)
        self.links.cues.append(cue)
        return cue

    def lose(self, kind: type | str, times: int = 1, fits: Any = lambda who, m: True) -> Cue:
        return self.cue(kind, fits=fits, times=times, lost=True)

    def said(self, kind: type | str, who: str = "") -> list[Passed]:
        """All that was sent of this kind, lost or not."""
        return [p for p in self.links.passed if who in p.who and kind == (p.message.kind if p.way == "data" else type(p.message))]

    def grants(self, stage: str = "") -> list[str]:
        """The jobs of all grants in their order.  (A Run is said again when the next Beat knows nothing of it.)"""
        return list({(p.message.job, p.message.token): p.message.job for p in self.said(Run, stage)}.values())

    # ---- what is wrong

    def crash_at(self, how: str, fits: Callable[[list[Command]], bool], back: float = 1.0) -> None:
        """The coordinator dies at the first batch that fits, and comes back so many seconds later."""

        def watch() -> None:
            if self.hub.alive:
                self.later(0.001, watch)
            else:
                self.later(back, self.hub.start)

        self.hub.plots.append((how, fits))
        watch()

    def crash(self, back: float = 1.0) -> None:
        """Now."""
        self.hub.crash()
        self.later(back, self.hub.start)

    def cut(self, service: str, seconds: float, up: bool = True, down: bool = True) -> None:
        """Between a worker, with its parent, and the coordinator."""
        actor = self[service]
        for link in (actor.link, actor.parent.link):
            self.links.cut(link, seconds, up, down)
        if up and down:
            self.links.hole("hub", service, seconds)

    def running(self, job: str, stage: str, step: int = 1) -> Callable[[], bool]:
        """Has the broker heard that it made this step there?"""

        def holds() -> bool:
            known = self.hub.broker.jobs.get(job)
            return known is not None and known.at == stage and known.running and known.step >= step

        return holds

    def where(self, job: str) -> str:
        """The name of the worker that it is granted to; "": none."""
        known = self.hub.broker.jobs.get(job)
        return known.life.rpartition(".")[0] if known is not None else ""

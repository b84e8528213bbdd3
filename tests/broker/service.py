"""One worker service in the simulated mesh: parent and child, life after life, with the real Keeper in the child."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from ifmesh.chores import Carry, Clear, Command, Fill, Forget, Rebuild, Send, Stop, Task
from ifmesh.commands import Give, parent_of
from ifmesh.keeper import Keeper
from ifmesh.prober import Cast
from ifmesh.protocol import Beat, Endpoint, Exited, Header, Hello, Kill, Lives, Noted, ToWorker
from tests.broker.links import Down, Link
from tests.broker.toyland import alone, checkpoint, digest, output, steps

if TYPE_CHECKING:
    from tests.broker.world import World

SLOW = 200
"""Steps of a job that nobody could wait for."""

SAYS = 10.0
"""Seconds between two Lives."""

Cause = Literal["ended", "killed", "crashed", "stalled"]


class Parent:
    """Watches one life; when it is over it says so until that was noted, at most 10 s."""

    def __init__(self, service: Service, life: str) -> None:
        self.service, self.world, self.life = service, service.world, life
        self.link: Link = self.world.links.join(parent_of(life), f"{life}/parent", self.hear)
        self.exited: Exited | None = None
        self.alive = True
        self.since = 0.0
        if self.world.watchful:
            self.world.later(SAYS, self._watch)

    def hear(self, message: Down, payload: bytes) -> None:
        if not self.alive:
            return
        self.world.say(self.link.name, "hears", message)
        if isinstance(message, Kill) and message.life == self.life:
            self.service.die("stalled", "no step for too long", self.life)
        elif isinstance(message, Noted) and self.exited is not None:
            self.leave()

    def _watch(self) -> None:
        if self.alive and self.exited is None:
            self.world.links.up(self.link, Lives(self.life))
            self.world.later(SAYS, self._watch)

    def child_ended(self, cause: Cause, detail: str, ran: tuple[str, ...]) -> None:
        told = Exited(self.life, cause, detail, self.service.name, ran if self.world.rng.random() < 0.9 else None)
        self.exited, self.since = told, self.world.now
        self._repeat()

    def _repeat(self) -> None:
        if self.alive and self.exited is not None:
            if self.world.now - self.since > 10.0:
                self.leave()
            else:
                self.world.links.up(self.link, self.exited)
                self.world.later(0.5, self._repeat)

    def leave(self) -> None:
        if self.alive:
            self.alive = False
            self.world.links.leave(self.link)
            self.service.bury(self.life, self.exited)


class Service:
    """A named worker.  life: "" while it is down."""

    def __init__(self, world: World, name: str, stage: str) -> None:
        self.world, self.name, self.stage = world, name, stage
        self.life = ""
        self.lives = 0
        self.ready = False
        self.draining = False
        self.hung = False
        self.gone = False  # its host is lost for good
        self.cursed = False  # every life of it crashes in the middle of its first task
        self.paused = False
        self.stopped = False  # for good
        self.task: Task | None = None
        self.step = 0
        self.steps = 0
        self.slow = False
        self.held: tuple[object, ...] = ()
        self.spoilt: set[str] = set()
        self.keeper: Keeper
        self.link: Link
        self.parent: Parent
        self._filling: tuple[float, ...] = ()
        self._numeric = ""
        self._asleep: list[tuple[Callable[..., None], tuple[object, ...]]] = []
        self._tick_at = float("inf")
        self._skew = 0.0
        self.device = f"card {int(name[-1]) % world.devices}" if stage in world.needs else "cpu"
        self.pace = world.rng.choice((0.01, 0.05, 0.2, 0.5)) / world.length

    @property
    def url(self) -> str:
        return f"tcp://{self.life}"

    def clock(self) -> float:
        return self.world.now + self._skew

    # ---- a life

    def start(self) -> None:
        world = self.world
        if self.life or self.gone:
            return
        self.lives += 1
        self.life = f"{self.name}.{self.lives}"
        self.ready = self.draining = self.hung = self.paused = self.stopped = False
        self.task, self.held, self._asleep, self._tick_at = None, (), [], float("inf")
        self._skew = world.rng.uniform(0, 1e6)
        numeric = f"cpu {self.name[-1]}" if world.mixed else "cpu"
        hello = Hello(self.stage, self.life, self.name, 1, "here", self.device, (Endpoint("", self.url),), 2, numeric)
        self.keeper = world.minds.keeper(hello, world.outbox)
        self.link = world.links.join(self.life.encode(), self.life, self._hear)
        self.parent = Parent(self, self.life)
        world.inlets[self.url] = self
        world.say(self.life, "starts")
        self._do(self.keeper.start(self.clock()))
        then = self._weighed if self.stage in world.needs else self._loaded
        self._mine(world.rng.uniform(0.05, 3.0 if world.storm else 0.5), then, numeric)

    def _weighed(self, numeric: str) -> None:
        self.ready, self._numeric = True, numeric
        self._do(self.keeper.weighed(self.clock(), self.world.needs[self.stage], self.world.budget))

    def _loaded(self, numeric: str) -> None:
        self.ready = True
        self._do(self.keeper.loaded(self.clock(), numeric))

    def die(self, cause: Cause, detail: str, life: str = "", witness: bool = True) -> None:
        """The child process is gone.  witness: its parent lives to tell."""
        if not self.life or (life and life != self.life):
            return
        world = self.world
        world.say(self.life, f"DIES: {cause} {detail} {'' if witness else 'without a witness'}")
        world.deaths += 1
        world.kills += cause != "ended"
        if self.task is not None and cause in ("crashed", "stalled"):
            world.killed_by(self.task.job, self.life, witness)
        ran = (self.task.job,) if self.task is not None else ()
        dead, self.life, self.task = self.life, "", None
        world.loaded.pop(dead, None)
        world.inlets.pop(f"tcp://{dead}", None)
        world.links.leave(self.link)
        if witness:
            self.parent.child_ended(cause, detail, ran)
        else:
            self.parent.exited = None
            self.parent.leave()

    def bury(self, life: str, exited: Exited | None) -> None:
        """The parent is gone too: whoever started it starts it again."""
        rng = self.world.rng
        if exited is None:
            wait = rng.uniform(0.5, 8.0)
        else:
            wait = rng.uniform(0.5, 2.0) if exited.cause in ("crashed", "stalled") else rng.uniform(0.05, 0.5)
        self.world.later(wait, self.start)

    def pause(self, seconds: float) -> None:
        if self.life and not self.paused:
            self.world.say(self.life, f"is stopped for {seconds:.1f} s")
            self.paused = True
            self.world.later(seconds, self.resume, self.life)

    def resume(self, life: str) -> None:
        if self.paused and not self.stopped and life == self.life:
            self.world.say(self.life, "goes on")
            self.paused = False
            asleep, self._asleep = self._asleep, []
            for action, args in asleep:
                if life == self.life:
                    action(*args)

    def stop(self) -> None:
        """Nothing but its parent ends it."""
        if self.life and not (self.paused or self.gone):
            self.world.say(self.life, "is stopped for good")
            self.paused = self.stopped = True

    def come_back(self) -> None:
        if self.gone:
            self.gone = False
            self.start()

    def unhang(self, idle: bool = False) -> None:
        """Hung, but with nothing to do: nobody would find out before the next job.  idle: nobody has anything to do, if it knows or not."""
        if self.life and self.hung and (idle or self.task is None or self.task.preview):
            self.die("killed", "hung and idle")

    def drain(self) -> None:
        """SIGTERM."""
        if self.life and not self.paused and not self.draining:
            self.world.say(self.life, "is told to drain")
            self.draining = True
            self._do(self.keeper.drain(self.clock()))

    # ---- events, which a stopped process sees later and a dead one never

    def _mine(self, delay: float, action: Callable[..., None], *args: object) -> None:
        self.world.later(delay, self._wake, self.life, action, args)

    def _wake(self, life: str, action: Callable[..., None], args: tuple[object, ...]) -> None:
        if life != self.life:
            return
        if self.paused:
            self._asleep.append((action, args))
        else:
            action(*args)

    def _hear(self, message: Down, payload: bytes) -> None:
        self._wake(self.life, self._heard, (message,))

    def _heard(self, message: ToWorker) -> None:
        self._do(self.keeper.receive(self.clock(), message))

    def arrives(self, life: str, header: Header, frame: bytes) -> None:
        self._wake(life, self._arrived, (header, frame))

    def _arrived(self, header: Header, frame: bytes) -> None:
        if digest(frame) != header.digest:
            self.world.say(self.life, "drops a bag of the wrong digest:", header)
            return
        self.world.say(self.life, "gets", header)
        self._do(self.keeper.arrived(self.clock(), header, frame))

    def _tick(self, at: float) -> None:
        if at == self._tick_at:
            self._tick_at = float("inf")
            self._do(self.keeper.tick(self.clock()))

    # ---- what the keeper wants

    def _do(self, commands: list[Command]) -> None:
        self._carry_out(commands)
        while self.life and self.ready and self.task is None and not self.hung:
            task, commands = self.keeper.take(self.clock())
            self._carry_out(commands)
            if task is None:
                break
            self._begin(task)
        if self.life:
            wakeup = self.keeper.wakeup() - self._skew
            if wakeup < self._tick_at - 1e-9:
                self._tick_at = max(wakeup, self.world.now) + 1e-6
                self._mine(self._tick_at - self.world.now, self._tick, self._tick_at)

    def _carry_out(self, commands: list[Command]) -> None:
        world = self.world
        for command in commands:
            if isinstance(command, Send):
                if isinstance(command.message, Beat):
                    self.held = command.message.held
                world.links.up(self.link, command.message)
            elif isinstance(command, Carry):
                world.say(self.life, f"carries {command.header} to {command.life}")
                header, frame = command.header, bytes(command.frame)
                if command.only:
                    frame = alone(command.only, frame)
                    header = replace(header, digest=digest(frame))
                world.carry(self, command.to, header, frame)
            elif isinstance(command, Cast):
                world.carry(self, command.to, replace(command.header, digest=digest(command.frame)), command.frame)
            elif isinstance(command, Forget):
                if self.task is not None and (self.task.job, self.task.token) == (command.job, command.token):
                    world.say(self.life, "forgets", command)
                    self.task = None
            elif isinstance(command, Fill):
                self._fill()
            elif isinstance(command, Clear):
                world.say(self.life, "gives its memory back")
                self.task, self._filling = None, ()
                self._mine(world.rng.uniform(0.01, 0.5), self._cleared)
            elif isinstance(command, Rebuild):
                world.say(self.life, "rebuilds its socket")
                world.rebuilds += 1
                world.links.rebuild(self.link)
            else:
                assert isinstance(command, Stop), command
                world.drained += not command.detail
                return self.die("ended", command.detail or "drained")
        return None

    # ---- its weights

    def _fill(self) -> None:
        world = self.world
        if not self.life:
            return
        if world.fills(self):
            world.say(self.life, "loads")
            self._filling = (world.now,)
            self._mine(world.rng.uniform(0.1, 3.0 if world.storm else 1.0), self._filled, self._filling)
        else:
            world.say(self.life, "has no room on", self.device)
            self._mine(0.01, self._denied)

    def _denied(self) -> None:
        self._do(self.keeper.denied(self.clock()))

    def _filled(self, which: tuple[float, ...]) -> None:
        if which == self._filling:
            self._loaded(self._numeric)

    def _cleared(self) -> None:
        self.world.loaded.pop(self.life, None)
        self._do(self.keeper.cleared(self.clock()))

    # ---- the compute thread

    def _begin(self, task: Task) -> None:
        world, rng = self.world, self.world.rng
        self.task = task
        world.runs += 1
        world.say(self.life, f"begins {task.job} {task.token}")
        if world.storm and task.job not in self.spoilt and rng.random() < 0.005:
            self.spoilt.add(task.job)
            self.task = None
            self._carry_out(self.keeper.spoiled(self.clock(), task.job, task.token, "the bag does not decode"))
            return
        trouble, _, where = task.request.prompt.partition(":")
        if trouble == "bad" and where == self.stage:
            self.task = None
            self._carry_out(self.keeper.raised(self.clock(), task.job, task.token, "it can never work", "request"))
            return
        self.slow = trouble == "slow" and where == self.stage
        self.step, self.steps = self._resumed(task), SLOW if self.slow else steps(self.stage, task.request) * world.length
        self._carry_out(self.keeper.advanced(self.clock(), task.job, task.token, self.step, self.steps))
        self._mine(self.pace * rng.uniform(0.5, 1.5), self._steps, task)

    def _resumed(self, task: Task) -> int:
        """The step after which it goes on.  It must be right; a few cannot be read all the same, and cost the time alone."""
        world = self.world
        if task.saved is None or (world.storm and world.rng.random() < 0.02):
            return 0
        step = int(bytes(task.saved).partition(b"|")[0])
        right = checkpoint(self.stage, task.request, bytes(task.frame), self.keeper.hello.numeric, step)
        assert task.saved == right, f"{task.job}: the checkpoint of something else, or of another numeric class"
        world.resumed += 1
        return step

    def _save(self, task: Task) -> None:
        """Now and then a checkpoint."""
        world = self.world
        if world.every and not task.preview and self.step % world.every == 0:
            frame = checkpoint(self.stage, task.request, bytes(task.frame), self.keeper.hello.numeric, self.step)
            self._carry_out(self.keeper.saved(self.clock(), task.job, task.token, self.step, frame, digest(frame)))

    def _steps(self, task: Task) -> None:
        """One denoising step; a cancel lands here, and so do most misfortunes."""
        world = self.world
        if self.task is not task or self.hung:
            return None
        trouble, _, where = task.request.prompt.partition(":")
        if trouble == "poison" and where == self.stage and self.step >= self.steps // 2:
            return self.die("crashed", "signal 6")
        if self.cursed and not task.job.startswith("poison") and world.hurt[task.job] < 2:
            return self.die("crashed", "a bad card")
        if where == self.stage and (trouble == "raises" or (trouble == "flaky" and world.raises_once(task.job))):
            self.task = None
            return self._do(self.keeper.raised(self.clock(), task.job, task.token, "RuntimeError: no", "stage"))
        self.step += 1
        if not task.preview:
            world.stepped(task.job, self.stage, self.step)
        if self.step < self.steps:
            self._save(task)
            self._mine((0.5 if self.slow else self.pace) * world.rng.uniform(0.5, 1.5), self._steps, task)
            return self._do(self.keeper.advanced(self.clock(), task.job, task.token, self.step, self.steps))
        self.task = None
        frame = output(self.stage, task.request, bytes(task.frame))
        self._carry_out(self.keeper.advanced(self.clock(), task.job, task.token, self.step, self.steps))
        self._mine(world.rng.uniform(0.0, 0.01), self._encoded, task, frame)
        return self._do([])

    def _encoded(self, task: Task, frame: bytes) -> None:
        self._do(self.keeper.completed(self.clock(), task.job, task.token, frame, digest(frame), self.steps * self.pace))


def first_bag(world: World, give: Give, frame: bytes) -> None:
    """The coordinator PUSHes the first bag to a worker of the first stage."""
    from_hub(world, give.life, Header("bag", give.job, give.stage, give.token, digest(frame)), frame)


def from_hub(world: World, life: str, header: Header, frame: bytes) -> None:
    """The coordinator PUSHes something to that life."""
    service = world.inlets.get(f"tcp://{life}")
    if service is not None:
        epoch = world.hub.epoch
        world.links.pipe(
            "hub", lambda: world.hub.alive and world.hub.epoch == epoch and service.life == life,
            service.name, lambda h, f: service.arrives(life, h, f), header, frame,
        )  # fmt: skip

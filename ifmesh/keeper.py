"""The worker's mind: pure.  Tasks, early bags, the outbox, the beat.

Only the worker's I/O thread touches it; what the compute thread did is told to it there.  A task is here from its Run until its
bag is done; the finished bag is here until the coordinator says Release.  All of it is in every Beat.  The early pictures that a guard
looks at (`Looks`) are in none: they are never waited for.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Literal

from ifmesh.cascade import DRAWN
from ifmesh.chores import Carry, Clear, Command, Fill, Forget, Frame, Rebuild, Send, Stop, Task
from ifmesh.looks import Glance, Looks
from ifmesh.prober import Cast, Prober, Said
from ifmesh.protocol import (
    NEVER,
    Beat,
    Bye,
    Done,
    Drain,
    Drop,
    Echo,
    Endpoint,
    Header,
    Held,
    Hello,
    Load,
    Look,
    Push,
    Raised,
    Reach,
    Received,
    Refused,
    Release,
    Run,
    Step,
    Token,
    ToWorker,
    Trusted,
    Unload,
    Verdicts,
    Who,
)
from ifmesh.request import Request


@dataclass(slots=True)
class _Task:
    """A granted job that is not done.  frame: its bag, saved: the checkpoint that it is to go on from, once here.

    resume, inlet: see `Run`.  over: it runs no more, and its bag is being packed.  told: when its last Step was sent.
    """

    token: Token
    request: Request
    resume: int
    inlet: tuple[Endpoint, ...]
    frame: Frame | None = None
    saved: Frame | None = None
    running: bool = False
    over: bool = False
    step: int = 0
    steps: int = 0
    told: float = 0.0
    spoils: int = 0

    @property
    def whole(self) -> bool:
        """Is all here that it waits for?"""
        return self.frame is not None and (self.saved is not None or not self.resume)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A finished bag in the outbox."""

    token: Token
    frame: Frame
    digest: str
    steps: int
    seconds: float


BAGS = 1000  # in the outbox, and so in a Beat: from there on nothing new is taken
EARLY = 8  # bags and checkpoints that may wait for their Run: PUSH and DEALER are two connections, so their order is not certain
TELL = 0.1  # seconds between two words of the same task's steps
EARLY_S = 10.0  # seconds after which they are nobody's: a Run that was lost is said again with the next Beat


class Keeper:
    """Feed it what arrived and the time; carry out what it returns.

    outbox_bytes: from there on nothing new is taken.  beat: seconds between Beats.  patience: seconds without a word from the
    coordinator until the control socket is made anew.
    """

    def __init__(self, hello: Hello, outbox_bytes: int = 1 << 30, beat: float = 1.0, patience: float = 3.0) -> None:
        self.hello = hello
        self.tasks: dict[str, _Task] = {}  # in the order of their grants
        self.outbox: dict[str, _Kept] = {}
        self.state: Literal["loading", "ready", "draining", "swapped", "unloading"] = "loading"
        self._lease = NEVER  # under which the weights are in memory, or on their way there or out
        self._past = NEVER  # the newest that is over
        self._early: OrderedDict[tuple[str, Token, str], tuple[Header, Frame]] = OrderedDict()  # by job, token and kind
        self._newest = 0.0  # when the last of them came
        self._looks = Looks()
        self._prober = Prober(hello.stage, hello.life)
        self._outbox_bytes = outbox_bytes
        self._beat, self._patience = beat, patience
        self._number = self._trusts = 0
        self._next = 0.0
        self._heard = 0.0
        self._said_bye = False

    def start(self, now: float) -> list[Command]:
        """Say Hello; loading."""
        self._heard = now
        return self._introduce(now)

    def weighed(self, now: float, needs: int, budget: int) -> list[Command]:
        """In swap: this is what the weights take, and all in swap on the device may.  They come when the coordinator says so."""
        self.hello = replace(self.hello, needs=needs, budget=budget)
        if self.state == "loading":
            self.state = "swapped"
        return self._introduce(now)

    def denied(self, now: float) -> list[Command]:
        """Somebody on this host has the memory, who the coordinator does not know of: it hears with the next Beat, and asks again."""
        self._lease = NEVER
        if self.state in ("loading", "unloading"):
            self.state = "swapped"
        return []

    def cleared(self, now: float) -> list[Command]:
        """The memory of the weights is given back."""
        self._lease = NEVER
        if self.state == "unloading":
            self.state = "swapped"
        return self._say_beat(now)

    def loaded(self, now: float, numeric: str) -> list[Command]:
        """The weights are there: ready for work, in this numeric class."""
        self.hello = replace(self.hello, numeric=numeric)
        if self.state == "loading":
            self.state = "ready"
        return self._introduce(now)

    def receive(self, now: float, message: ToWorker) -> list[Command]:
        self._heard = now
        match message:
            case Run():
                return self._run(now, message)
            case Push():
                return self._push(message)
            case Look(job, stage, token, to):
                return self._superseded(self._looks.asked(job, stage, token, to))
            case Reach():
                return self._probing(self._prober.reach(now, message))
            case Echo():
                return self._probing(self._prober.echo(now, message))
            case Drop(job, token):
                return self._drop(job, token)
            case Release(job, token):
                return self._release(job, token)
            case Load(lease):
                return self._load(now, lease)
            case Unload(lease):
                return self._unload(now, lease)
            case Verdicts():
                out = [c for job, token in message.drop for c in self._drop(job, token)]
                return out + [c for job, token in message.release for c in self._release(job, token)]
            case Drain():
                return self.drain(now)
            case Trusted(number):
                self._trusts = number  # the shell has let them in
                return []
            case Who():
                return self._introduce(now)
            case Refused():
                return [Stop(message.detail)]

    def arrived(self, now: float, header: Header, frame: Frame) -> list[Command]:
        """A bag, or a checkpoint, came over PULL, and its digest is right.  It may be earlier than its Run, or its Look, or for nobody."""
        if header.kind == "probe":
            return self._probing(self._prober.arrived(now, header, frame))
        if header.kind == "preview":
            return self._superseded(self._looks.arrived(header.job, header.stage, header.token, frame))
        task = self.tasks.get(header.job)
        if task is None or task.token < header.token:
            self._early[header.job, header.token, header.kind] = header, frame
            self._newest = now
            if len(self._early) > EARLY:
                self._early.popitem(last=False)
            return []
        if task.token != header.token or task.whole:
            return []  # stale, or twice
        if header.kind != "checkpoint":
            task.frame = frame
        elif task.resume == header.step:
            task.saved = frame
        return self._received(header.job, task)

    def _received(self, job: str, task: _Task) -> list[Command]:
        return [Send(Received(self.hello.life, job, task.token))] if task.whole else []

    def take(self, now: float, urgent: bool = False) -> tuple[Task | None, list[Command]]:
        """The next task to start, for a compute thread with a free slot: higher priority first, then the older grant.

        urgent: no slot is free, or as many run as there are, because one came beyond them; only a task that is more urgent than all
        that run.  That it begins is told at once: should the process die of it, the coordinator must know what ran.  With no task at all,
        a glance at an early picture, of which nobody is told.  Nothing without the weights.
        """
        if self.state not in ("ready", "draining"):
            return None, []
        if not self.tasks:
            return None if urgent else self._glance(), []
        ready = [(-t.request.priority, t.token, job) for job, t in self.tasks.items() if t.whole and not t.running]
        running = [-t.request.priority for t in self.tasks.values() if t.running and not t.over]
        urgent = urgent or len(running) >= self.hello.slots
        if urgent:
            ready = [one for one in ready if running and one[0] < min(running)]
        if not ready:
            return None if urgent else self._glance(), []
        job = min(ready)[2]
        task = self.tasks[job]
        task.running, task.told = True, now
        assert task.frame is not None
        begun = Task(job, task.token, task.request, task.frame, urgent=urgent, saved=task.saved)
        return begun, [Send(Step(self.hello.life, job, task.token, 0, 0))]

    @property
    def ready(self) -> bool:
        """Is there a task whose bag is here, and that waits for a free slot?"""
        return any(task.whole and not task.running for task in self.tasks.values())

    def spoiled(self, now: float, job: str, token: Token, error: str) -> list[Command]:
        """The bag does not decode to what the stage needs: wait for it again; the third time raises it."""
        task = self._current(job, token)
        if task is None:
            self._looks.end(job, token)
            return []
        task.frame, task.running = None, False
        task.spoils += 1
        return self.raised(now, job, token, f"the bag is spoiled: {error}", "stage") if task.spoils >= 3 else []

    def advanced(self, now: float, job: str, token: Token, step: int, steps: int) -> list[Command]:
        """One step further; told on at most ten times a second: the next Beat says it, too.  The first word: admitted, where it begins, and
        how many it will take."""
        task = self._current(job, token)
        if task is None:
            return []
        task.step, task.steps = step, steps
        if now - task.told < TELL:
            return []
        task.told = now
        return [Send(Step(self.hello.life, job, token, step, steps))]

    def over(self, job: str, token: Token) -> None:
        """Its last step is done: another may have its slot."""
        if (task := self._current(job, token)) is not None:
            task.over = True

    def saved(self, now: float, job: str, token: Token, step: int, frame: Frame, digest: str) -> list[Command]:
        """A checkpoint, taken after this step: to the coordinator, if it wants any.  Nothing is held of it."""
        task = self._current(job, token)
        if task is None or not task.inlet:
            return []
        return [Carry("", task.inlet, Header("checkpoint", job, self.hello.stage, token, digest, step), frame)]

    def completed(self, now: float, job: str, token: Token, frame: Frame, digest: str, seconds: float) -> list[Command]:
        """The stage's bag, encoded: into the outbox.  A preview leaves at once, and is forgotten."""
        task = self._current(job, token)
        if task is None:
            seen = self._looks.end(job, token)
            if seen is None or seen.to is None:
                return []
            return [Carry("", seen.to, Header("preview", seen.job, seen.stage, seen.token, digest), frame)]
        del self.tasks[job]
        self.outbox[job] = _Kept(token, frame, digest, task.steps, seconds)
        return [Send(Done(self.hello.life, job, token, digest, len(frame), task.steps, seconds))]

    def raised(self, now: float, job: str, token: Token, error: str, fault: Literal["request", "stage"]) -> list[Command]:
        if self._current(job, token) is None:
            self._looks.end(job, token)
            return []
        del self.tasks[job]
        return [Send(Raised(self.hello.life, job, token, error, fault)), *self._leave()]

    def drain(self, now: float) -> list[Command]:
        """No new work; end when nothing is held.  Early pictures are work that nobody misses."""
        if self.state == "draining":
            return []
        self.state = "draining"
        return [*self._say_beat(now), *self._leave()]

    def tick(self, now: float) -> list[Command]:
        """The beat, and the watch over the coordinator's silence."""
        out = self._probing(self._prober.tick(now))
        if now - self._heard >= self._patience:
            self._heard = now
            out += [Rebuild(), Send(self.hello)]
            self._next = now
        if now >= self._next:
            out += self._say_beat(now)
        return out

    def wakeup(self) -> float:
        return min(self._next, self._heard + self._patience, self._prober.wakeup())

    # ---- orders

    def _run(self, now: float, m: Run) -> list[Command]:
        if (kept := self.outbox.get(m.job)) is not None and kept.token >= m.token:
            return []  # done already; the Beat says so
        task = self.tasks.get(m.job)
        if task is not None and task.token > m.token:
            return []
        if task is not None and task.token == m.token:  # said again
            waited, task.inlet = not task.whole, m.inlet
            if not task.running:
                task.resume = m.resume
            return self._received(m.job, task) if waited else []
        out: list[Command] = [] if task is None else [Forget(m.job, task.token)]
        self.tasks.pop(m.job, None)
        self.tasks[m.job] = _Task(m.token, m.request, m.resume, m.inlet)
        for kind in ("bag", "checkpoint"):
            if (early := self._early.pop((m.job, m.token, kind), None)) is not None:
                out += self.arrived(now, *early)
        return out

    def _push(self, m: Push) -> list[Command]:
        kept = self.outbox.get(m.job)
        if kept is None:
            return []  # the next Beat shows that it is not here
        if m.kind == "preview":
            drawn = DRAWN.get(self.hello.stage)
            if drawn is None or kept.token != m.token:
                return []  # no picture, or not the one that was meant
            return [Carry(m.life, m.to, Header("preview", m.job, self.hello.stage, m.token, kept.digest), kept.frame, drawn.name)]
        return [Carry(m.life, m.to, Header(m.kind, m.job, self.hello.stage, m.token, kept.digest), kept.frame)]

    def _drop(self, job: str, token: Token) -> list[Command]:
        for kind in ("bag", "checkpoint"):
            self._early.pop((job, token, kind), None)
        task = self.tasks.get(job)
        if task is None or task.token > token:
            return []
        del self.tasks[job]
        return [Forget(job, task.token), *self._leave()]

    def _release(self, job: str, token: Token) -> list[Command]:
        kept = self.outbox.get(job)
        if kept is not None and kept.token <= token:
            del self.outbox[job]
        return self._leave()

    # ---- the weights

    def _load(self, now: float, lease: Token) -> list[Command]:
        if self.state != "swapped" or lease <= self._past:
            return []
        self._lease, self.state = lease, "loading"
        return [Fill(), *self._say_beat(now)]

    def _unload(self, now: float, lease: Token) -> list[Command]:
        """What it holds that is not done was dropped before, and that was not heard; or it is for nobody."""
        if lease in (NEVER, self._past) or lease != self._lease:
            return []
        self._past = lease
        out: list[Command] = [Forget(job, task.token) for job, task in self.tasks.items()]
        self.tasks.clear()
        self._looks = Looks()
        if self.state != "draining":
            self.state = "unloading"
        return [*out, Clear(), *self._say_beat(now), *self._leave()]

    # ---- early pictures

    def _glance(self) -> Task | None:
        glance = self._looks.take() if self.state != "draining" else None
        if glance is None:
            return None
        assert glance.frame is not None
        return Task(glance.name, glance.token, glance.request, glance.frame, preview=True)

    @staticmethod
    def _superseded(stale: Glance | None) -> list[Command]:
        """The stage was drawn anew while its old picture was looked at."""
        return [Forget(stale.name, stale.token)] if stale is not None else []

    # ---- what it says

    @staticmethod
    def _probing(said: list[Said]) -> list[Command]:
        return [one if isinstance(one, Cast) else Send(one) for one in said]

    def _introduce(self, now: float) -> list[Command]:
        return [Send(self.hello), *self._say_beat(now)]

    def _say_beat(self, now: float) -> list[Command]:
        self._number += 1
        self._next = now + self._beat
        if now - self._newest >= EARLY_S:
            self._early.clear()
        held = [Held(job, t.token, self._phase(t), t.step, t.steps) for job, t in self.tasks.items()]
        held += [Held(job, k.token, "done", k.steps, k.steps, k.digest, len(k.frame), k.seconds) for job, k in self.outbox.items()]
        full = len(self.outbox) >= BAGS or sum(len(k.frame) for k in self.outbox.values()) >= self._outbox_bytes
        return [Send(Beat(self.hello.life, self._number, self.state, tuple(held), full, self._trusts, self._lease))]

    def _leave(self) -> list[Command]:
        """Draining, and nothing is held any more: the end."""
        if self.state != "draining" or self.tasks or self.outbox or self._said_bye:
            return []
        self._said_bye = True
        return [Send(Bye(self.hello.life)), Stop("")]

    def _current(self, job: str, token: Token) -> _Task | None:
        """The task, if what the compute thread speaks of is still wanted."""
        task = self.tasks.get(job)
        return task if task is not None and task.token == token else None

    @staticmethod
    def _phase(task: _Task) -> Literal["waiting", "ready", "running"]:
        return "running" if task.running else "ready" if task.whole else "waiting"

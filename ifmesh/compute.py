"""The compute thread of a worker: the stage, stepping.  It knows tasks and bags, no sockets, no clock of the mesh.

It asks for a task with `Free` whenever it has a free slot, and tells with the other events what became of each; `tell` is called from
its thread, and from the packer's.  Orders come through `give` and are looked at between steps.  An urgent task comes unasked, and the
less urgent pause.  In swap the stage is there from Fill to Clear, made anew each time.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import perf_counter
from typing import Literal

from ifmesh import bags
from ifmesh.cascade import Cascade
from ifmesh.chores import Clear, Fill, Forget, Task
from ifmesh.errors import BadRequest, Misconfigured
from ifmesh.lender import Lender
from ifmesh.log import logger
from ifmesh.memory import tidy
from ifmesh.packer import Made, Packed, Packer, Unmade
from ifmesh.protocol import Token
from ifmesh.stage import Bag, Foreign, Setup, Stage, steps_done
from ifmesh.wire import Garbled

SOON = 0.005  # seconds that a task which is expected is waited for before anything else is done


@dataclass(frozen=True, slots=True)
class Loaded:
    """The weights are there.  numeric: the numeric class."""

    numeric: str


@dataclass(frozen=True, slots=True)
class Weighed:
    """In swap: bytes that the stage will take.  It waits for Fill."""

    needs: int


@dataclass(frozen=True, slots=True)
class Denied:
    """In swap: the device has no room now.  holders: who has it."""

    holders: str


@dataclass(frozen=True, slots=True)
class Cleared:
    """In swap: the stage is gone, and its memory with it."""


@dataclass(frozen=True, slots=True)
class Free:
    """One slot waits for a task.  Said once for each; the next `Task` answers it."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """step 0: admitted.  With a checkpoint, what is said first is its step."""

    job: str
    token: Token
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint, taken after this step: the stage can go on from it anywhere.  digest: xxh3-128."""

    job: str
    token: Token
    step: int
    frame: bytes
    digest: str


@dataclass(frozen=True, slots=True)
class Over:
    """Its last step is done, and its slot is free; its bag follows, as Made."""

    job: str
    token: Token


@dataclass(frozen=True, slots=True)
class Spoilt:
    """The bag that came in is not what the stage needs."""

    job: str
    token: Token
    error: str


@dataclass(frozen=True, slots=True)
class Threw:
    job: str
    token: Token
    error: str
    fault: Literal["request", "stage"]


@dataclass(frozen=True, slots=True)
class Ended:
    """The thread is over: it could not load, or met a bug.  code: for the process to exit with."""

    code: int
    error: str


Event = Loaded | Weighed | Denied | Cleared | Free | Stepped | Saved | Over | Made | Spoilt | Threw | Ended


Order = Task | Forget | Fill | Clear


@dataclass(frozen=True, slots=True)
class Swap:
    """A stage is in memory by turns.  needs: bytes, 0: as the stage itself says; budget: of all that share the device."""

    lender: Lender
    budget: int
    needs: int = 0


@dataclass(slots=True)
class _Work:
    task: Task
    bag: Bag
    seconds: float = 0.0


def load_stage(factory: str) -> Stage:
    """``ifmesh_services.stage_one:StageOne`` to a stage.  Only a worker process calls this."""
    module, _, name = factory.partition(":")
    try:
        stage: Stage = getattr(import_module(module), name)()
    except (ImportError, AttributeError) as error:
        extra = "; install ifmesh[services]" if module.startswith("ifmesh_services") else ""
        raise Misconfigured(f"{factory}: {error}{extra}") from error
    return stage


class Compute:
    """keep_bags: see Packer.

    checkpoint_steps: after each so many steps of a job tell what it takes to go on from there; 0: never.  leave: is told, just before,
    which jobs run now, and nothing else: the process may die of them.  swap: None: the stage stays in memory.
    """

    def __init__(
        self,
        stage: str,
        factory: str,
        setup: Setup,
        cascade: Cascade,
        keep_bags: Path | None,
        tell: Callable[[Event], None],
        checkpoint_steps: int = 0,
        leave: Callable[[tuple[str, ...]], None] = lambda _: None,
        swap: Swap | None = None,
    ) -> None:
        self._name, self._factory, self._setup, self._cascade, self._tell = stage, factory, setup, cascade, tell
        self._packer = Packer(stage, cascade, keep_bags, self._packed)
        self._each, self._leave = checkpoint_steps, leave
        self._swap = swap
        self._orders: SimpleQueue[Order] = SimpleQueue()
        self._unpacked: list[tuple[_Work, Bag]] = []
        self.expecting = False
        """Set from outside: a task is ready for the next free slot, and will come at once."""
        self._work: dict[str, _Work] = {}
        self._asked = 0

    def start(self) -> None:
        self._packer.start()
        Thread(target=self._run, name="compute", daemon=True).start()

    def give(self, order: Order) -> None:
        self._orders.put(order)

    def _run(self) -> None:
        try:
            needs = self._weigh()
            while True:
                self._borrow(needs)
                stage = load_stage(self._factory)
                self._tell(Loaded(stage.load(self._setup)))
                while self._turn(stage):
                    pass
                del stage
                self._clear()
        except Misconfigured as error:
            self._tell(Ended(3, str(error)))
        except BaseException as error:
            logger.exception("the compute thread ends")
            self._tell(Ended(1, brief(error)))

    # ---- in swap

    def _weigh(self) -> int:
        """Tell how much memory the stage will take.  Misconfigured: nobody knows, or it is more than there is."""
        if self._swap is None:
            return 0
        where = f"services.{self._name}"
        weighs = getattr(load_stage(self._factory), "weighs", None)  # its libraries are here before its turn
        needs = self._swap.needs
        if not needs:
            if weighs is None:
                raise Misconfigured(f"{where}.needs: {self._factory} does not know how much memory it takes: say so, as in needs = '3GB'")
            needs = max(1, weighs(self._setup))
        if needs > self._swap.budget:
            device = self._setup.device
            remedy = f"a larger memory.{device}, fewer bits (dtype, quantize), offload = 'disk', or another device"
            raise Misconfigured(f"{where}: it needs {needs} bytes, and all in swap on {device} may take {self._swap.budget}: {remedy}")
        gc.freeze()  # the libraries stay: to look through them at each `_clear` took longer than to load 400 MB
        self._tell(Weighed(needs))
        return needs

    def _borrow(self, needs: int) -> None:
        """Wait until the stage is to come into memory, and there is room for it."""
        while self._swap is not None:
            order = self._orders.get()
            if isinstance(order, Fill):
                if not (holders := self._swap.lender.take(needs, self._swap.budget)):
                    return
                self._tell(Denied(holders))
            elif isinstance(order, Clear):  # of what was denied
                self._tell(Cleared())

    def _clear(self) -> None:
        """The stage is forgotten: nobody has a reference to it any more.  The memory goes back to the system."""
        self._work.clear()
        self._asked = 0
        self._leave(())
        self._pack()
        self._packer.settle()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        tidy()
        assert self._swap is not None
        self._swap.lender.give_back()
        self._tell(Cleared())

    # ---- at work

    def _turn(self, stage: Stage) -> bool:
        """Orders first, then one step for all that is admitted and does not pause.  False: the stage is to be forgotten."""
        self._ask(stage)
        try:
            while True:
                if not self._work:
                    self._leave(())
                order = self._next()
                if isinstance(order, Clear):
                    return False
                if isinstance(order, Task):
                    self._asked -= not order.urgent
                    self._admit(stage, order)
                elif isinstance(order, Forget):
                    self._forget(stage, order)
                if not self._work:
                    return True
        except Empty:
            pass
        self._pack()
        self._step(stage)
        return True

    def _next(self) -> Order:
        """Empty: there is none now, and there is work to go on with."""
        if not self._work and self._unpacked:
            if self.expecting:  # the packer's thread would only be in its way
                with suppress(Empty):
                    return self._orders.get(timeout=SOON)
            self._pack()
        return self._orders.get(block=not self._work)

    def _pack(self) -> None:
        for work, gave in self._unpacked:
            self._packer.pack(work.task, work.bag, gave, work.seconds)
        self._unpacked.clear()

    def _ask(self, stage: Stage) -> None:
        while self._asked + len(self._work) < stage.slots:
            self._asked += 1
            self._tell(Free())

    def _admit(self, stage: Stage, task: Task) -> None:
        self._leave((task.job,))
        try:
            bag = bags.decode(task.frame, self._cascade.enters(task.request, self._name))
        except Garbled as error:
            self._tell(Spoilt(task.job, task.token, brief(error)))
            return
        try:
            step, steps = self._begun(stage, task, bag)
        except Exception as error:
            self._failed(stage, task, error)
            return
        self._work[task.job] = _Work(task, bag)
        self._tell(Stepped(task.job, task.token, step, steps))

    def _begun(self, stage: Stage, task: Task, bag: Bag) -> tuple[int, int]:
        """Where it begins, and how many steps there are.  A checkpoint that is none costs the time that it would have saved."""
        if task.saved is not None:
            try:
                saved = bags.decode(task.saved)
                steps = stage.admit(task.job, task.request, bag, saved)
                return steps_done(saved, steps), steps
            except (Garbled, Foreign) as error:
                logger.warning("it begins anew, since its checkpoint is of no use: %s", brief(error), extra={"job": task.job})
                stage.drop(task.job)
        return 0, stage.admit(task.job, task.request, bag)

    def _forget(self, stage: Stage, order: Forget) -> None:
        work = self._work.get(order.job)
        if work is not None and work.task.token == order.token:
            del self._work[order.job]
            stage.drop(order.job)

    def _paused(self, slots: int) -> set[str]:
        """The slots go to the most urgent, then to the older; the others wait where they are."""
        return set(sorted(self._work, key=lambda job: -self._work[job].task.request.priority)[slots:])

    def _step(self, stage: Stage) -> None:
        paused = self._paused(stage.slots)
        self._leave(tuple(job for job in self._work if job not in paused))
        began = perf_counter()
        try:
            for advance in stage.step(paused):
                work = self._work[advance.job]
                work.seconds += perf_counter() - began
                if advance.output is None:
                    self._tell(Stepped(advance.job, work.task.token, advance.step, advance.steps))
                    if self._each and advance.step % self._each == 0:
                        self._save(stage, work.task, advance.step)
                else:
                    del self._work[advance.job]
                    self._tell(Over(advance.job, work.task.token))
                    self._ask(stage)
                    self._unpacked.append((work, advance.output))
        except Exception as error:  # it concerns all that stepped
            for job in [job for job in self._work if job not in paused]:
                self._failed(stage, self._work.pop(job).task, error)

    def _save(self, stage: Stage, task: Task, step: int) -> None:
        """One that cannot be had, or is too large for a frame, is only missed should this worker die."""
        try:
            saved = stage.save(task.job)
            if saved is not None:
                frame = bags.encode(saved)
                self._tell(Saved(task.job, task.token, step, frame, bags.digest(frame)))
        except Exception as error:
            logger.warning("no checkpoint after step %d: %s", step, brief(error), extra={"job": task.job})

    def _packed(self, packed: Packed) -> None:
        """Called in the packer's thread."""
        match packed:
            case Made():
                self._tell(packed)
            case Unmade(job, token, error):
                self._told(job, token, error)

    def _failed(self, stage: Stage, task: Task, error: Exception) -> None:
        self._told(task.job, task.token, error)
        stage.drop(task.job)

    def _told(self, job: str, token: Token, error: Exception) -> None:
        fault: Literal["request", "stage"] = "request" if isinstance(error, BadRequest) else "stage"
        if fault == "stage":
            logger.error("%s failed", self._name, exc_info=error, extra={"job": job})
        self._tell(Threw(job, token, str(error)[:2000] if fault == "request" else brief(error), fault))


def brief(error: BaseException) -> str:
    """Class and message on one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]

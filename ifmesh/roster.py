"""The workers that live, and which of them has room."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import Literal

from ifmesh.protocol import Hello, Token


@dataclass(slots=True)
class Worker:
    """One life of one worker.  Times are the coordinator's monotonic seconds.

    tasks: what it was granted and has not finished.  outputs: jobs whose finished bag is in its outbox.  beat: number of its last
    Beat, 0 before the first; nothing is granted before it, because it may hold tasks of an earlier epoch.  reserved: the one job
    that it is kept empty for.  urgency: the highest priority of its tasks.  came: when the newest of what has come from a life was pushed;
    "": of what has come from this one to the coordinator.  leaving: its weights are to leave the memory: it is granted nothing more.
    since: when it came into its state.
    """

    hello: Hello
    peer: bytes
    since: float
    seen: float
    progressed: float
    state: Literal["loading", "ready", "draining", "swapped", "unloading"] = "loading"
    full: bool = False
    beat: int = 0
    reserved: str = ""
    done: int = 0
    tasks: dict[str, Token] = field(default_factory=dict)
    outputs: set[str] = field(default_factory=set)
    urgency: float = -inf
    came: dict[str, float] = field(default_factory=dict)
    leaving: bool = False

    @property
    def life(self) -> str:
        return self.hello.life

    @property
    def name(self) -> str:
        return self.hello.name

    @property
    def stage(self) -> str:
        return self.hello.stage

    @property
    def slots(self) -> int:
        return self.hello.slots

    @property
    def room(self) -> bool:
        """May it be granted one more job?"""
        return self.takes(self.hello.capacity)

    def takes(self, places: int) -> bool:
        """May it be granted one more job, when it has so many places?"""
        return self.state == "ready" and not (self.leaving or self.full or self.reserved) and len(self.tasks) < places


def named(hello: Hello) -> tuple[str, str]:
    """Its name among the workers that have its key."""
    return hello.name, hello.endpoints[0].key if hello.endpoints else ""


class Roster:
    """All workers, by life, by name and by stage; the least loaded with room comes first, found in a heap, not by a scan.

    priority: of a job, by its id.
    """

    def __init__(self, stages: tuple[str, ...], priority: Callable[[str], int]) -> None:
        self._priority = priority
        self.lives: dict[str, Worker] = {}
        self.names: dict[tuple[str, str], Worker] = {}  # by name and key: nobody takes the place of another's
        self.stages: dict[str, dict[str, Worker]] = {stage: {} for stage in stages}
        self.aside: set[str] = set()  # names of workers that killed too many different requests
        self._free: dict[str, list[tuple[int, int, str]]] = {stage: [] for stage in stages}
        self._calm: dict[str, list[tuple[float, str]]] = {stage: [] for stage in stages}
        self._serial = count()

    def add(self, worker: Worker) -> None:
        self.lives[worker.life] = self.names[named(worker.hello)] = self.stages[worker.stage][worker.life] = worker

    def remove(self, worker: Worker) -> None:
        del self.lives[worker.life], self.stages[worker.stage][worker.life]
        if self.names.get(named(worker.hello)) is worker:
            del self.names[named(worker.hello)]

    def offer(self, worker: Worker) -> None:
        """Its load or its state has changed: it may have room."""
        before, worker.urgency = worker.urgency, max(map(self._priority, worker.tasks), default=-inf)
        if worker.urgency not in (before, -inf):
            calm = self._calm[worker.stage]
            heapq.heappush(calm, (worker.urgency, worker.life))
            if len(calm) > 64 and len(calm) > 8 * len(self.stages[worker.stage]):
                self._calm[worker.stage] = sorted((w.urgency, w.life) for w in self.stages[worker.stage].values() if w.tasks)
        if worker.room and worker.name not in self.aside:
            heap = self._free[worker.stage]
            heapq.heappush(heap, (len(worker.tasks), next(self._serial), worker.life))
            if len(heap) > 64 and len(heap) > 8 * len(self.stages[worker.stage]):
                free = [w for w in self.stages[worker.stage].values() if w.room and w.name not in self.aside]
                self._free[worker.stage] = sorted((len(w.tasks), next(self._serial), w.life) for w in free)

    def _true(self, stage: str, entry: tuple[int, int, str]) -> bool:
        """Does this entry of a heap still tell the truth?"""
        load, _, life = entry
        worker = self.lives.get(life)
        return worker is not None and worker.stage == stage and worker.room and len(worker.tasks) == load and worker.name not in self.aside

    def least_loaded(self, stage: str) -> Worker | None:
        """The worker of this stage with room and the fewest tasks; entries that the truth has left behind are dropped."""
        heap = self._free[stage]
        while heap and not self._true(stage, heap[0]):
            heapq.heappop(heap)
        return self.lives[heap[0][2]] if heap else None

    def calmest(self, stage: str) -> float:
        """The least urgency among the workers of this stage that have something in hand; infinity: none has."""
        heap = self._calm[stage]
        while heap and ((worker := self.lives.get(heap[0][1])) is None or worker.urgency != heap[0][0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else inf

    def usable(self, stage: str) -> list[Worker]:
        """The workers of this stage that serve, with room or without."""
        return [w for w in self.stages[stage].values() if w.state == "ready" and not w.leaving and w.name not in self.aside]

    def staffed(self, stage: str) -> bool:
        """Is there a worker of this stage that serves, now or when its weights come into memory?"""
        here = [w for w in self.stages[stage].values() if w.name not in self.aside]
        return any(w.state == "ready" or (w.hello.needs and w.state != "draining") for w in here)

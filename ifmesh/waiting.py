"""Who waits for a stage, in what order.  A job has one valid place at a time; places left behind are skipped when they surface."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count

from ifmesh.job import Job


class Waiting:
    """The queue of one stage: higher priority first, then the older.  A job that comes back is at the head again: it is older."""

    _tickets = count(1)

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, Job]] = []
        self._count = 0
        self._shares: dict[int, tuple[int, int]] = {}  # by priority: how many wait, and the order of the newest that ever did beside them

    def __len__(self) -> int:
        return self._count

    def add(self, job: Job) -> None:
        job.ticket = next(self._tickets)
        heapq.heappush(self._heap, (-job.request.priority, job.order, job.ticket, job))
        self._count += 1
        number, newest = self._shares.get(job.request.priority, (0, 0))
        self._shares[job.request.priority] = number + 1, max(newest, job.order)

    def remove(self, job: Job) -> None:
        """The job leaves from wherever it stands."""
        job.ticket = 0
        self._count -= 1
        number, newest = self._shares.pop(job.request.priority)
        if number > 1:
            self._shares[job.request.priority] = number - 1, newest
        if len(self._heap) > 64 and len(self._heap) > 2 * self._count:
            self._heap = [place for place in self._heap if place[3].ticket == place[2]]
            heapq.heapify(self._heap)

    def first(self) -> Job | None:
        """Who is next."""
        while self._heap and self._heap[0][3].ticket != self._heap[0][2]:
            heapq.heappop(self._heap)
        return self._heap[0][3] if self._heap else None

    def drain(self) -> Iterator[Job]:
        """The waiting jobs in order.  Whom the caller neither removes nor stops at goes back to its place at the end."""
        passed = []
        try:
            while self._heap:
                place = heapq.heappop(self._heap)
                job = place[3]
                if job.ticket != place[2]:
                    continue
                passed.append(place)
                yield job
        finally:
            for place in passed:
                if place[3].ticket == place[2]:
                    heapq.heappush(self._heap, place)

    def position(self, job: Job) -> int:
        """How many go before it.  Of the newest, which is mostly asked for, without a look at each."""
        if job.ticket and job.order >= self._shares[job.request.priority][1]:
            return sum(number for priority, (number, _) in self._shares.items() if priority >= job.request.priority) - 1
        mine = (-job.request.priority, job.order)
        return sum(1 for p in self._heap if p[:2] < mine and p[3].ticket == p[2])

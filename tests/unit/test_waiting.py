"""The queue of a stage, against a plain list."""

from __future__ import annotations

import random

from ifmesh.job import Job
from ifmesh.request import Request
from ifmesh.waiting import Waiting


def test_order_and_positions_are_those_of_a_sorted_list() -> None:
    dice, queue, plain = random.Random(3), Waiting(), list[Job]()
    for number in range(2000):
        if plain and dice.random() < 0.45:
            job = plain.pop(dice.randrange(len(plain)))
            queue.remove(job)
            if dice.random() < 0.3:  # it comes back, to its old place
                queue.add(job)
                plain.append(job)
        else:
            plain.append(Job(f"j{number}", Request("a fox", number, priority=dice.choice((-1, 0, 0, 0, 5))), ("encoder",), 0.0, number))
            queue.add(plain[-1])
        plain.sort(key=lambda job: (-job.request.priority, job.order))
        assert len(queue) == len(plain)
        for job in dice.sample(plain, min(3, len(plain))):
            assert queue.position(job) == plain.index(job)
        newest = max(plain, key=lambda job: job.order, default=None)
        assert newest is None or queue.position(newest) == plain.index(newest)
    assert [job.id for job in queue.drain()] == [job.id for job in plain]

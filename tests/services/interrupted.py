"""A stage that dies in the middle of every job, and another that goes on from its checkpoint, which travelled as bytes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from ifmesh import bags
from ifmesh.request import Request
from ifmesh.stage import Advance, Bag, Setup, Stage

At = Literal["first", "middle", "last", "every"]
"""After which of a job's steps; the last is the last but one, after which there is still something to do."""


def struck(at: At, step: int, steps: int) -> bool:
    return step < steps and (at == "every" or step == {"first": 1, "middle": steps // 2, "last": steps - 1}[at])


class Interrupted:
    """Two stages of the same weights in the place of one.  resumed: after which steps the other went on."""

    def __init__(self, one: Stage, other: Stage, at: At) -> None:
        self._here, self._there, self._at = one, other, at
        self.slots = one.slots
        self._jobs: dict[str, tuple[Request, Bag]] = {}
        self.resumed: list[int] = []

    def load(self, setup: Setup) -> str:
        raise NotImplementedError

    def admit(self, job: str, request: Request, bag: Bag, saved: Bag | None = None) -> int:
        self._jobs[job] = request, bag
        return self._here.admit(job, request, bag, saved)

    def step(self, paused: Collection[str] = ()) -> list[Advance]:
        made = list(self._here.step(paused))
        for advance in made:
            if struck(self._at, advance.step, advance.steps):
                self._move(advance)
        return made

    def save(self, job: str) -> Bag | None:
        return self._here.save(job)

    def drop(self, job: str) -> None:
        self._here.drop(job)

    def _move(self, advance: Advance) -> None:
        """Of one job at a time."""
        saved = self._here.save(advance.job)
        if saved is None:
            return
        frame = bags.encode(saved)
        self._here.drop(advance.job)
        self._here, self._there = self._there, self._here
        assert self._here.admit(advance.job, *self._jobs[advance.job], bags.decode(frame)) == advance.steps
        self.resumed.append(advance.step)

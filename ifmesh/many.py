"""Many jobs at once, for both clients: pictures in order, and jobs as they end."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from ifmesh import wishes
from ifmesh.asker import Asker
from ifmesh.case import Case
from ifmesh.errors import BadRequest, MeshBusy
from ifmesh.image import Image
from ifmesh.request import Request
from ifmesh.talk import Pause, Signal, Talk, Work
from ifmesh.wishes import Brought

J = TypeVar("J")
LEAST, LONGEST = 0.1, 60.0  # seconds between two tries at a mesh that is full, whatever it says


@dataclass(slots=True)
class _Place:
    """One picture to come.  case: None before it was asked for."""

    job: str
    request: Request
    brought: Brought
    case: Case | None = None


class Series:
    """Pictures in the order in which they were asked for; never more than `ahead` jobs that were not handed over yet.

    timeout: seconds for all of them.
    """

    def __init__(self, asker: Asker, prompts: object, n: int, ahead: int, given: Mapping[str, Any], timeout: float | None = None) -> None:
        for name, number in (("n", n), ("ahead", ahead)):
            if type(number) is not int or number < 1:
                raise BadRequest(name, number, "a whole number, at least 1")
        if not isinstance(prompts, str | Iterable) or isinstance(prompts, Mapping):
            raise BadRequest("prompts", prompts, "a text, or several: each a text, or a mapping with a prompt and wishes of its own")
        self._asker, self._n, self._ahead, self._timeout = asker, n, ahead, timeout
        self._end = None if timeout is None else time.monotonic() + timeout
        self._items = self._asked([prompts] if isinstance(prompts, str) else prompts, dict(given))
        self._open: deque[_Place] = deque()
        self._known: tuple[tuple[object, ...], Brought] | None = None

    def next(self) -> Talk[Image | None]:
        """None: that was the last one."""
        while len(self._open) < self._ahead and (item := next(self._items, None)) is not None:
            place = _Place(secrets.token_hex(8), *(yield from self._made(item)))
            self._open.append(place)
            place.case = yield from self._asker.ask(place.request, place.job, place.brought)
        while self._open:
            case = self._open[0].case
            assert case is not None
            try:
                image = yield from case.result(self._left())
            except MeshBusy as busy:
                pause, left = min(LONGEST, max(LEAST, busy.retry_after)), self._left()
                yield Pause(None, 0, pause if left is None else min(pause, left))
                yield from self._again()
                continue
            except TimeoutError:
                raise TimeoutError(f"not all were drawn within {self._timeout:g} s; the rest is cancelled") from None
            self._open.popleft()
            return image
        return None

    def all(self) -> Talk[list[Image]]:
        """Every picture; or, whatever the reason, none, and none is drawn any more."""
        found = []
        try:
            while (image := (yield from self.next())) is not None:
                found.append(image)
            return found
        finally:
            self.close()

    def close(self) -> None:
        """Whatever is still under way is for nobody."""
        for place in self._open:
            if place.case is None or not place.case.over:
                self._asker.forsake(place.job)
        self._open.clear()

    def _left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def _again(self) -> Talk[None]:
        """Ask once more for all that were not taken."""
        for place in self._open:
            if place.case is not None and place.case.busy:
                place.case = yield from self._asker.ask(place.request, place.job, place.brought)

    def _asked(self, prompts: Iterable[object], shared: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for prompt in prompts:
            if not isinstance(prompt, str | Mapping):
                raise BadRequest("prompts", prompt, "each a text, or a mapping with a prompt and wishes of its own")
            whole = {**shared, **({"prompt": prompt} if isinstance(prompt, str) else prompt)}
            if whole.get("continues") is not None:
                raise BadRequest("continues", whole["continues"], "one picture, one job: use proceed, or submit")
            if self._n > 1 and whole.get("generator") is not None:
                raise BadRequest("n", self._n, "with a generator only 1: a seed gives as many pictures as you like")
            seed = whole.get("seed")
            first = secrets.randbits(32) if seed is None else seed
            for number in range(self._n):
                if whole.get("generator") is None:
                    whole["seed"] = first + number if type(first) is int else first
                yield whole

    def _made(self, item: dict[str, Any]) -> Talk[tuple[Request, Brought]]:
        """What many pictures share, a source say, is read once."""
        rest = dict(item)
        prompt, source, mask = rest.pop("prompt", ""), rest.pop("source", None), rest.pop("mask", None)
        same = (source, mask, rest.get("embeds"))
        known = self._known[1] if self._known and all(a is b for a, b in zip(self._known[0], same, strict=True)) else None
        if rest.get("generator") is not None:
            known = None  # its state may have moved on
        make = partial(wishes.made, prompt, source, mask, rest, known)
        slow = known is None and (source is not None or rest.get("embeds") is not None)
        request, brought = (yield Work(make)) if slow else make()
        self._known = None if rest.get("generator") is not None else (same, brought)
        return request, brought


class Race(Generic[J]):
    """Jobs in the order in which they end."""

    def __init__(self, jobs: Iterable[tuple[J, Case]], timeout: float | None) -> None:
        self._timeout = timeout
        self._until = None if timeout is None else time.monotonic() + timeout
        self._arrived = Signal()
        self._ended: deque[int] = deque()
        self._open = dict(enumerate(jobs))
        self._count = len(self._open)
        self._rings = {number: partial(self._ring, number) for number in self._open}
        for number, (_, case) in self._open.items():
            if case.over:
                self._ring(number)
            else:
                case.file.over.listen(0, self._rings[number])

    def next(self) -> Talk[J | None]:
        """None: all have ended."""
        while self._open:
            number, (_, case) = next(iter(self._open.items()))
            late = f"{len(self._open)} of {self._count} jobs have not ended within {self._timeout} s; they go on, their ids stay good"
            # Over, and yet not told: the connection breaks just now.
            yield from case.line.wait(self._arrived, lambda: bool(self._ended) or case.over, self._longest, self._until, late)  # noqa: B023
            with self._arrived.lock:
                number = self._ended.popleft() if self._ended else number
            if number in self._open:
                return self._open.pop(number)[0]
        return None

    def close(self) -> None:
        for number, (_, case) in self._open.items():
            case.file.over.unlisten(self._rings[number])

    def _longest(self) -> float:
        return min(case.longest() for _, case in self._open.values())

    def _ring(self, number: int) -> None:
        with self._arrived.lock:
            self._ended.append(number)
        self._arrived.changed()

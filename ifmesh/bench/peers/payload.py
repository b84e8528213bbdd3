"""What each stage hands on: tensors of the sizes that the mesh carries, as plain bytes, for no peer has a type for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from ifmesh.bench import stages
from ifmesh.bench.taken import Taken
from ifmesh.request import STAGES, Request

REQUEST = Request("a red fox in the snow", 7, negative="blurry", stages=False)
BAGS: dict[str, dict[str, bytes]] = {
    stage: {name: bytes(tensor.data) for name, tensor in stages.bag(stage, REQUEST).items()} for stage in STAGES[:4]
}
Drive = Callable[[int, float, int], Taken]
"""(in flight, seconds, at least so many requests): a closed loop."""
K = TypeVar("K", bound=Hashable)


def looped(in_flight: int, seconds: float, least: int, begin: Callable[[], K], ended: Callable[[list[K]], Iterable[K]]) -> Taken:
    """A closed loop over whatever can be begun, and waited for.  ended: those of these that are done, at least one; their results read."""
    taken, begun = Taken(in_flight), dict[K, float]()
    first = time.perf_counter()
    while True:
        more = time.perf_counter() - first < seconds or len(taken.ends) < least
        while more and len(begun) < in_flight:
            now = time.perf_counter()
            begun[begin()] = now
        if not begun:
            return taken
        for one in ended(list(begun)):
            now = time.perf_counter()
            taken.add(now - begun.pop(one), now - first)

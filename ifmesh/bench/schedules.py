"""When the requests of an open loop are due.  One seed, one schedule: a slow mesh does not slow it down."""

from __future__ import annotations

import random
from typing import Literal

Kind = Literal["poisson", "constant"]


def due(kind: Kind, rate: float, seconds: float, seed: int = 0) -> tuple[float, ...]:
    """Seconds since the beginning, rising, all below `seconds`.  rate: requests per second, above 0; if Poisson, on the average."""
    if kind == "constant":
        return tuple(number / rate for number in range(_whole(seconds * rate)))
    drawn, at, found = random.Random(seed), 0.0, list[float]()
    while (at := at + drawn.expovariate(rate)) < seconds:
        found.append(at)
    return tuple(found)


def shared(kind: Kind, rate: float, seconds: float, clients: int, seed: int = 0) -> tuple[tuple[float, ...], ...]:
    """The same for so many clients together: dealt in turn where it is constant; each its own where it is Poisson, which adds up to one."""
    if kind == "constant":
        whole = due(kind, rate, seconds)
        return tuple(whole[client::clients] for client in range(clients))
    return tuple(due(kind, rate / clients, seconds, seed * clients + client) for client in range(clients))


def dealt(count: int, clients: int) -> tuple[int, ...]:
    """So many requests in flight, as evenly as it goes; the first ones get one more."""
    return tuple(count // clients + (client < count % clients) for client in range(clients))


def _whole(count: float) -> int:
    """The next whole number from below on, but for rounding: 3.0000000000000004 requests are three."""
    return max(0, -int(-(count - 1e-9) // 1))

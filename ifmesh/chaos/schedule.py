"""What is done to the mesh, and when.  One seed, one schedule: nothing here looks at a clock or a process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

RATES = {
    "kill": 0.41,
    "kill busy": 0.59,
    "kill coordinator": 0.105,
    "kill all": 0.005,
    "kill client": 0.024,
    "pause": 0.11,
    "partition": 0.055,
    "deafen": 0.035,
    "bytes": 0.12,
}
"""Of each kind, so many for each kill of a worker."""

LONG = 0.3
"""Share of pauses and partitions that last longer than `mesh.silence`."""

STRANGERS = ("raw", "null", "unknown key", "insider", "inlet")


@dataclass(frozen=True, slots=True)
class Event:
    """at: seconds after the beginning.  target: a service ("stage_one-0", "coordinator", "client-1"); "": no single one.

    kind: a key of RATES; "kill busy" waits until the worker is given a job: it dies with work in hand, or on its way to it.

    how: of a kill or pause: child, parent or both (a worker is two processes); of a partition: both (nothing passes), up (to the
    coordinator nothing passes), down (from it), cut (connections break); of bytes: who throws them.  seconds: how long it lasts.
    number: for whatever randomness carrying it out needs.
    """

    at: float
    kind: str
    target: str
    how: str
    seconds: float
    number: int


def schedule(
    seed: int, seconds: float, every: float, workers: Sequence[str], clients: Sequence[str], silence: float = 5.0
) -> tuple[Event, ...]:
    """All events, by time.

    seconds: for how long; every: between two kills of a worker; silence: seconds after which the mesh counts a process as lost.
    """
    random = Random(f"schedule {seed}")
    made: list[Event] = []
    for kind, rate in RATES.items():
        draw = _DRAWN[kind]
        wanted = round(rate * seconds / every)
        for place in range(wanted):  # one in each part of the time: by pure chance a coordinator is killed five times before it grants
            at, number = (place + random.random()) / wanted * seconds, random.getrandbits(32)
            target, how, lasts = draw(random, workers, clients, silence)
            made.append(Event(round(at, 3), kind, target, how, round(lasts, 3), number))
    return tuple(sorted(made, key=lambda e: (e.at, e.number)))


Draw = Callable[[Random, Sequence[str], Sequence[str], float], tuple[str, str, float]]


def _lasting(random: Random, silence: float) -> float:
    return random.uniform(1.1, 1.8) * silence if random.random() < LONG else random.uniform(0.05, 0.4) * silence


def _kill(random: Random, workers: Sequence[str], clients: Sequence[str], silence: float) -> tuple[str, str, float]:
    return random.choice(workers), random.choices(("child", "parent", "both"), (6, 2, 1))[0], 0.0


def _pause(random: Random, workers: Sequence[str], clients: Sequence[str], silence: float) -> tuple[str, str, float]:
    target = random.choice((*workers, "coordinator", *clients))
    return target, random.choices(("child", "parent", "both"), (4, 1, 1))[0], _lasting(random, silence)


def _partition(random: Random, workers: Sequence[str], clients: Sequence[str], silence: float) -> tuple[str, str, float]:
    return random.choice((*workers, *clients)), random.choice(("both", "up", "down", "cut")), _lasting(random, silence)


def _deafen(random: Random, workers: Sequence[str], clients: Sequence[str], silence: float) -> tuple[str, str, float]:
    return random.choice((*workers, "coordinator")), random.choice(("both", "cut")), _lasting(random, silence)


_DRAWN: dict[str, Draw] = {
    "kill": _kill,
    "kill busy": _kill,
    "kill coordinator": lambda random, workers, clients, silence: ("coordinator", "child", 0.0),
    "kill all": lambda random, workers, clients, silence: ("", "both", 0.0),
    "kill client": lambda random, workers, clients, silence: (random.choice(clients), "child", 0.0),
    "pause": _pause,
    "partition": _partition,
    "deafen": _deafen,
    "bytes": lambda random, workers, clients, silence: ("", random.choice(STRANGERS), 0.0),
}

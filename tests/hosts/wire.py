"""One direction of a link, as a mind: what becomes of each frame.  No clock of its own; the same seed and frames, the same fates."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """How a link carries frames from one host to another.

    delay, jitter: seconds; each frame comes `delay` to `delay + jitter` later, and in order.  loss, twice, early: the share (0 to 1) of the
    frames that are lost, come twice, or overtake those before them.  rate: bits per second, 0: as fast as it goes; buffer: seconds that a
    frame may wait for its turn, beyond it is dropped, as in any router.  dead: nothing comes through, and nobody is told.
    """

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    twice: float = 0.0
    early: float = 0.0
    rate: float = 0.0
    buffer: float = 0.5
    dead: bool = False


PLAIN = Link()


class Wire:
    """Frames in, the times at which they arrive out.  seed: of its own dice, one throw for each thing that may happen to a frame."""

    def __init__(self, seed: str) -> None:
        self.link = PLAIN
        self.carried = self.dropped = 0  # frames
        self._dice = random.Random(seed)
        self._free = 0.0  # when the sender may send again
        self._last = 0.0  # when the frame before arrives

    def fate(self, now: float, size: int) -> tuple[float, ...]:
        """When a frame of so many bytes arrives: never, once, or twice."""
        link = self.link
        if link is PLAIN:
            self.carried += 1
            return (now,)
        lost, twice, early, late = (self._dice.random() for _ in range(4))
        if link.dead or lost < link.loss:
            self.dropped += 1
            return ()
        sent = now
        if link.rate:
            begun = max(now, self._free)
            if begun - now > link.buffer:
                self.dropped += 1
                return ()
            sent = self._free = begun + size * 8 / link.rate
        self.carried += 1
        arrives = sent + link.delay + late * link.jitter
        if early < link.early:
            return (now,)
        arrives = self._last = max(arrives, self._last)
        return (arrives, arrives) if twice < link.twice else (arrives,)

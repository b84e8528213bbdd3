"""Both ends of a probe, in a worker and in the coordinator: pure.  Lossy on purpose: nothing is held, and nothing is sent twice.

The source sends small frames one by one, each when the one before was answered; then large ones, so few at a time that a bag that comes
between them does not wait long.  The target answers each at once.  Every duration is taken on one clock: the round trips on the source's,
the seconds of the large frames on the target's, which tells them with its answers.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from math import inf

from ifmesh.protocol import Arrived, Echo, Endpoint, Header, Reach, Reached, Token

TRIPS = 10  # small frames; one more goes before them, for the connection has to come up
WINDOW = 4  # large frames under way: a link that is long needs some
LINK = 3.0  # seconds for the next answer, small frames
BULK = 3.0  # seconds after which no large frame leaves any more ...
SLOWEST = 30.0  # ... and for all of them to be answered
KNOWN = 64  # probes that one end remembers as their target

_ELAPSED = struct.Struct("<d")


@dataclass(frozen=True, slots=True)
class Cast:
    """PUSH this frame to that life ("": the coordinator), with its digest in the header."""

    life: str
    to: tuple[Endpoint, ...]
    header: Header
    frame: bytes


Said = Cast | Arrived | Reached


@dataclass(slots=True)
class _Trip:
    """One probe, at its source.  large: a frame.  sent: so far, small and large ones; answered: of the large ones, in `seconds`.

    due: when it has failed; until: when no large one leaves any more, infinity while the small ones are under way.
    """

    order: Reach
    large: bytes
    due: float
    sent: int = 0
    left: float = 0.0
    trips: list[float] = field(default_factory=list)
    until: float = inf
    answered: int = 0
    seconds: float = 0.0

    @property
    def small(self) -> bool:
        return self.until == inf


@dataclass(slots=True)
class _Echo:
    """One probe, at its target.  to: None until the order came.  newest: the last frame that came, 0: none did; began: when the large ones
    did."""

    life: str = ""
    to: tuple[Endpoint, ...] | None = None
    newest: int = 0
    began: float | None = None


class Prober:
    """stage: of whose key the frames are, "" the coordinator's.  life: who says so."""

    def __init__(self, stage: str, life: str) -> None:
        self._stage, self._life = stage, life
        self._trips: dict[Token, _Trip] = {}
        self._echoes: OrderedDict[Token, _Echo] = OrderedDict()

    def reach(self, now: float, m: Reach) -> list[Said]:
        """Ordered to be the source."""
        if m.token in self._trips:
            return []
        trip = self._trips[m.token] = _Trip(m, bytes(m.size), now + LINK)
        return [self._next(now, trip)]

    def echo(self, now: float, m: Echo) -> list[Said]:
        """Ordered to be the target.  The first frame may have been quicker than the order."""
        echo = self._known(m.token)
        quicker, echo.life, echo.to = echo.to is None and echo.newest, m.life, m.to
        return [self._answer(now, m.token, echo)] if quicker else []

    def arrived(self, now: float, header: Header, frame: bytes | memoryview) -> list[Said]:
        """A frame of a probe: one to be answered, or an answer."""
        if (trip := self._trips.get(header.token)) is not None:
            told = _ELAPSED.unpack(frame)[0] if len(frame) == _ELAPSED.size else -1.0
            return self._answered(now, trip, header.step, told) if 0 <= told <= SLOWEST else []
        echo = self._known(header.token)
        said: list[Said] = [] if echo.newest else [Arrived(self._life, header.token)]
        echo.newest = header.step
        if len(frame) and echo.began is None:
            echo.began = now
        return said if echo.to is None else [*said, self._answer(now, header.token, echo)]

    def tick(self, now: float) -> list[Said]:
        """What was not answered in time."""
        late = [trip for trip in self._trips.values() if trip.due <= now]
        return [self._over(trip, self._why(trip)) for trip in late]

    def wakeup(self) -> float:
        """When `tick` has something to do, at the latest; infinity: never."""
        return min((trip.due for trip in self._trips.values()), default=inf)

    # ---- the source

    def _answered(self, now: float, trip: _Trip, step: int, told: float) -> list[Said]:
        if trip.small:
            if step != trip.sent:
                return []  # twice
            if trip.sent > 1:
                trip.trips.append(now - trip.left)
            if len(trip.trips) < TRIPS:
                trip.due = now + LINK
                return [self._next(now, trip)]
            trip.until, trip.due = now + BULK, now + SLOWEST
            return [*(self._next(now, trip) for _ in range(min(WINDOW, trip.order.count)))] or [self._over(trip)]
        trip.answered += 1
        trip.seconds = max(trip.seconds, told)
        if trip.sent < 1 + TRIPS + trip.order.count and now < trip.until:
            return [self._next(now, trip)]
        return [self._over(trip)] if trip.answered == trip.sent - 1 - TRIPS else []

    def _next(self, now: float, trip: _Trip) -> Cast:
        trip.sent, trip.left = trip.sent + 1, now
        header = self._header(trip.order.token, trip.sent)
        return Cast(trip.order.life, trip.order.to, header, b"" if trip.small else trip.large)

    def _over(self, trip: _Trip, error: str = "") -> Reached:
        del self._trips[trip.order.token]
        size = trip.order.size * max(0, trip.answered - 1)
        return Reached(self._life, trip.order.token, tuple(trip.trips), size, trip.seconds if size else 0.0, error)

    @staticmethod
    def _why(trip: _Trip) -> str:
        if not trip.small:
            return f"of {trip.order.count} frames of {trip.order.size} bytes {trip.answered} were answered within {SLOWEST:g} s"
        return f"no answer within {LINK:g} s" + (f", after {trip.sent - 1} that were answered" if trip.sent > 1 else "")

    # ---- the target

    def _known(self, token: Token) -> _Echo:
        echo = self._echoes.setdefault(token, _Echo())
        while len(self._echoes) > KNOWN:
            self._echoes.popitem(last=False)
        return echo

    def _answer(self, now: float, token: Token, echo: _Echo) -> Cast:
        elapsed = 0.0 if echo.began is None else now - echo.began
        return Cast(echo.life, echo.to or (), self._header(token, echo.newest), _ELAPSED.pack(elapsed))

    def _header(self, token: Token, step: int) -> Header:
        """job: so that none takes the place of another that waits for the link."""
        return Header("probe", f"{token[1]}.{step}", self._stage, token, "", step)

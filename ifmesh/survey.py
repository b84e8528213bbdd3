"""Probes: what an operator wants to know of the ways between the services.  Pure.

The coordinator orders one from its source, and is one end of it where that is asked.  A probe touches no job: it is journalled nowhere,
sent by nobody a second time, and over after some seconds, however it went.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import inf

from ifmesh.cascade import Cascade
from ifmesh.commands import Command, Policy
from ifmesh.crew import WORDS, Crew
from ifmesh.prober import BULK, LINK, SLOWEST, TRIPS, Cast, Prober, Said
from ifmesh.protocol import Arrived, Echo, Endpoint, Header, Probe, Probed, Reach, Reached, Token
from ifmesh.roster import Worker

HUB = "coordinator"
"""The coordinator's own name, as a source or a target."""
MOST = 16  # under way at once
SIZE = 8 << 20  # bytes of a frame ...
BYTES = 256 << 20  # ... and of all frames of one probe
FIRST = LINK + 2.0  # seconds after which something of it should have been heard ...
LAST = (1 + TRIPS) * LINK + BULK + SLOWEST  # ... and after which it is over


@dataclass(slots=True)
class _Survey:
    """One probe.  peer: who asked.  source, target: lives, "" the coordinator's."""

    peer: bytes
    asked: Probe
    source: str
    target: str
    url: str
    since: float
    arrived: bool = False


class Survey(Crew):
    """The doors for all who have something to say, and those for probes."""

    def __init__(self, cascade: Cascade, epoch: int, inlet: tuple[Endpoint, ...], policy: Policy | None = None) -> None:
        super().__init__(cascade, epoch, inlet, policy)
        self._looks |= {"probe": self._outlasted, "prober": self._late}
        self._surveys: dict[Token, _Survey] = {}
        self._surveyed = 0
        self._prober = Prober("", "")

    # ---- what the shell calls

    def probes(self, token: Token) -> bool:
        """Is there such a probe, of which something may come?"""
        return token in self._surveys

    def probed(self, now: float, header: Header, frame: bytes | memoryview) -> list[Command]:
        """A frame of it has come."""
        self._said(now, self._prober.arrived(now, header, frame))
        return self._flush(now)

    # ---- doors

    def _probe(self, now: float, peer: bytes, m: Probe, owner: str | None) -> None:
        # 1. under way: said again.  2. wrong, or too much.  3. begun.
        if any((survey.peer, survey.asked) == (peer, m) for survey in self._surveys.values()):
            self._send(peer, self.welcome())  # a sign of life
        elif error := self._unfit_probe(m):
            self._send(peer, Probed(m.number, error=error))
        else:
            self._survey(now, peer, m)

    def _survey(self, now: float, peer: bytes, m: Probe) -> None:
        self._surveyed += 1
        token = (self.epoch, self._surveyed)
        source, target = self._called(m.source), self._called(m.target)
        to, back = self._ends(target), self._ends(source)
        survey = _Survey(peer, m, source.life if source else "", target.life if target else "", self._first(source, to), now)
        self._surveys[token] = survey
        self._timer(now + FIRST, "probe", f"{token[1]}")
        echo, reach = Echo(token, survey.source, back), Reach(token, survey.target, to, m.size, m.count)
        if target is None:
            self._said(now, self._prober.echo(now, echo))
        else:
            self._send(target.peer, echo)
        if source is None:
            self._said(now, self._prober.reach(now, reach))
            self._timer(now + LINK, "prober", "")
        else:
            self._send(source.peer, reach)

    def _unfit_probe(self, m: Probe) -> str:
        """Why it cannot be; "": it can."""
        names = Counter(worker.name for worker in self.roster.lives.values())
        names[HUB] += 1
        for name in (m.source, m.target):
            if names[name] != 1:
                known = "no service" if not names[name] else f"{names[name]} services"
                return f"{known} of the name {name[:WORDS]!r}: `ifmesh ps` shows them"
        if m.source == m.target:
            return f"{m.source}: a service pushes nothing to itself"
        if not (0 <= m.size <= SIZE and 0 <= m.count <= BYTES and m.size * m.count <= BYTES and bool(m.size) == bool(m.count)):
            return f"{m.count} frames of {m.size} bytes: of at most {SIZE} bytes, and {BYTES} in all"
        if len(self._surveys) >= MOST:
            return f"{MOST} probes are under way, the limit: ask again in a moment"
        return ""

    def _arrived(self, now: float, peer: bytes, m: Arrived) -> None:
        if (survey := self._surveys.get(m.token)) is not None and m.life in (survey.target, survey.source):
            survey.arrived = True

    def _reached(self, now: float, peer: bytes, m: Reached) -> None:
        if (survey := self._surveys.get(m.token)) is None or m.life != survey.source:
            return
        error = m.error[:WORDS]
        if m.error and not m.trips and survey.arrived:
            error = f"it arrives at {survey.asked.target}, whose answers do not come back to {survey.asked.source}"
        trips = m.trips[:TRIPS]
        self._over_with(m.token, Probed(survey.asked.number, survey.arrived or bool(trips), survey.url, trips, m.size, m.seconds, error))

    # ---- time

    def _outlasted(self, now: float, key: str) -> None:
        """Nothing was heard of this probe, or not its end."""
        token = (self.epoch, int(key))
        if (survey := self._surveys.get(token)) is None:
            return
        if survey.arrived and now < survey.since + LAST:
            self._timer(survey.since + LAST, "probe", key)
            return
        gone = [name for name, life in ((survey.asked.source, survey.source), (survey.asked.target, survey.target)) if self._gone(life)]
        why = f"{gone[0]} is gone" if gone else f"{survey.asked.source} does not say how it went"
        self._over_with(token, Probed(survey.asked.number, survey.arrived, survey.url, error=why))

    def _late(self, now: float, _: str) -> None:
        """Was what the coordinator itself has sent answered in time?"""
        self._said(now, self._prober.tick(now))
        if (due := self._prober.wakeup()) < inf:
            self._timer(due, "prober", "")

    # ---- inside

    def _said(self, now: float, said: list[Said]) -> None:
        """By this end of it."""
        for one in said:
            if isinstance(one, Cast):
                self._out.append(one)
            elif isinstance(one, Arrived):
                self._arrived(now, b"", one)
            else:
                self._reached(now, b"", one)

    def _over_with(self, token: Token, told: Probed) -> None:
        self._send(self._surveys.pop(token).peer, told)

    def _called(self, name: str) -> Worker | None:
        """None: the coordinator."""
        return next((worker for worker in self.roster.lives.values() if worker.name == name and name != HUB), None)

    def _ends(self, worker: Worker | None) -> tuple[Endpoint, ...]:
        return self._inlet if worker is None else worker.hello.endpoints

    def _gone(self, life: str) -> bool:
        return bool(life) and life not in self.roster.lives

    def _first(self, source: Worker | None, to: tuple[Endpoint, ...]) -> str:
        """The address that a source on its host tries first."""
        host = source.hello.host if source is not None else next((end.host for end in self._inlet if end.host), "")
        near = [end.url for end in to if host and end.host == host]
        return next(iter([*near, *(end.url for end in to if not end.host)]), "")

    def check(self) -> None:
        super().check()
        looked = {key for _, _, kind, key in self._timers if kind == "probe"}
        assert {str(number) for _, number in self._surveys} <= looked, "a probe that is never over"
        assert len(self._surveys) <= MOST, "more probes than there may be"

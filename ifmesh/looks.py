"""The early pictures that a guard has been asked to look at: pure.  Lossy on purpose: nobody waits for them, and nothing is held.

A Look and its picture come over two connections, in either order; few are remembered, and the oldest go.
"""

from __future__ import annotations

from dataclasses import dataclass

from ifmesh.cascade import DRAWN
from ifmesh.protocol import Endpoint, Token
from ifmesh.request import Request

LOOKS = 8  # remembered at once, those that run included


@dataclass(slots=True)
class Glance:
    """One picture of one job.  to: where its preview goes, None until the Look came; frame: the picture, None until it is here."""

    job: str
    stage: str
    token: Token
    to: tuple[Endpoint, ...] | None = None
    frame: bytes | memoryview | None = None
    running: bool = False

    @property
    def name(self) -> str:
        """What the compute thread calls it: its job may be in the same guard, and so may another of its pictures."""
        return f"{self.job}.{self.stage}"

    @property
    def request(self) -> Request:
        """As if somebody had asked for this stage alone: so the cascade knows what comes, and what is given."""
        return Request("preview", 0, first_stage=self.stage, last_stage=self.stage, stages=False)


class Looks:
    """In the order in which they were first heard of."""

    def __init__(self) -> None:
        self._glances: dict[str, Glance] = {}

    def __len__(self) -> int:
        return len(self._glances)

    def asked(self, job: str, stage: str, token: Token, to: tuple[Endpoint, ...]) -> Glance | None:
        """A Look came.  The glance that is running and has become stale by it, if any."""
        glance, stale = self._of(job, stage, token)
        if glance is not None:
            glance.to = to
        return stale

    def arrived(self, job: str, stage: str, token: Token, frame: bytes | memoryview) -> Glance | None:
        """A picture came; answers as `asked`."""
        glance, stale = self._of(job, stage, token)
        if glance is not None and glance.frame is None:
            glance.frame = frame
        return stale

    def take(self) -> Glance | None:
        """The oldest that is whole, to be looked at now."""
        glance = next((g for g in self._glances.values() if not g.running and g.to is not None and g.frame is not None), None)
        if glance is not None:
            glance.running = True
        return glance

    def end(self, name: str, token: Token) -> Glance | None:
        """It is done, one way or another.  None: nobody knows it any more."""
        glance = self._glances.get(name)
        return self._glances.pop(name) if glance is not None and glance.token == token else None

    def _of(self, job: str, stage: str, token: Token) -> tuple[Glance | None, Glance | None]:
        """The glance under this token, made if need be; and the one that ran and gave way to it.  A newer token takes the place."""
        glance = Glance(job, stage, token)
        known = self._glances.get(glance.name)
        if stage not in DRAWN or (known is not None and known.token > token):
            return None, None
        if known is not None and known.token == token:
            return known, None
        self._glances[glance.name] = glance
        if len(self._glances) > LOOKS:
            # What runs stays: under a flood of Looks nothing would ever be finished.
            del self._glances[next(name for name, g in self._glances.items() if not g.running)]
        return glance, known if known is not None and known.running else None

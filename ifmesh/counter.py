"""The counter where results are handed out: to each client as fast as it reads."""

from __future__ import annotations

from ifmesh.mail import RESULTS, Mail
from ifmesh.protocol import Result

SOONEST, LATEST = 0.005, 0.5  # seconds between two looks whether somebody has read
MOST = 4096  # results that wait here; who asks for more asks again


class Counter:
    def __init__(self, mail: Mail) -> None:
        self._mail = mail
        self._asked: dict[bytes, dict[str, Result]] = {}  # by client and job, in the order in which they asked
        self._pause = SOONEST
        self.due: float | None = None
        """When to ask for the `next`, at the latest; None: nobody waits."""

    def ask(self, peer: bytes, told: Result) -> None:
        """This client wants that result, which is to follow.  Asked twice before it has it, it gets it once."""
        if sum(map(len, self._asked.values())) < MOST:
            self._asked.setdefault(peer, {})[told.job] = told

    def next(self, now: float) -> tuple[bytes, Result] | None:
        """Whom to hand what, now."""
        for peer, asked in self._asked.items():
            if self._mail.room(peer, RESULTS):
                told = asked.pop(next(iter(asked)))
                if not asked:
                    del self._asked[peer]
                self._pause = SOONEST
                return peer, told
        if self._asked and (self.due is None or self.due <= now):
            self.due = now + self._pause
            self._pause = min(LATEST, 2 * self._pause)
        elif not self._asked:
            self.due = None
        return None

    def gone(self, peer: bytes) -> None:
        """It cannot be told anything any more."""
        self._asked.pop(peer, None)

"""The counter where results are handed out: to each client as fast as it reads."""

from __future__ import annotations

from collections.abc import Callable

from ifmesh.log import logger
from ifmesh.mail import RESULTS, Mail, key
from ifmesh.protocol import Refused, Result

SOONEST, LATEST = 0.005, 0.5  # seconds between two looks whether somebody has read
MOST = 4096  # results that wait here for the clients of one key; who asks for more asks again


class Counter:
    """load: the published frame of a job, None if it is no more; may raise OSError.  say: to a client, with what follows."""

    def __init__(
        self,
        mail: Mail,
        load: Callable[[str], bytes | memoryview | None],
        say: Callable[[bytes, Result | Refused, bytes | memoryview | None], None],
    ) -> None:
        self._mail, self._load, self._say = mail, load, say
        self._asked: dict[bytes, dict[str, Result]] = {}  # by client and job, in the order in which they asked
        self._pause = SOONEST
        self.due: float | None = None
        """When to `serve` again, at the latest; None: nobody waits."""

    def ask(self, peer: bytes, told: Result) -> None:
        """This client wants that result, which is to follow.  Asked twice before it has it, it gets it once."""
        if sum(len(asked) for who, asked in self._asked.items() if key(who) == key(peer)) < MOST:
            self._asked.setdefault(peer, {})[told.job] = told

    def serve(self, now: float) -> None:
        """All who can take more."""
        while (one := self._next(now)) is not None:
            self._hand(*one)

    def gone(self, peer: bytes) -> None:
        """It cannot be told anything any more."""
        self._asked.pop(peer, None)

    # ---- inside

    def _next(self, now: float) -> tuple[bytes, Result] | None:
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

    def _hand(self, peer: bytes, told: Result) -> None:
        try:
            payload = self._load(told.job)
        except OSError as error:
            logger.error("the result cannot be read: %s", error, extra={"job": told.job})
            payload = None
        if payload is None:
            self._say(peer, Refused(told.job, "unknown", "the result is no longer on disk"), None)
        else:
            self._say(peer, told, payload)

"""What a client process is told, and what it tells: one JSON object a line, so that it may run on any host to which there is a pipe.

    -> {"mesh": {"coordinator": URL, "state": DIR, "identity": FILE | null | false}}     <- {"ready": true}
    -> {"run": Run}                                                                      <- {"report": Report}, when all has ended
    -> {"stop": true}                                  nothing more is asked; what is under way ends

All times are seconds of the client's own clock since its run began: clocks of different processes are never subtracted.  Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

How = Literal["finished", "failed", "refused", "lost"]


@dataclass(frozen=True, slots=True)
class Run:
    """asks: the keyword arguments of `Client.submit`, each a JSON object, taken in turn.  seed: of the first request; each next has
    the next.

    Closed loop: in_flight requests at once, for so many seconds and at least so many requests.  Open loop: in_flight is 0, and one request
    is due at each of `at`, whatever became of those before.  previews: watch for the early pictures.  settle: seconds, when nothing more is
    asked, after which a request that has not ended counts as lost.
    """

    asks: tuple[str, ...]
    seed: int = 0
    in_flight: int = 0
    seconds: float = 0.0
    least: int = 1
    at: tuple[float, ...] = ()
    previews: bool = False
    settle: float = 600.0


@dataclass(frozen=True, slots=True)
class Spell:
    """What one stage did for one request, as the mesh tells it: seconds until it began there, and at work; bytes in and out."""

    stage: str
    worker: str
    device: str
    queued: float
    run: float
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True, slots=True)
class Record:
    """One request.  at: when it was due; sent: when it was asked; end: when its picture, or the refusal, was here.  preview: when the
    first picture was seen, early or not; None: never.  retry_after: of a refusal.  error: of a failure."""

    at: float
    sent: float
    end: float
    how: How
    preview: float | None = None
    retry_after: float = 0.0
    error: str = ""
    spells: tuple[Spell, ...] = ()

    @property
    def seconds(self) -> float:
        """From when it was due: a client or a mesh that is late does not make it shorter."""
        return self.end - self.at


@dataclass(frozen=True, slots=True)
class Report:
    """Of one client.  seconds: until all had ended."""

    records: tuple[Record, ...] = field(default=())
    seconds: float = 0.0

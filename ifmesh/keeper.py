"""The worker's mind: pure.  Tasks, early bags, the outbox, the beat.  (Skeleton: bodies follow.)

Only the worker's I/O thread touches it; what the compute thread did is told to it there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ifmesh.protocol import Endpoint, Header, Hello, Request, Token, ToWorker, WorkerMessage

Frame = bytes | memoryview
"""A bag as one safetensors frame."""


@dataclass(frozen=True, slots=True)
class Send:
    """To the coordinator."""

    message: WorkerMessage


@dataclass(frozen=True, slots=True)
class Carry:
    """PUSH this bag to that life."""

    life: str
    to: tuple[Endpoint, ...]
    header: Header
    frame: Frame


@dataclass(frozen=True, slots=True)
class Forget:
    """To the compute thread: drop this job, before its next step."""

    job: str
    token: Token


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Nothing was heard for too long: close the control socket and make a new one."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The end of this life.  Refused with detail, or drained (detail "")."""

    detail: str


Command = Send | Carry | Forget | Rebuild | Stop


@dataclass(frozen=True, slots=True)
class Task:
    """For the compute thread: start this."""

    job: str
    token: Token
    request: Request
    frame: Frame


class Keeper:
    """Feed it what arrived and the time; carry out what it returns."""

    def __init__(self, hello: Hello, outbox_bytes: int = 1 << 30, beat: float = 1.0, patience: float = 3.0) -> None: ...

    def start(self, now: float) -> list[Command]:
        """Say Hello; loading."""
        raise NotImplementedError

    def loaded(self, now: float, numeric: str) -> list[Command]:
        """The weights are there: ready for work, in this numeric class."""
        raise NotImplementedError

    def receive(self, now: float, message: ToWorker) -> list[Command]:
        raise NotImplementedError

    def arrived(self, now: float, header: Header, frame: Frame) -> list[Command]:
        """A bag came over PULL, and its digest is right.  It may be earlier than its Run, or for nobody."""
        raise NotImplementedError

    def take(self, now: float) -> tuple[Task | None, list[Command]]:
        """The next task to start, for a compute thread with a free slot."""
        raise NotImplementedError

    def spoiled(self, now: float, job: str, token: Token, error: str) -> list[Command]:
        """The bag does not decode to what the stage needs: wait for it again; the third time raises it."""
        raise NotImplementedError

    def advanced(self, now: float, job: str, token: Token, step: int, steps: int) -> list[Command]:
        """One step further; told on at most ten times a second."""
        raise NotImplementedError

    def completed(self, now: float, job: str, token: Token, frame: Frame, digest: str, seconds: float) -> list[Command]:
        """The stage's bag, encoded: into the outbox."""
        raise NotImplementedError

    def raised(self, now: float, job: str, token: Token, error: str, fault: Literal["request", "stage"]) -> list[Command]:
        raise NotImplementedError

    def drain(self, now: float) -> list[Command]:
        """No new work; end when nothing is held."""
        raise NotImplementedError

    def tick(self, now: float) -> list[Command]:
        """The beat, and the watch over the coordinator's silence."""
        raise NotImplementedError

    def wakeup(self) -> float:
        raise NotImplementedError

"""The client's mind: pure.  It repeats what was not answered.  (Skeleton: bodies follow.)"""

from __future__ import annotations

from dataclasses import dataclass

from ifmesh.protocol import ClientMessage, Request, ToClient


@dataclass(frozen=True, slots=True)
class Send:
    message: ClientMessage


@dataclass(frozen=True, slots=True)
class Tell:
    """To whoever waits for this job ("": for the Welcome or the Books): this came.  payload: the frame behind a Result."""

    job: str
    message: ToClient
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Nothing was heard for too long: close the socket and make a new one."""


Command = Send | Tell | Rebuild


class Caller:
    """Feed it wishes, what arrived and the time; carry out what it returns."""

    def __init__(self, patience: float = 3.0, again: float = 2.0) -> None: ...

    def hi(self, now: float) -> list[Command]:
        """Is anybody there?  Repeated until Welcome."""
        raise NotImplementedError

    def submit(self, now: float, job: str, request: Request) -> list[Command]:
        """Repeated until Accepted or Refused; from then on the job is watched to its end."""
        raise NotImplementedError

    def watch(self, now: float, job: str) -> list[Command]:
        """Come back to a job by its id."""
        raise NotImplementedError

    def cancel(self, now: float, job: str) -> list[Command]:
        """Repeated until the job has ended, one way or another."""
        raise NotImplementedError

    def fetch(self, now: float, job: str) -> list[Command]:
        """Repeated until the Result is here."""
        raise NotImplementedError

    def inspect(self, now: float, page: int, job: str) -> list[Command]:
        """Repeated until Books or Refused."""
        raise NotImplementedError

    def forget(self, job: str) -> None:
        """Nobody waits for this job any more; it goes on."""
        raise NotImplementedError

    def receive(self, now: float, message: ToClient, payload: bytes = b"") -> list[Command]:
        raise NotImplementedError

    def tick(self, now: float) -> list[Command]:
        raise NotImplementedError

    def wakeup(self) -> float | None:
        raise NotImplementedError

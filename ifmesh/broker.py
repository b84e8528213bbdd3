"""The coordinator's mind: pure.  Time and messages go in, commands come out.  (Skeleton: bodies follow.)"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ifmesh.cascade import Cascade
from ifmesh.protocol import Ended, Endpoint, Request, StageRun, ToClient, ToCoordinator, Token, ToParent, ToWorker


@dataclass(frozen=True, slots=True)
class Policy:
    """The broker's numbers.  Seconds unless said."""

    silence: float = 5.0  # a worker that says nothing for this long is dead
    grace: float = 5.0  # after a restart: adopt only, grant nothing
    transfer: float = 5.0  # a bag that has not arrived after this is pushed again ...
    transfers: int = 3  # ... so often, then another worker gets the job
    loading: float = 600.0  # patience with a worker that loads its weights
    blames: int = 4  # this death of its own making fails the request as poison
    alone: int = 2  # after so many it runs with nobody beside it
    errors: int = 3  # so many raises of a stage fail the request
    aside: int = 3  # a worker that killed so many different requests is put aside
    max_jobs: int = 1000  # unfinished jobs; beyond: Refused(busy)
    remember: int = 10000  # endings kept in memory
    page: int = 100  # rows of one Books


# ---- what the broker wants done


@dataclass(frozen=True, slots=True)
class Send:
    """Over the ROUTER.  A peer that cannot be reached is told back with `gone`."""

    to: bytes
    message: ToClient | ToWorker | ToParent


@dataclass(frozen=True, slots=True)
class Give:
    """PUSH the job's first bag (empty, for a job without uploads) to the worker, under a "bag" header with this stage and token."""

    job: str
    token: Token
    stage: str
    life: str
    to: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Hand:
    """Send the published result of this job to a client: Result, and the frame from disk."""

    to: bytes
    job: str
    digest: str


@dataclass(frozen=True, slots=True)
class Book:
    """Journal: the job is accepted.  Every Book, Close and Blame of a batch is on disk before any of its Sends leaves."""

    job: str
    request: Request


@dataclass(frozen=True, slots=True)
class Close:
    """Journal: the job has ended, unless it had already (compare-and-set)."""

    job: str
    ending: Ended
    story: tuple[tuple[float, str], ...]
    runs: tuple[StageRun, ...]


@dataclass(frozen=True, slots=True)
class Blame:
    """Journal: so many deaths are held against the job."""

    job: str
    count: int
    cause: str


@dataclass(frozen=True, slots=True)
class Note:
    """For the log.  job "": about the mesh."""

    job: str
    text: str


Command = Send | Give | Hand | Book | Close | Blame | Note


# ---- what the journal remembers


@dataclass(frozen=True, slots=True)
class Booked:
    """An accepted job without an ending.  age: seconds since acceptance, by the wall clock."""

    job: str
    request: Request
    age: float
    blame: int


@dataclass(frozen=True, slots=True)
class Closed:
    """An ended job."""

    job: str
    request: Request
    ending: Ended
    story: tuple[tuple[float, str], ...]
    runs: tuple[StageRun, ...]


def parent_of(life: str) -> bytes:
    """The routing id of the parent process that watches this life."""
    return f"{life}/parent".encode()


class Broker:
    """Feed it what arrived and the time; carry out what it returns, in order; call tick() no later than wakeup()."""

    def __init__(self, cascade: Cascade, epoch: int, inlet: tuple[Endpoint, ...], policy: Policy | None = None) -> None: ...

    def recover(self, now: float, open_jobs: Iterable[Booked], ended: Iterable[Closed]) -> list[Command]:
        """After a start, before anything else: what the journal knows."""
        raise NotImplementedError

    def receive(self, now: float, peer: bytes, message: ToCoordinator) -> list[Command]:
        """peer: routing id of the sender."""
        raise NotImplementedError

    def expects(self, job: str, token: Token) -> bool:
        """Is a result of this job, under this token, to be stored?"""
        raise NotImplementedError

    def landed(self, now: float, job: str, token: Token, digest: str, size: int) -> list[Command]:
        """The result is on disk.  digest: SHA-256 (hex) of the frame."""
        raise NotImplementedError

    def gone(self, now: float, peer: bytes) -> None:
        """This peer cannot be reached any more."""
        raise NotImplementedError

    def drain(self, now: float) -> list[Command]:
        """Admit nothing new, start no job; those under way go on."""
        raise NotImplementedError

    @property
    def drained(self) -> bool:
        """Draining, and nothing is under way."""
        raise NotImplementedError

    def farewell(self) -> list[Command]:
        """The last words to every worker: Drain."""
        raise NotImplementedError

    def tick(self, now: float) -> list[Command]:
        raise NotImplementedError

    def wakeup(self) -> float | None:
        """When tick() next has work; None: never."""
        raise NotImplementedError

    def check(self) -> None:
        """The books balance, or AssertionError."""
        raise NotImplementedError

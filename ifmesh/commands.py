"""What the broker wants done, what the journal remembers, and the broker's numbers.  Plain values: tests compare them with ==."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ifmesh.prober import Cast
from ifmesh.protocol import Ended, Endpoint, StageRun, ToClient, Token, ToParent, ToWorker
from ifmesh.request import Request


@dataclass(frozen=True, slots=True)
class Policy:
    """The broker's numbers.  Seconds unless said."""

    silence: float = 5.0  # a worker that says nothing for this long is dead
    grace: float = 5.0  # after a restart: adopt only, grant nothing
    transfer: float = 5.0  # a bag that has not arrived after this, and what its bytes may take, is pushed again ...
    slowest: float = 200e3  # ... bytes a second that a link carries at the least ...
    transfers: int = 3  # ... so often, then once by way of the coordinator, and then another worker gets the job
    detour: float = 600.0  # between two workers where that was the way, it is taken at once for this long
    loading: float = 600.0  # patience with a worker that loads its weights ...
    unloading: float = 60.0  # ... and with one that gives their memory back
    max_phase: float = 60.0  # a stage whose weights are in memory keeps them for so long while others wait for theirs and it has work
    presumed: float = 60.0  # a life of which nothing is heard, and no end was witnessed, holds memory so long; then its parent is to end it
    blames: int = 4  # this death of its own making fails the request as poison
    alone: int = 2  # after so many it runs with nobody beside it
    errors: int = 3  # so many raises of a stage fail the request
    aside: int = 3  # a worker that killed so many different requests ...
    window: float = 600.0  # ... within this time is put aside
    max_jobs: int = 1000  # unfinished jobs; beyond: Refused(busy)
    remember: int = 1000  # endings kept in memory ...
    remember_bytes: int = 64 << 20  # ... if they are no more than this, about; what is older the journal knows
    max_workers: int = 1000  # that live
    page: int = 100  # rows of one Books
    retry_after: float = 2.0  # what a refused client is told to wait
    upload_keep: float = 60.0  # an upload that no open job refers to stays on disk for this long; so long a Submit waits for one
    max_uploads: int = 4 << 30  # bytes of uploads on disk; beyond: Refused(busy)
    tether: float = 30.0  # a tied job is cancelled when nobody who watches it was heard for this long
    checkpoints: bool = False  # are they wanted?
    patience: Mapping[str, float] = field(default_factory=dict)  # by stage, instead of the cascade's own


# ---- what the broker wants done


@dataclass(frozen=True, slots=True)
class Send:
    """Over the ROUTER.  A peer that cannot be reached is told back with `gone`."""

    to: bytes
    message: ToClient | ToWorker | ToParent


@dataclass(frozen=True, slots=True)
class Give:
    """PUSH the job's first bag to the worker, under a "bag" header with this stage and token.

    upload: SHA-256 (hex) of the bag, to be read from disk; "": the job brings nothing, and the bag is empty.  What cannot be read is
    told back with `unreadable`.
    """

    job: str
    token: Token
    stage: str
    life: str
    to: tuple[Endpoint, ...]
    upload: str = ""


@dataclass(frozen=True, slots=True)
class Restore:
    """PUSH the job's checkpoint to the worker, under a "checkpoint" header with this token.  What is no longer there is told back with
    `unsaved`."""

    job: str
    token: Token
    life: str
    to: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """The job's checkpoint is needed no more."""

    job: str


@dataclass(frozen=True, slots=True)
class Hand:
    """Send the published result of this job to a client: Result, and the frame from disk."""

    to: bytes
    job: str
    digest: str
    request: Request


@dataclass(frozen=True, slots=True)
class Discard:
    """Delete this upload from disk: no open job refers to it, and it is not held."""

    digest: str


@dataclass(frozen=True, slots=True)
class Book:
    """Journal: the job is accepted.  owner: the name of the client it belongs to, "" for nobody's.

    Every Book, Close, Hold and Blame of a batch is on disk before any of its Sends leaves.
    """

    job: str
    request: Request
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Close:
    """Journal: the job has ended, unless it had already (compare-and-set)."""

    job: str
    ending: Ended
    story: tuple[tuple[float, str], ...]
    runs: tuple[StageRun, ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """Journal: this upload, of these tensors, stays on disk for so many seconds from now on, whoever refers to it."""

    digest: str
    names: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Blame:
    """Journal: so many deaths are held against the job.  life: whose death was the last, "" when one was given back."""

    job: str
    count: int
    cause: str
    life: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """For the log.  job "": about the mesh."""

    job: str
    text: str


Command = Send | Cast | Give | Restore | Forget | Hand | Discard | Book | Close | Hold | Blame | Note


# ---- what the journal remembers


@dataclass(frozen=True, slots=True)
class Booked:
    """An accepted job without an ending.  age: seconds since acceptance, by the wall clock.

    lives: those whose deaths were held against it: each is once, however often it is told.
    """

    job: str
    request: Request
    age: float
    blame: int
    owner: str = ""
    lives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Closed:
    """An ended job.  weight: bytes of memory, about."""

    job: str
    request: Request
    ending: Ended
    story: tuple[tuple[float, str], ...]
    runs: tuple[StageRun, ...]
    owner: str = ""
    weight: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        r = self.request
        texts = len(r.prompt) + len(r.negative) + len(r.style) + sum(len(text) for _, text in self.story)
        lists = sum(len(s.timesteps or ()) + len(s.schedule or "") for s in r.settings.values())
        weight = 2000 + 4 * texts + 32 * lists + 100 * len(self.story) + 1000 * len(self.runs)
        object.__setattr__(self, "weight", weight)  # frozen, but for its own making


def parent_of(life: str) -> bytes:
    """The routing id of the parent process that watches this life."""
    return f"{life}/parent".encode()


def peer_of(life: str, dial: int = 0) -> bytes:
    """The routing id of this life when it dials for this time, 0 the first.

    Each time another: until a ROUTER has noticed that a link is dead it is deaf to a second one of the same name.  Measured: of workers cut
    off for 2 to 3 s one in ten was silent for more than 5 s so.
    """
    return (f"{life}~{dial}" if dial else life).encode()

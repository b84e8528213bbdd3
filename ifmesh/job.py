"""The life of a job: one table.  No row, no move; the error tells the job's whole story."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from ifmesh.protocol import NEVER, StageRun, Token
from ifmesh.request import Request


class State(Enum):
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Cause(Enum):
    ASSIGNED = "assigned"  # a worker of its stage was granted it
    ADOPTED = "adopted"  # a worker already has it: after a restart, or a late answer under the newest token
    ADVANCED = "advanced"  # the stage is done, more are to come
    RETRIED = "retried"  # the worker is lost; attempts are left
    COMPLETED = "completed"  # the result is on disk
    EXHAUSTED = "exhausted"  # no attempt is left, or the request can never work
    CANCELLED = "cancelled"
    EXPIRED = "expired"


MOVES: Final = {
    (State.QUEUED, Cause.ASSIGNED): State.RUNNING,
    (State.QUEUED, Cause.ADOPTED): State.RUNNING,
    (State.RUNNING, Cause.ADVANCED): State.QUEUED,
    (State.RUNNING, Cause.RETRIED): State.QUEUED,
    (State.RUNNING, Cause.COMPLETED): State.FINISHED,
    (State.RUNNING, Cause.EXHAUSTED): State.FAILED,
    (State.QUEUED, Cause.CANCELLED): State.CANCELLED,
    (State.RUNNING, Cause.CANCELLED): State.CANCELLED,
    (State.QUEUED, Cause.EXPIRED): State.FAILED,
    (State.RUNNING, Cause.EXPIRED): State.FAILED,
}


class IllegalMove(AssertionError):
    """Our own bug: a job was moved where the table has no row."""


@dataclass(frozen=True, slots=True)
class Output:
    """A finished bag that lives in a worker's outbox.  digest: xxh3-128; size: bytes."""

    life: str
    token: Token
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What it takes to go on after this step of that stage (an index), in this numeric class; the coordinator has it in memory.

    token: of the grant that made it.
    """

    stage: int
    step: int
    token: Token
    numeric: str


@dataclass(slots=True)
class Job:
    """One request on its way.  Times are the coordinator's monotonic seconds.

    stage: index into route: the stage it waits for or runs in.  order: of acceptance; the older goes first.  ticket: names its one
    valid place in a queue.
    The grant: token, life (the worker, "" when queued), received (that worker has the bag), running (it has begun), publishing
    (the last stage is done, and its result is on its way to disk), pushed and pushes (when last, and how often, the bag was sent), due
    (until when it may be under way, as far as that was looked at),
    relayed (the life that holds the bag, while it is on its way through the coordinator).
    saved: its checkpoint, if there is one; resume: the grant goes on after this step of it, 0: it begins anew.
    tokens: the newest grant of each stage, by index: an answer under an older one is stale.
    outputs: by stage index, every finished bag known to live.  classes: the numeric class in which each stage ran.
    blame: deaths of a worker's own making while this ran in it; mourned: the lives that ended so.  errors: times a stage raised;
    avoid: the workers it raised in or did not reach.
    watchers: the clients that are told of it; lookers: those of them that want to see early pictures.  heard: when somebody who
    watched it, and is gone, was last heard; at first, when it was accepted.
    owner: the client it belongs to, "" for nobody's.  begun: when its first stage began, as far as this coordinator knows; None: it
    waits for that.
    """

    id: str
    request: Request
    route: tuple[str, ...]
    accepted: float
    order: int
    state: State = State.QUEUED
    stage: int = 0
    ticket: int = 0
    token: Token = NEVER
    life: str = ""
    received: bool = False
    running: bool = False
    publishing: bool = False
    pushed: float = 0.0
    due: float = 0.0
    pushes: int = 0
    relayed: str = ""
    saved: Checkpoint | None = None
    resume: int = 0
    step: int = 0
    steps: int = 0
    tokens: dict[int, Token] = field(default_factory=dict)
    outputs: dict[int, Output] = field(default_factory=dict)
    classes: dict[int, str] = field(default_factory=dict)
    reproducible: bool = True
    blame: int = 0
    mourned: set[str] = field(default_factory=set)
    errors: int = 0
    avoid: set[str] = field(default_factory=set)
    watchers: set[bytes] = field(default_factory=set)
    lookers: set[bytes] = field(default_factory=set)
    heard: float = 0.0
    owner: str = ""
    begun: float | None = None
    queued_at: float = 0.0
    started_at: float = 0.0
    starts: dict[int, int] = field(default_factory=dict)
    runs: dict[int, StageRun] = field(default_factory=dict)
    story: list[tuple[float, str]] = field(default_factory=list)

    @property
    def at(self) -> str:
        """The name of the stage it waits for or runs in."""
        return self.route[self.stage]

    @property
    def last(self) -> int:
        """The index of its last stage."""
        return len(self.route) - 1

    @property
    def floor(self) -> int:
        """Outputs of stages below this index are needed no more: their successor exists twice."""
        return self.stage - 1 if self.received else self.stage - 2

    def deadlines(self) -> dict[str, float]:
        """When each of those that it has now passes."""
        asked = self.request
        found = {"deadline": (self.accepted, asked.deadline)}
        if self.begun is None:
            found["deadline_queued"] = self.accepted, asked.deadline_queued
        else:
            found["deadline_running"] = self.begun, asked.deadline_running
        return {name: since + seconds for name, (since, seconds) in found.items() if seconds is not None}

    def tell(self, now: float, text: str) -> None:
        """Add a line to its story.  A long life is told by its beginning and its end."""
        if len(self.story) >= 200:
            del self.story[100]
        self.story.append((now - self.accepted, text))

    def move(self, now: float, cause: Cause, why: str = "") -> None:
        after = MOVES.get((self.state, cause))
        if after is None:
            raise IllegalMove(f"{self.id}: {self.state.value}, but {cause.value}; so far {self.story}")
        self.tell(now, f"{self.at}: {cause.value}{': ' + why if why else ''}")
        self.state = after
